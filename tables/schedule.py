"""A schedule: names, by the time at which they must be looked at. Found in the order of time, by ticks.

Rows are "time/name" -> 0, and `_BOOKMARK` -> up to when everything was taken: without it each tick would wade
through the tombstones of all that was due before.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView

_BOOKMARK: Final = b"~"


def schedule_table(name: str) -> Table[int]:
    return versioned(name, int)


class Schedule:
    """A partition's schedule, on its rows."""

    __slots__ = ("_rows",)

    def __init__(self, rows: TableView[int]) -> None:
        self._rows = rows

    def add(self, at: int, name: str) -> None:
        """To be looked at from `at` (ms) on, which is later than any time that was taken already."""
        assert at > self._rows.get(_BOOKMARK, -1), "scheduled for a time that is over"
        self._rows[f"{at:015d}/{name}"] = 0

    def remove(self, at: int, name: str) -> None:
        del self._rows[f"{at:015d}/{name}"]

    def take(self, now: int, limit: int) -> list[str]:
        """The names that are due at `now`, the longest due first, at most `limit`; they are removed."""
        start = max(0, self._rows.get(_BOOKMARK, 0))
        due = [key for key, _ in islice(self._rows.range(f"{start:015d}", f"{now + 1:015d}"), limit)]
        for key in due:
            del self._rows[key]
        self._rows[_BOOKMARK] = now if len(due) < limit else int(due[-1].partition("/")[0]) - 1
        return [key.partition("/")[2] for key in due]
