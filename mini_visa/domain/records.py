"""What a decision remembers: one account's rows, as the decision sees them. The authorization service
keeps them in its tables; `MemoryRecords` keeps them in dicts.
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
    """Event time of the first answer (or of the cancellation): the window counts from here."""
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


class MemoryRecords:
    """`Records` in dicts, for tests and for replays of one account."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}
        self.requests: dict[tuple[str, str, str], StoredRequest] = {}
        self.holds: set[tuple[str, int, str]] = set()
        self.wakes: set[tuple[int, str]] = set()

    def account(self, account: str) -> Account | None:
        return self.accounts.get(account)

    def put_account(self, account: Account) -> None:
        self.accounts[account.account_id] = account

    def payment(self, payment_id: str) -> Payment | None:
        return self.payments.get(payment_id)

    def put_payment(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment

    def request(
        self, account: str, client: str, request_id: str, at: int, window_ms: int
    ) -> StoredRequest | None:
        row = self.requests.get((account, client, request_id))
        return row if row is not None and at < row.at + window_ms else None

    def put_request(self, account: str, client: str, request_id: str, row: StoredRequest) -> None:
        self.requests[account, client, request_id] = row

    def open_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        self.holds.add((account, expires_at, payment_id))

    def close_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        self.holds.remove((account, expires_at, payment_id))

    def due_holds(self, account: str, at: int, limit: int | None) -> tuple[list[str], int]:
        open_holds = sorted(hold for hold in self.holds if hold[0] == account)
        due = [hold for hold in open_holds if hold[1] <= at][:limit]
        rest = open_holds[len(due) :]
        return [payment_id for _, _, payment_id in due], rest[0][1] if rest else 0

    def wake(self, account: str, former: int, next_expiry: int) -> None:
        self.wakes.discard((former, account))
        if next_expiry:
            self.wakes.add((next_expiry, account))
