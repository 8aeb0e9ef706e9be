"""What clearing remembers.

presentments: the presentment's key -> one without an outcome, and when it is presented again.
presentments-due: the same by that time.
open-positions: "cycle/merchant/currency" -> what is to be settled. A slash in a merchant's id is
written "%2F", and a percent sign "%25".
open-cycle: one row, `OPEN` -> the cycle that items are counted for now.

A cycle is known by when it begins, so that its length may be set anew.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mini_visa.domain.clearing import Presentment
from mini_visa.domain.settlement import OpenPosition
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView
from tables.schedule import schedule_table


class OpenPresentment(msgspec.Struct, frozen=True, gc=False):
    presentment: Presentment
    due: int
    """When it is presented again, ms."""
    times: int = 1
    """That it was presented."""


class OpenCycle(msgspec.Struct, frozen=True, array_like=True, gc=False):
    begins: int
    """Event time, ms; a whole multiple of the length that was set then."""
    first_item: int
    """Offset in clearing.items where this cycle began on this partition."""
    closing: int = -1
    """When the cycle before it began, whose positions are not all told yet; -1: there is none."""
    closing_first_item: int = 0
    closing_end_item: int = 0
    closing_positions: int = 0
    """Positions of it told so far."""
    closed_at: int = 0


class NumberedCycle(OpenCycle, frozen=True, array_like=True, gc=False):
    """`begins` and `closing` are numbers since 1970, in cycles of the length that was set, and keys of
    positions begin with ten digits of these: what the program first wrote. `take_over` makes one of today
    of it."""


def _first_version(row: bytes) -> OpenCycle:
    """Version 1 was written for both: a number is no time of a day since 1973, as cycles last a second or
    longer."""
    cycle = msgspec.msgpack.decode(row, type=OpenCycle)
    return cycle if cycle.begins >= 10**11 else msgspec.msgpack.decode(row, type=NumberedCycle)


PRESENTMENTS: Table[OpenPresentment] = versioned("presentments", OpenPresentment)
PRESENTMENTS_DUE: Table[int] = schedule_table("presentments-due")
POSITIONS: Table[OpenPosition] = versioned("open-positions", OpenPosition)
CYCLE: Table[OpenCycle] = versioned("open-cycle", OpenCycle, version=2, older={1: _first_version})

OPEN: Final = b"open"


def position_key(cycle: int, merchant_id: str, currency: str) -> str:
    merchant = merchant_id.replace("%", "%25").replace("/", "%2F")
    return f"{cycle:015d}/{merchant}/{currency}"


def take_over(old: NumberedCycle, positions: TableView[OpenPosition], length_ms: int) -> OpenCycle:
    """`old` as it is written now; its positions have their new keys."""
    for number in {old.begins, old.closing} - {-1}:
        for key, position in positions.range(f"{number:010d}/", f"{number:010d}0"):
            positions[position_key(number * length_ms, *merchant_of(key))] = position
            del positions[key]
    return OpenCycle(
        old.begins * length_ms, old.first_item, old.closing * length_ms if old.closing >= 0 else -1,
        old.closing_first_item, old.closing_end_item, old.closing_positions, old.closed_at,
    )  # fmt: skip


def merchant_of(position_key: str) -> tuple[str, str]:
    """(merchant id, currency)"""
    _, merchant, currency = position_key.split("/")
    return merchant.replace("%2F", "/").replace("%25", "%"), currency
