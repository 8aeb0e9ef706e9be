"""Accounts and payments, reckoned from their events by the rules of docs/domain.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from audit.findings import Findings

Event = dict[str, Any]
Postings = dict[str, int]

STATUS_CODES: Final = {"closed": "14", "lost": "41", "stolen": "43", "blocked": "62"}

AFTER_CAPTURE: Final = {
    kind: kind
    for kind in (
        "capture_cleared", "capture_rejected", "payment_refunded", "chargeback_opened",
        "chargeback_represented", "chargeback_accepted",
    )
}  # fmt: skip
NEXT: Final[dict[tuple[str, str], set[str]]] = {
    ("", "payment_authorized"): {"authorized", "partially_authorized"},
    ("", "payment_captured"): {"captured"},
    ("", "payment_declined"): {"declined"},
    ("", "payment_unknown_card"): {"declined", "reversed"},
    ("", "payment_reversed"): {"reversed"},
    ("authorized", "payment_incremented"): {"authorized"},
    ("authorized", "payment_captured"): {"partially_captured", "captured"},
    ("authorized", "payment_reversed"): {"authorized", "reversed"},
    ("authorized", "hold_expired"): {"expired"},
    ("partially_authorized", "payment_incremented"): {"partially_authorized"},
    ("partially_authorized", "payment_captured"): {"partially_captured", "captured"},
    ("partially_authorized", "payment_reversed"): {"partially_authorized", "reversed"},
    ("partially_authorized", "hold_expired"): {"expired"},
    ("declined", "payment_reversed"): {"reversed"},
    ("declined", "payment_unknown_card"): {"reversed"},
    ("reversed", "payment_reversed"): {"reversed"},
    ("expired", "payment_captured"): {"partially_captured", "captured"},
    ("expired", "payment_reversed"): {"reversed"},
    ("partially_captured", "payment_incremented"): {"partially_captured"},
    ("partially_captured", "payment_captured"): {"partially_captured", "captured"},
    ("partially_captured", "payment_reversed"): {"partially_captured", "captured", "reversed"},
    ("partially_captured", "hold_expired"): {"partially_captured"},
    ("captured", "payment_reversed"): {"captured"},
    **{(status, kind): {status} for status in ("partially_captured", "captured") for kind in AFTER_CAPTURE},
}
"""(status before, event) -> statuses after; "": there was no payment."""

SUMS: Final = {
    "authorized": "authorized", "captured": "captured", "released": "released", "reversed": "reversed",
    "cleared": "cleared", "refunded": "refunded", "reserved": "refund_reserved",
    "charged_back": "charged_back",
}  # fmt: skip
"""Here -> in an event's payment."""

TRAVEL: Final = {*range(3351, 4000), 4411, 7011, 7512, 7513, 7519}
TIPPED: Final = {4121, 5812, 5813, 5814, 7230}


def share(amount: int, basis_points: int) -> int:
    """Rounded half up."""
    return (2 * amount * basis_points + 10_000) // 20_000


def tolerance(mcc: str, whole: int) -> int:
    code = int(mcc) if mcc.isdigit() else 0
    return share(whole, 1_500) if code in TRAVEL else share(whole, 2_000) if code in TIPPED else 0


@dataclass(slots=True)
class Payment:
    status: str = ""
    authorized: int = 0
    captured: int = 0
    released: int = 0
    reversed: int = 0
    cleared: int = 0
    refunded: int = 0
    reserved: int = 0
    charged_back: int = 0
    ended: bool = False
    """No hold any more: captured for good, reversed, or expired."""
    expired: bool = False
    expires_at: int = 0
    account: str = ""
    currency: str = ""
    parts: dict[int, list[Any]] = field(default_factory=dict)
    """Captures: number -> [amount, state]"""
    fees: tuple[int, int] = (0, 0)
    """Interchange and scheme fee of what has cleared."""
    returned: tuple[int, int] = (0, 0)
    """Of those, what went back to the merchant with refunds."""
    shown: int = 0
    """Hash of the payment as its last event shows it."""

    @property
    def held(self) -> int:
        return 0 if self.ended else max(0, self.authorized - self.captured - self.released)

    def post_reserved(self) -> int:
        posts = max(0, min(self.reserved, self.cleared - self.refunded - self.charged_back))
        self.refunded += posts
        self.reserved -= posts
        return posts


@dataclass(slots=True)
class Account:
    currency: str = ""
    limit: int = 0
    status: str = "active"
    held: int = 0
    posted: int = 0
    seq: int = 0
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.held


def name_of(event: Event) -> str:
    return str(event["type"]).partition("/")[0]


