"""Rows that the first version wrote are read for ever: their bytes are kept here, never made anew."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mini_visa.streams.table import UnknownRowVersion
from tables.accounts import TABLES, AccountRecords, RequestRow

KEPT: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "rows_v1.json").read_text())


def test_a_row_of_every_table_is_kept() -> None:
    assert set(KEPT) == {table.name for table in TABLES}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_row_of_the_first_version_still_means_the_same(table: Any) -> None:
    kept = KEPT[table.name]
    row = table.decode(bytes.fromhex(kept["row"]))
    assert table.decode(table.encode(row)) == row
    if isinstance(row, RequestRow):
        row = AccountRecords({})._stored(row)
    assert json.loads(msgspec.json.encode(row)) == kept["means"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_row_of_a_newer_version_is_not_guessed(table: Any) -> None:
    with pytest.raises(UnknownRowVersion, match="version 255"):
        table.decode(b"\xff" + bytes.fromhex(KEPT[table.name]["row"])[1:])
