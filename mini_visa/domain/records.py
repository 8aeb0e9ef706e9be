"""What a decision remembers: one account's rows, as the decision sees them. The authorization service
keeps them in its tables, tests in dicts.
"""

from __future__ import annotations

from typing import Final, Protocol

from mini_visa.domain.answers import Outcome
from mini_visa.domain.payment import Account, Data, Payment

ATTEMPTS_MAX: Final = 16
"""Attempts remembered of one request, each way."""


class StoredRequest(Data, frozen=True, kw_only=True):
    """A request that was answered, or cancelled before it came."""

    at: int
    """Event time of the first answer, or of the cancellation until the request comes: the window counts from
    here."""
    operation: str
    """What was asked: the same request id for another operation is a conflict."""
    fingerprint: str = ""
    outcome: Outcome | None = None
    """None: cancelled before it came."""
    answered: tuple[str, ...] = ()
    """Attempts that were given this answer, and whose gateway has not given up on it."""
    given_up: tuple[str, ...] = ()
    """Attempts whose gateway timed out."""


class Records(Protocol):
    """Unit of work over the rows of accounts. Reads see what was put before."""

    def account(self, account: str) -> Account | None: ...

    def put_account(self, account: Account) -> None: ...

    def payment(self, payment_id: str) -> Payment | None: ...

    def put_payment(self, payment: Payment) -> None: ...

    def request(
        self, account: str, client: str, request_id: str, at: int, window_ms: int
    ) -> StoredRequest | None:
        """The request if its window is still open: `at < row.at + window_ms`."""
        ...

    def put_request(self, account: str, client: str, request_id: str, row: StoredRequest) -> None: ...

    def open_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        """The payment now holds money until `expires_at`."""
        ...

    def close_hold(self, account: str, expires_at: int, payment_id: str) -> None: ...

    def due_holds(self, account: str, at: int, limit: int | None) -> tuple[list[str], int]:
        """Payments of `account` whose open holds have `expires_at <= at`, earliest first, at most
        `limit`; and the `expires_at` of the first open hold after those (0: none)."""
        ...

    def wake(self, account: str, former: int, next_expiry: int) -> None:
        """The account's `next_expiry` changed from `former` (0: none), so that ticks find it."""
        ...