class Book:
    """The accounts and payments of one partition of payment.events."""

    def __init__(self, findings: Findings, usual_fees: bool) -> None:
        """`usual_fees`: 1.50 % and 10 for interchange, 0.13 % for the scheme; False: any."""
        self.findings = findings
        self.usual_fees = usual_fees
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}

    def feed(self, event: Event, where: str) -> Postings:
        """Apply one event, hold it against the rules, and return what it must post."""
        kind = name_of(event)
        if kind == "payment_unknown_card":
            self._lifecycle(event, kind, where)
            return {}
        if "account" not in event:
            return {}
        account = self.accounts.setdefault(event["account"]["account_id"], Account())
        apply = getattr(self, f"_{kind}")
        sums = self.findings["account-sums"]
        available = account.available
        account.seq += 1
        if event["seq"] != account.seq:
            sums.fails(f"{where}: event {event['seq']} of its account follows {account.seq - 1}")
            account.seq = event["seq"]
        if event.get("available_before", available) != available and kind != "account_opened":
            sums.fails(f"{where}: available before {event.get('available_before')}, reckoned {available}")
        payment = None
        if "payment" in event:
            payment = self._lifecycle(event, kind, where)
            payment.account, payment.currency = event["payment"]["account"], event["account"]["currency"]
            if not payment.expires_at:
                payment.expires_at = event["payment"].get("expires_at", 0)
        postings = apply(event, account, payment, where)
        shown = event["account"]
        account.shown, account.status = shown, shown.get("status", "active")
        expected = {"held": account.held, "posted": account.posted, "limit": account.limit}
        actual = {name: shown.get(name, 0) for name in expected}
        sums.expect(actual == expected, f"{where}: the event says {actual}, reckoned {expected}")
        if account.held < 0:
            sums.fails(f"{where}: {account.held} is held")
        if actual != expected:
            account.held, account.posted, account.limit = actual["held"], actual["posted"], actual["limit"]
        if payment is not None:
            self._payment_sums(event, payment, where)
        return {name: amount for name, amount in postings.items() if amount}

    def _lifecycle(self, event: Event, kind: str, where: str) -> Payment:
        shown = event["payment"]
        payment = self.payments.get(shown["payment_id"])
        if payment is None:
            payment = self.payments[shown["payment_id"]] = Payment()
        allowed = NEXT.get((payment.status, kind), set())
        self.findings["lifecycle"].expect(
            shown["status"] in allowed,
            f"{where}: {kind} from {payment.status or 'nothing'} to {shown['status']}",
        )
        payment.status = shown["status"]
        payment.shown = fingerprint(shown)
        return payment

    def _payment_sums(self, event: Event, payment: Payment, where: str) -> None:
        shown = event["payment"]
        expected = {theirs: getattr(payment, ours) for ours, theirs in SUMS.items()}
        actual = {theirs: shown.get(theirs, 0) for theirs in expected}
        check = self.findings["payment-sums"]
        check.expect(
            actual == expected,
            f"{where}: "
            + ", ".join(
                f"{n} {actual[n]}, reckoned {expected[n]}" for n in actual if actual[n] != expected[n]
            ),
        )
        if payment.refunded + payment.reserved + payment.charged_back > payment.captured:
            check.fails(f"{where}: more was given back than was captured")
        if actual != expected:
            for ours, theirs in SUMS.items():
                setattr(payment, ours, actual[theirs])

    def _fees_returned(self, event: Event, payment: Payment, posts: int, where: str) -> tuple[int, int]:
        """Fees that go back with refunds: none, or in proportion to what is refunded of what has cleared."""
        found = event.get("interchange_returned", 0), event.get("scheme_fee_returned", 0)
        if found == (0, 0):
            return found
        due = [fee * payment.refunded // max(1, payment.cleared) for fee in payment.fees]
        expected = tuple(max(0, a - b) for a, b in zip(due, payment.returned, strict=True))
        self.findings["decisions"].expect(
            found == expected and posts > 0, f"{where}: fees of {found} returned, reckoned {expected}"
        )
        payment.returned = payment.returned[0] + found[0], payment.returned[1] + found[1]
        return found

    # -- the account itself

    def _account_opened(self, event: Event, account: Account, payment: None, where: str) -> Postings:
        """One that comes from another system may owe something already."""
        account.currency, account.limit = event["account"]["currency"], event["account"]["limit"]
        account.posted = posted = event["account"].get("posted", 0)
        return {
            f"receivable:cardholder:{event['account']['account_id']}": posted,
            "opening:balances": -posted,
        }

    def _account_changed(self, event: Event, account: Account, payment: None, where: str) -> Postings:
        account.limit = event["account"]["limit"]
        return {}

    def _account_paid(self, event: Event, account: Account, payment: None, where: str) -> Postings:
        account.posted -= event["amount"]
        return {
            "settlement:bank": event["amount"],
            f"receivable:cardholder:{event['account']['account_id']}": -event["amount"],
        }

    # -- holds

    def _payment_authorized(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount = self._approved(event, account, where)
        payment.authorized = amount
        payment.ended = amount == 0
        account.held += amount
        return _hold(account, payment, amount)

    def _approved(self, event: Event, account: Account, where: str) -> int:
        """The amount that the first event of a payment approves."""
        amount: int = event.get("amount", 0)
        asked, code = event["payment"]["amount"], event.get("response_code", "00")
        right = amount == asked if code == "00" else 0 < amount == account.available < asked
        verdict = event["payment"].get("verdict", {}).get("response_code", "")
        self.findings["decisions"].expect(
            right
            and (amount == 0 or amount <= account.available)
            and not verdict
            and account.status == "active",
            f"{where}: approved {amount} of {asked} with code {code}; {account.available} available, "
            f"account {account.status}, risk says {verdict or 'nothing'}",
        )
        return amount

    def _payment_declined(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        shown, code = event["payment"], event["response_code"]
        verdict = shown.get("verdict", {}).get("response_code", "")
        if account.status != "active":
            right = code == STATUS_CODES[account.status]
        elif code == "51":
            right = not verdict and shown["amount"] > account.available
        else:
            right = code in ("54", "05", "57") or (code == verdict and code in ("59", "61", "65"))
        self.findings["decisions"].expect(
            right,
            f"{where}: {shown['amount']} declined with {code}; {account.available} available, "
            f"account {account.status}, risk says {verdict or 'nothing'}",
        )
        payment.ended = True
        return {}

    def _payment_incremented(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount, code = event.get("amount", 0), event.get("response_code", "00")
        approved = code == "00"
        right = amount <= account.available and account.status == "active" if approved else amount == 0
        self.findings["decisions"].expect(
            right and payment.held > 0, f"{where}: incremented by {amount} with {code}, held {payment.held}"
        )
        payment.authorized += amount
        account.held += amount
        return _hold(account, payment, amount)

    def _payment_reversed(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount, held = event.get("amount", 0), payment.held
        by_time_out = event.get("response_code", "00") == "68"
        right = amount == held if by_time_out else 0 < amount <= held
        self.findings["decisions"].expect(right, f"{where}: {amount} of {held} reversed")
        payment.released += amount
        payment.reversed += amount
        payment.ended = payment.ended or amount == held
        account.held -= amount
        return _hold(account, payment, -amount)

    def _hold_expired(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount = event.get("amount", 0)
        right = amount == payment.held and event["at"] >= payment.expires_at
        self.findings["decisions"].expect(
            right, f"{where}: {amount} of {payment.held} expired at {event['at']}"
        )
        payment.released += amount
        payment.ended = payment.expired = True
        account.held -= amount
        return _hold(account, payment, -amount)

    # -- captures and what follows

    def _payment_captured(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        if not payment.authorized and not payment.ended:
            return self._sold(event, account, payment, where)
        amount, used, freed = event["amount"], event.get("hold_used", 0), event.get("hold_freed", 0)
        held, whole = payment.held, payment.authorized - payment.reversed
        due = whole - payment.captured if payment.expired else held
        most = due + tolerance(event["payment"].get("merchant", {}).get("mcc", ""), whole)
        forced = event.get("forced", False)
        self.findings["decisions"].expect(
            0 < amount <= most and used == min(amount, held) and freed in (0, held - used)
            and forced == payment.expired and event["n"] not in payment.parts,
            f"{where}: captured {amount} of {most}, used {used} and freed {freed} of {held} held",
        )  # fmt: skip
        payment.captured += amount
        payment.released += freed
        payment.parts[event["n"]] = [amount, "submitted"]
        payment.ended = payment.ended or event["payment"]["status"] == "captured"
        if not payment.ended and amount >= due:
            self.findings["decisions"].fails(f"{where}: all was captured and the hold is still open")
        account.held -= used + freed
        account.posted += amount
        postings = _hold(account, payment, -(used + freed))
        postings[f"receivable:cardholder:{payment.account}"] = amount
        postings["clearing:suspense"] = -amount
        return postings

    def _sold(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        """Authorized and captured in one: it never was on hold."""
        amount = self._approved(event, account, where)
        odd = {name: event[name] for name in ("hold_used", "hold_freed", "forced") if event.get(name)}
        self.findings["decisions"].expect(
            amount > 0 and event["n"] == 1 and not odd,
            f"{where}: {amount} captured at once, as capture {event['n']}, with {odd}",
        )
        payment.authorized = payment.captured = amount
        payment.parts[event["n"]] = [amount, "submitted"]
        payment.ended = True
        account.posted += amount
        return {f"receivable:cardholder:{payment.account}": amount, "clearing:suspense": -amount}

    def _capture_cleared(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount, refunds = event["amount"], event.get("refund_posted", 0)
        interchange, scheme = event["interchange"], event["scheme_fee"]
        usual = share(amount, 150) + 10, share(amount, 13)
        part = payment.parts.get(event["n"], [0, "unknown"])
        payment.cleared += amount
        posts = payment.post_reserved()
        self.findings["decisions"].expect(
            part == [amount, "submitted"] and refunds == posts
            and (not self.usual_fees or usual == (interchange, scheme)),
            f"{where}: capture {event['n']} of {part} cleared with {amount}, fees {interchange} and "
            f"{scheme}, refunds of {refunds}",
        )  # fmt: skip
        part[1] = "cleared"
        account.posted -= refunds
        payment.fees = payment.fees[0] + interchange, payment.fees[1] + scheme
        back = self._fees_returned(event, payment, posts, where)
        interchange, scheme = interchange - back[0], scheme - back[1]
        return {
            "clearing:suspense": amount,
            _payable(event): interchange + scheme - amount + refunds,
            "income:interchange": -interchange,
            "income:scheme": -scheme,
            f"receivable:cardholder:{payment.account}": -refunds,
        }

    def _capture_rejected(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount = event["amount"]
        part = payment.parts.get(event["n"], [0, "unknown"])
        if not payment.ended:
            payment.released += amount
        payment.captured -= amount
        excess = payment.refunded + payment.reserved + payment.charged_back - payment.captured
        cancelled = event.get("refund_cancelled", 0)
        self.findings["decisions"].expect(
            part == [amount, "submitted"] and cancelled == max(0, excess),
            f"{where}: capture {event['n']} of {part} rejected with {amount}, {cancelled} cancelled",
        )
        part[1] = "rejected"
        payment.reserved -= cancelled
        account.posted -= amount
        return {"clearing:suspense": amount, f"receivable:cardholder:{payment.account}": -amount}

    def _payment_refunded(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount, posted = event["amount"], event.get("posted", 0)
        left = payment.captured - payment.refunded - payment.reserved - payment.charged_back
        payment.reserved += amount
        posts = payment.post_reserved()
        self.findings["decisions"].expect(
            0 < amount <= left and posted == posts, f"{where}: {amount} of {left} refunded, {posted} at once"
        )
        account.posted -= posted
        back = self._fees_returned(event, payment, posts, where)
        return _give_back(event, payment, posted, back)

    def _chargeback_opened(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        amount, left = event["amount"], payment.cleared - payment.refunded - payment.charged_back
        self.findings["decisions"].expect(0 < amount <= left, f"{where}: {amount} of {left} charged back")
        payment.charged_back += amount
        account.posted -= amount
        return {_payable(event): amount, f"receivable:cardholder:{payment.account}": -amount}

    def _chargeback_represented(
        self, event: Event, account: Account, payment: Payment, where: str
    ) -> Postings:
        amount, posted = event["amount"], event.get("refund_posted", 0)
        payment.charged_back -= amount
        posts = payment.post_reserved()
        self.findings["decisions"].expect(
            payment.charged_back >= 0 and posted == posts, f"{where}: {amount} represented, {posted} refunded"
        )
        account.posted += amount - posted
        back = self._fees_returned(event, payment, posts, where)
        return _give_back(event, payment, posted - amount, back)

    def _chargeback_accepted(self, event: Event, account: Account, payment: Payment, where: str) -> Postings:
        return {}


def fingerprint(value: Any) -> int:
    """Of a value as JSON or MessagePack gives it; the order of names does not matter."""
    if isinstance(value, dict):
        return hash(frozenset((name, fingerprint(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return hash(tuple(fingerprint(inner) for inner in value))
    return hash((type(value).__name__, value))


def _hold(account: Account, payment: Payment, amount: int) -> Postings:
    return {f"holds:cardholder:{payment.account}": amount, "holds:contra": -amount}


def _give_back(event: Event, payment: Payment, amount: int, fees: tuple[int, int]) -> Postings:
    return {
        _payable(event): amount - sum(fees),
        "income:interchange": fees[0],
        "income:scheme": fees[1],
        f"receivable:cardholder:{payment.account}": -amount,
    }


def _payable(event: Event) -> str:
    return f"payable:merchant:{event['payment'].get('merchant', {}).get('id') or 'unnamed'}"
