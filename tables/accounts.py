"""What authorization remembers: accounts, payments, open holds, recent requests.

accounts: account -> the account's core. Small: it is rewritten by every command.
payments: payment id (it begins with the account) -> the payment.
holds: "account/expires_at/payment id" -> an open hold, found by its account in the order of expiry.
wakes: "next_expiry/account" -> an account with open holds, found by ticks in the order of expiry. One row
an account, not one a hold: it changes when the account's earliest hold does.
requests: "day/account/client/request id" -> a request and its stored answer, without what the payment's row
says. `day` is that of the first answer in event time, so old requests are forgotten in key order, without an
index.
requests-forgotten: one row, `BOOKMARK` -> where forgetting goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mini_visa.domain.answers import Outcome
from mini_visa.domain.payment import (
    Account,
    Capture,
    Chargeback,
    Payment,
    PaymentStatus,
    Refund,
)
from mini_visa.domain.records import StoredRequest
from mini_visa.domain.terms import DAY_MS
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import AnyTable, TableView, after

FORGOTTEN_PER_TICK_MAX: Final = 5_000
"""More than arrive in a partition between two ticks, so that forgetting keeps up."""


NOT_KEPT: Final = -1
"""In rows that were written without it: what the payment says now is told then."""


class Standing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An outcome that shows a payment: what its payment's row does not say, or will say otherwise later."""

    http_status: int
    request_id: str
    code: str
    payment_id: str
    status: PaymentStatus
    response_code: str
    authorized: int
    captured: int
    released: int
    reversed: int
    cleared: int
    refunded: int
    refund_reserved: int
    charged_back: int
    hold_ended: bool
    expired: bool
    captures: tuple[Capture, ...]
    refunds: tuple[Refund, ...]
    chargebacks: tuple[Chargeback, ...]
    forced: bool
    reason: str
    interchange_returned: int = NOT_KEPT
    scheme_fee_returned: int = NOT_KEPT

    def outcome(self, payment: Payment) -> Outcome:
        """The outcome as it was stored, from its payment's row as it is now."""
        assert payment.payment_id == self.payment_id
        then = replace(
            payment,
            status=self.status,
            response_code=self.response_code,
            authorized=self.authorized,
            captured=self.captured,
            released=self.released,
            reversed=self.reversed,
            cleared=self.cleared,
            refunded=self.refunded,
            refund_reserved=self.refund_reserved,
            charged_back=self.charged_back,
            hold_ended=self.hold_ended,
            expired=self.expired,
            captures=self.captures,
            refunds=self.refunds,
            chargebacks=self.chargebacks,
            forced=self.forced,
            reason=self.reason,
        )
        if self.interchange_returned != NOT_KEPT:
            then = replace(
                then,
                interchange_returned=self.interchange_returned,
                scheme_fee_returned=self.scheme_fee_returned,
            )
        return Outcome(
            status=self.http_status, request_id=self.request_id, response_code=self.code, payment=then
        )


def _standing(outcome: Outcome) -> Standing | None:
    """None for an outcome that shows no payment, or something beside it."""
    payment = outcome.payment
    if payment is None or outcome.refusal is not None or outcome.account is not None:
        return None
    return Standing(
        outcome.status,
        outcome.request_id,
        outcome.response_code,
        payment.payment_id,
        payment.status,
        payment.response_code,
        payment.authorized,
        payment.captured,
        payment.released,
        payment.reversed,
        payment.cleared,
        payment.refunded,
        payment.refund_reserved,
        payment.charged_back,
        payment.hold_ended,
        payment.expired,
        payment.captures,
        payment.refunds,
        payment.chargebacks,
        payment.forced,
        payment.reason,
        payment.interchange_returned,
        payment.scheme_fee_returned,
    )


class RequestRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `StoredRequest`, without the payment in its outcome: that was half of all that was written."""

    at: int
    operation: str
    fingerprint: str
    answered: tuple[str, ...]
    given_up: tuple[str, ...]
    outcome: Outcome | None
    """As it is, where there is no `standing`."""
    standing: Standing | None


class Bookmark(msgspec.Struct, frozen=True, array_like=True):
    """Requests up to this key are gone: no need to wade through their tombstones."""

    key: str


_first: msgspec.msgpack.Decoder[StoredRequest] = msgspec.msgpack.Decoder(StoredRequest)


def _first_version(data: bytes) -> RequestRow:
    """A row that has the whole payment in its outcome: it stays there."""
    row = _first.decode(data)
    return RequestRow(row.at, row.operation, row.fingerprint, row.answered, row.given_up, row.outcome, None)


ACCOUNTS: Table[Account] = versioned("accounts", Account)
PAYMENTS: Table[Payment] = versioned("payments", Payment)
HOLDS: Table[bool] = versioned("holds", bool)
WAKES: Table[bool] = versioned("wakes", bool)
REQUESTS: Table[RequestRow] = versioned("requests", RequestRow, version=2, older={1: _first_version})
FORGOTTEN: Table[Bookmark] = versioned("requests-forgotten", Bookmark)

TABLES: Final[tuple[AnyTable, ...]] = (ACCOUNTS, PAYMENTS, HOLDS, WAKES, REQUESTS, FORGOTTEN)

BOOKMARK: Final = b"bookmark"


@lru_cache(maxsize=64)
def _days(last: int, first: int) -> tuple[bytes, ...]:
    """What the keys of these days of requests begin with, the last day first."""
    return tuple(b"%06d/" % day for day in range(last, first - 1, -1))


class AccountRecords:
    """`Records` on a partition's tables."""

    __slots__ = ("_tables",)

    def __init__(self, tables: Mapping[AnyTable, TableView[Any]]) -> None:
        self._tables = tables

    def account(self, account: str) -> Account | None:
        return self._tables[ACCOUNTS].get(account)  # type: ignore[no-any-return]

    def put_account(self, account: Account) -> None:
        self._tables[ACCOUNTS][account.account_id] = account

    def payment(self, payment_id: str) -> Payment | None:
        return self._tables[PAYMENTS].get(payment_id)  # type: ignore[no-any-return]

    def put_payment(self, payment: Payment) -> None:
        self._tables[PAYMENTS][payment.payment_id] = payment

    def request(
        self, account: str, client: str, request_id: str, at: int, window_ms: int
    ) -> StoredRequest | None:
        get = self._tables[REQUESTS].get
        name = f"{account}/{client}/{request_id}".encode()
        for day in _days(at // DAY_MS, (at - window_ms) // DAY_MS):
            row: RequestRow | None = get(day + name)
            if row is not None:
                return self._stored(row) if at < row.at + window_ms else None
        return None

    def _stored(self, row: RequestRow) -> StoredRequest:
        outcome, standing = row.outcome, row.standing
        if standing is not None:
            payment = self.payment(standing.payment_id)
            assert payment is not None, f"a request without its payment: {standing.payment_id}"
            outcome = standing.outcome(payment)
        return StoredRequest(
            at=row.at,
            operation=row.operation,
            fingerprint=row.fingerprint,
            outcome=outcome,
            answered=row.answered,
            given_up=row.given_up,
        )

    def put_request(self, account: str, client: str, request_id: str, row: StoredRequest) -> None:
        day = row.at // DAY_MS
        outcome = row.outcome
        standing = None if outcome is None else _standing(outcome)
        if standing is not None:
            outcome = None
        self._tables[REQUESTS][_days(day, day)[0] + f"{account}/{client}/{request_id}".encode()] = RequestRow(
            row.at, row.operation, row.fingerprint, row.answered, row.given_up, outcome, standing
        )

    def open_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        self._tables[HOLDS][f"{account}/{expires_at:015d}/{payment_id}"] = True

    def close_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        del self._tables[HOLDS][f"{account}/{expires_at:015d}/{payment_id}"]

    def due_holds(self, account: str, at: int, limit: int | None) -> tuple[list[str], int]:
        due: list[str] = []
        start = f"{account}/"
        for key, _ in self._tables[HOLDS].range(start, after(start)):
            _, expires_at, payment_id = key.split("/")
            if int(expires_at) > at or len(due) == limit:
                return due, int(expires_at)
            due.append(payment_id)
        return due, 0

    def wake(self, account: str, former: int, next_expiry: int) -> None:
        wakes = self._tables[WAKES]
        if former:
            del wakes[f"{former:015d}/{account}"]
        if next_expiry:
            wakes[f"{next_expiry:015d}/{account}"] = True

    # -- for ticks -------------------------------------------------------------------------------

    def due_accounts(self, at: int, limit: int) -> Iterator[str]:
        """Accounts that may have holds to expire at `at` (ms), the longest due first."""
        for key, _ in islice(self._tables[WAKES].range("", f"{at + 1:015d}"), limit):
            yield key.partition("/")[2]

    def forget_requests(self, at: int, window_ms: int) -> None:
        """Forget requests of days that are wholly out of the window, `FORGOTTEN_PER_TICK_MAX` at most."""
        requests, forgotten = self._tables[REQUESTS], self._tables[FORGOTTEN]
        bookmark: Bookmark | None = forgotten.get(BOOKMARK)
        start, end = bookmark.key if bookmark else "", f"{(at - window_ms) // DAY_MS:06d}/"
        last = ""
        for key, _ in islice(requests.range(start, end), FORGOTTEN_PER_TICK_MAX):
            del requests[key]
            last = key
        if last:
            forgotten[BOOKMARK] = Bookmark(last)
