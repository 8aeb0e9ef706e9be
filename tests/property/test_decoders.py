"""Whatever bytes come out of a topic or a table: a message, a row, or the documented error."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tables
from mini_visa import topics
from mini_visa.domain.messages import Undecodable
from mini_visa.streams.store import PROGRESS_VERSION, decode_progress
from mini_visa.streams.table import AnyTable, BrokenRow, Table, UnknownRowVersion
from mini_visa.streams.topic import AnyTopic

TAGS = sorted(
    {
        str(kind.__struct_config__.tag)
        for module in ("commands", "events", "answers", "journal", "clearing", "settlement", "saga")
        for kind in vars(importlib.import_module(f"mini_visa.domain.{module}")).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
    }
)
FIELDS = (
    "account", "amount", "at", "client", "n", "outcome", "partition", "payment", "payment_id", "position",
    "postings", "request_id", "seq", "verdict", "hit", "metadata", "limit", "currency", "card",
)  # fmt: skip


def every_table() -> list[AnyTable]:
    found = {
        id(value): value
        for module in pkgutil.iter_modules(tables.__path__)
        for value in vars(importlib.import_module(f"tables.{module.name}")).values()
        if isinstance(value, Table)
    }
    return sorted(found.values(), key=lambda table: table.name)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=20,
)
nearly = st.builds(
    lambda tag, fields: json.dumps({"type": tag, **fields}).encode(),
    st.sampled_from(TAGS),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=12),
)
"""JSON that looks like a message of the system."""
packed = values.filter(lambda value: not _too_large(value)).map(msgspec.msgpack.encode)


def _too_large(value: Any) -> bool:
    if isinstance(value, int):
        return not -(2**63) <= value < 2**64
    if isinstance(value, dict):
        return any(map(_too_large, value.values()))
    return isinstance(value, list) and any(map(_too_large, value))


@pytest.mark.parametrize("topic", topics.ALL, ids=lambda topic: topic.name)
@given(
    data=st.none() | st.binary(max_size=200) | nearly | values.map(lambda value: json.dumps(value).encode())
)
def test_a_record_is_a_message_of_its_topic_or_undecodable(topic: AnyTopic, data: bytes | None) -> None:
    try:
        message = topic.decode(data)
    except Undecodable as error:
        assert str(error)
    else:
        assert topic.decode(topic.encode(message)) == message


@pytest.mark.parametrize("depth", [10, 1_000, 100_000])
@pytest.mark.parametrize("topic", topics.ALL, ids=lambda topic: topic.name)
def test_a_deep_record_is_undecodable(topic: AnyTopic, depth: int) -> None:
    with pytest.raises(Undecodable):
        topic.decode(b'{"type":"tick/1","x":' + b"[" * depth)


@pytest.mark.parametrize("table", every_table(), ids=lambda table: table.name)
@given(data=st.binary(max_size=200) | packed.map(lambda data: b"\x01" + data))
def test_a_row_is_of_its_table_or_broken(table: AnyTable, data: bytes) -> None:
    try:
        row = table.decode(data)
    except (BrokenRow, UnknownRowVersion) as error:
        assert table.name in str(error)
    else:
        written = table.encode(row)  # a row of an older version is written as one of today
        assert table.encode(table.decode(written)) == written


@given(data=st.binary(max_size=100) | packed)
def test_a_progress_record_is_one_or_a_value_error(data: bytes) -> None:
    try:
        progress = decode_progress(data)
    except ValueError as error:
        assert str(error)
    else:
        assert progress.version == PROGRESS_VERSION


def test_all_topics_and_tables_are_looked_at() -> None:
    assert len(every_table()) >= 18 and len(TAGS) >= 30
