"""What this gateway remembers of its own answers: bounded, and never needed for correctness of money.

The position of the last answer per account and partition, so that its reads are not older than its
answers; the currency of accounts, so that an amount without one is read with the right decimals.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

V = TypeVar("V")

ACCOUNTS_MAX: Final = 100_000
NOTHING: Final = -1


class _Latest(Generic[V]):
    """The last `size` keys written or read."""

    __slots__ = ("_rows", "_size")

    def __init__(self, size: int) -> None:
        self._rows: OrderedDict[str, V] = OrderedDict()
        self._size = size

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> V | None:
        value = self._rows.get(key)
        if value is not None:
            self._rows.move_to_end(key)
        return value

    def put(self, key: str, value: V) -> None:
        rows = self._rows
        rows[key] = value
        rows.move_to_end(key)
        if len(rows) > self._size:
            rows.popitem(last=False)


class Recent:
    """Of one gateway process."""

    def __init__(self, accounts_max: int = ACCOUNTS_MAX) -> None:
        self._currencies: _Latest[str] = _Latest(accounts_max)
        self._places: _Latest[tuple[int, int]] = _Latest(accounts_max)
        self._positions: dict[int, int] = {}

    def answered(self, account: str, partition: int, position: int) -> None:
        """This gateway told a client what the command at `position` of account.commands led to."""
        if position > self._positions.get(partition, NOTHING):
            self._positions[partition] = position
        known = self._places.get(account)
        if known is None or position > known[1]:
            self._places.put(account, (partition, position))

    def place(self, account: str) -> tuple[int, int] | None:
        """(partition, position) of the last answer about `account`."""
        return self._places.get(account)

    def places(self) -> list[tuple[int, int]]:
        """(partition, position) of the last answer on every partition."""
        return list(self._positions.items())

    def currency(self, account: str) -> str | None:
        return self._currencies.get(account)

    def learn_currency(self, account: str, currency: str) -> None:
        self._currencies.put(account, currency)
