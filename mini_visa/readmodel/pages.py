"""Lists a page at a time: what may be asked for, and the cursor that says where the next page begins.

A cursor names the last row of a page, not a count of rows: pages stay right while rows are added, and the
thousandth page costs what the first one costs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from decimal import Decimal
from typing import Any, Final, Generic, TypeVar

import msgspec

from mini_visa.domain.payment import PaymentStatus

T = TypeVar("T")

PAGE_MAX: Final = 1_000
CURSOR_MAX: Final = 1_024


class InvalidCursor(ValueError):
    """Not a cursor that this list gave, or one of another list or other filters."""


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    items: list[T]
    next_cursor: str | None
    """None: this is the last page."""


class PaymentFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which payments a list shows: those that match all that is not None."""

    account: str | None = None
    merchant_id: str | None = None
    client: str | None = None
    """Whose key made the payment."""
    status: PaymentStatus | None = None
    from_ms: int | None = None
    """Created at or after this time."""
    to_ms: int | None = None
    """Created before this time."""
    min_amount: Decimal | None = None
    """At least this much was asked for, in units of the payment's currency: Decimal("10.00")."""
    max_amount: Decimal | None = None
    metadata: dict[str, str] = {}


class Cursors:
    """Cursors of one list with one set of filters: a cursor does not fit another."""

    def __init__(self, *meaning: Any) -> None:
        digest = hashlib.sha256(msgspec.json.encode([str(part) for part in meaning])).digest()
        self._mark = base64.urlsafe_b64encode(digest[:6]).decode()

    def write(self, *last: int | str) -> str:
        """The cursor of a page whose last row has these sort keys."""
        return base64.urlsafe_b64encode(msgspec.json.encode([self._mark, *last])).decode().rstrip("=")

    def read(self, cursor: str, *types: type) -> list[Any]:
        """The sort keys that `cursor` holds. Raises `InvalidCursor`."""
        try:
            if len(cursor) > CURSOR_MAX:
                raise ValueError
            data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            mark, *last = msgspec.json.decode(data, type=list[int | str])
            if mark != self._mark or [type(value) for value in last] != list(types):
                raise ValueError
            if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in last):
                raise ValueError
        except (ValueError, binascii.Error, UnicodeEncodeError):
            raise InvalidCursor(
                "not a cursor of this list with these filters: leave it out to begin anew"
            ) from None
        return last


def page_limit(limit: int) -> int:
    """Raises ValueError unless 1 <= limit <= PAGE_MAX."""
    if not 1 <= limit <= PAGE_MAX:
        raise ValueError(f"limit must be from 1 to {PAGE_MAX}")
    return limit
