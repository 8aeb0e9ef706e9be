"""Accounts and payments, reckoned from their events by the rules of docs/domain.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final, NamedTuple

import msgspec

from audit.findings import Findings
from audit.rules import DEFAULT_HOLDS, MADE_BY, NEXT, PARTS_MAX, Holds, reason_to_decline, share, tolerance

Event = dict[str, Any]
Command = dict[str, Any]
Lines = dict[str, int]
"""Ledger account -> amount, in the currency of the account."""
Postings = dict[tuple[str, str], int]
"""(ledger account, currency) -> amount: debit > 0."""

SUMS: Final = {
    "authorized": "authorized", "captured": "captured", "released": "released", "reversed": "reversed",
    "cleared": "cleared", "refunded": "refunded", "reserved": "refund_reserved",
    "charged_back": "charged_back", "expires_at": "expires_at",
}  # fmt: skip
"""Here -> in an event's payment."""
FIXED: Final = (
    "account", "client", "request_id", "card", "currency", "amount", "created_at", "merchant", "metadata",
    "verdict", "authorization_code", "expires_at",
)  # fmt: skip
"""What a payment is from its first event to its last."""
NEVER: Final = 1 << 62
PAYABLE: Final = "payable:merchant:"

_canonical: Callable[[Any], bytes] = msgspec.json.Encoder(order="sorted").encode


class Capture(NamedTuple):
    amount: int
    state: str = "submitted"
    interchange: int = 0
    scheme_fee: int = 0


class Refund(NamedTuple):
    amount: int
    posted: int = 0
    cancelled: int = 0

    @property
    def waits(self) -> int:
        return self.amount - self.posted - self.cancelled

    @property
    def state(self) -> str:
        return "reserved" if self.waits else "posted" if self.posted else "cancelled"


class Chargeback(NamedTuple):
    amount: int
    state: str = "open"


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
    client: str = ""
    mcc: str = ""
    fixed: int = 0
    """Hash of what no later event may change."""
    captures: tuple[Capture, ...] = ()
    """The parts are numbered from 1."""
    refunds: tuple[Refund, ...] = ()
    chargebacks: tuple[Chargeback, ...] = ()
    failed: bool = False
    """Its last capture that stood was rejected, and something was still held: that is to be released."""
    returned: tuple[int, int] = (0, 0)
    """Of interchange and scheme fees, what went back to the merchant with refunds."""
    shown: int = 0
    """Hash of the payment as its last event shows it."""

    @property
    def held(self) -> int:
        return 0 if self.ended else max(0, self.authorized - self.captured - self.released)

    @property
    def refundable(self) -> int:
        """Captured and not given back in any way."""
        return self.captured - self.refunded - self.reserved - self.charged_back

    @property
    def parts(self) -> tuple[list[tuple[Any, ...]], ...]:
        """Each with its number, as `_parts_of` reads them from an event."""
        return (
            [(n, *one) for n, one in enumerate(self.captures, 1)],
            [(n, *one, one.state) for n, one in enumerate(self.refunds, 1)],
            [(n, *one) for n, one in enumerate(self.chargebacks, 1)],
        )

    def post_reserved(self) -> int:
        """Reserved refunds post, oldest first, as far as cleared money reaches. Returns how much."""
        posts = rest = max(0, min(self.reserved, self.cleared - self.refunded - self.charged_back))
        self.refunded += posts
        self.reserved -= posts
        refunds = []
        for one in self.refunds:
            part = min(rest, one.waits)
            rest -= part
            refunds.append(one._replace(posted=one.posted + part))
        self.refunds = tuple(refunds)
        return posts

    def cancel_reserved(self) -> int:
        """Reserved refunds that nothing captured covers are cancelled, newest first. Returns how much."""
        cancels = rest = max(0, -self.refundable)
        self.reserved -= cancels
        refunds = []
        for one in reversed(self.refunds):
            part = min(rest, one.waits)
            rest -= part
            refunds.append(one._replace(cancelled=one.cancelled + part))
        self.refunds = tuple(reversed(refunds))
        return cancels


@dataclass(slots=True)
class Account:
    currency: str = ""
    expiry: str = ""
    limit: int = 0
    status: str = "active"
    held: int = 0
    posted: int = 0
    seq: int = 0
    shown: dict[str, Any] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    """Open holds: payment -> when it expires."""
    first_expiry: int = NEVER
    """No open hold expires before."""

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.held


class Turn(NamedTuple):
    """One event, with what it is about as it was before."""

    event: Event
    command: Command
    known: bool
    """False: the command that the event names is not there, or another: a finding of its own."""
    account: Account
    payment: Payment
    where: str

    @property
    def amount(self) -> int:
        return int(self.event.get("amount", 0))

    @property
    def code(self) -> str:
        return str(self.event.get("response_code", "00"))

    @property
    def merchant(self) -> dict[str, str]:
        return dict(self.event["payment"].get("merchant", {}))

    def asked(self, whole: int) -> int:
        """What the command asks for: all of it, where it names no amount."""
        return int(self.command.get("amount", whole))


def name_of(event: Event) -> str:
    return str(event["type"]).partition("/")[0]


class Book:
    """The accounts and payments of one partition of payment.events."""

    def __init__(self, findings: Findings, usual_fees: bool, holds: Holds = DEFAULT_HOLDS) -> None:
        """`usual_fees`: 1.50 % and 10 for interchange, 0.13 % for the scheme; False: any."""
        self.findings = findings
        self.usual_fees = usual_fees
        self.holds = holds
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}

    def feed(self, event: Event, where: str, command: Command | None) -> Postings:
        """Apply one event, hold it against the rules and `command`, which made it, and return what it
        must post."""
        kind = name_of(event)
        if kind == "payment_unknown_card":
            self._unknown_card(event, where)
            return {}
        if "account" not in event:
            return {}
        account = self.accounts.setdefault(event["account"]["account_id"], Account())
        self._follows(event, account, where)
        payment = self._lifecycle(event, kind, where) if "payment" in event else Payment()
        known = kind == "hold_expired" or self._is_of_its_command(event, kind, command, where)
        made_by = command if known and kind != "hold_expired" else None
        turn = Turn(event, made_by or {}, known, account, payment, where)
        self._holds_are_over(turn, kind)
        lines: Lines = getattr(self, f"_{kind}")(turn)
        self._account_sums(turn)
        if "payment" in event:
            self._payment_sums(turn)
            self._hold_of(turn)
            if any(lines.values()) and event["payment"]["currency"] != account.currency:
                self.findings["payment-sums"].fails(
                    f"{where}: {event['payment']['currency']} on an account in {account.currency}"
                )
        return {(name, account.currency): amount for name, amount in lines.items() if amount}

    # -- what is the same for all events

    def _follows(self, event: Event, account: Account, where: str) -> None:
        """An account's events are numbered, and each says what was available before it."""
        sums, available = self.findings["account-sums"], account.available
        account.seq += 1
        if event["seq"] != account.seq:
            sums.fails(f"{where}: event {event['seq']} of its account follows {account.seq - 1}")
            account.seq = event["seq"]
        if "payment" in event and event.get("available_before", 0) != available:
            sums.fails(f"{where}: available before {event.get('available_before', 0)}, reckoned {available}")

    def _lifecycle(self, event: Event, kind: str, where: str) -> Payment:
        shown = event["payment"]
        payment = self.payments.get(shown["payment_id"])
        if payment is None:
            payment = self.payments[shown["payment_id"]] = Payment()
            payment.account, payment.currency = intern(shown["account"]), intern(shown["currency"])
            payment.client, payment.fixed = intern(shown["client"]), _fixed_of(shown)
            payment.mcc = intern(shown.get("merchant", {}).get("mcc", ""))
            payment.expires_at = shown.get("expires_at", 0)
        elif payment.fixed != _fixed_of(shown):
            self.findings["lifecycle"].fails(
                f"{where}: {kind} shows another merchant, card, client, amount or the like than the first "
                f"event of {shown['payment_id']}"
            )
        allowed = NEXT.get((payment.status, kind), set())
        self.findings["lifecycle"].expect(
            shown["status"] in allowed,
            f"{where}: {kind} from {payment.status or 'nothing'} to {shown['status']}",
        )
        payment.status = shown["status"]
        payment.shown = fingerprint(shown)
        return payment

    def _holds_are_over(self, turn: Turn, kind: str) -> None:
        """Whatever happens to an account, holds whose time has come have expired before."""
        account, at = turn.account, turn.event["at"]
        if kind == "hold_expired" or at < account.first_expiry:
            return
        account.first_expiry = min(account.holds.values(), default=NEVER)
        if account.first_expiry <= at:
            self.findings["decisions"].fails(
                f"{turn.where}: {kind} at {at}, and a hold that ended at {account.first_expiry} is open"
            )

    def _is_of_its_command(self, event: Event, kind: str, command: Command | None, where: str) -> bool:
        """A command makes its own kind of event, on the payment and the part that it names."""
        if command is None:
            return False
        names = {"payment_id": event.get("payment", {}).get("payment_id"), "n": event.get("n")}
        others = [name for name, found in names.items() if command.get(name, found) not in ("", found)]
        right = name_of(command) in MADE_BY[kind] and not others
        if not right:
            self.findings["decisions"].fails(
                f"{where}: {kind} of {names} was made by {name_of(command)} of "
                f"{ {name: command.get(name) for name in others} }"
            )
        return right

    def _judge(self, turn: Turn, right: bool, says: str) -> None:
        if turn.known:
            self.findings["decisions"].expect(right, f"{turn.where}: {says}")

    def _account_sums(self, turn: Turn) -> None:
        account, shown = turn.account, turn.event["account"]
        account.shown = shown
        names = ("held", "posted", "limit", "status", "currency", "expiry")
        expected = {name: getattr(account, name) for name in names}
        usual = {"status": "active", "expiry": ""}
        actual = {name: shown.get(name, usual.get(name, 0)) for name in names}
        sums = self.findings["account-sums"]
        sums.expect(actual == expected, f"{turn.where}: the event says {actual}, reckoned {expected}")
        if account.held < 0:
            sums.fails(f"{turn.where}: {account.held} is held")
        for name in names:
            setattr(account, name, actual[name])

    def _payment_sums(self, turn: Turn) -> None:
        payment, shown = turn.payment, turn.event["payment"]
        check = self.findings["payment-sums"]
        expected = {theirs: getattr(payment, ours) for ours, theirs in SUMS.items()}
        actual = {theirs: shown.get(theirs, 0) for theirs in expected}
        expected["held"], actual["held"] = payment.held, _held_in(shown)
        check.expect(
            actual == expected,
            f"{turn.where}: "
            + ", ".join(
                f"{n} {actual[n]}, reckoned {expected[n]}" for n in actual if actual[n] != expected[n]
            ),
        )
        if payment.refundable < 0:
            check.fails(f"{turn.where}: more was given back than was captured")
        parts = _parts_of(shown)
        if parts != payment.parts:
            check.fails(f"{turn.where}: captures, refunds, chargebacks {parts}, reckoned {payment.parts}")
        if max(map(len, parts)) > PARTS_MAX:
            check.fails(f"{turn.where}: more than {PARTS_MAX} captures, refunds or chargebacks")
        if actual != expected:
            for ours, theirs in SUMS.items():
                setattr(payment, ours, actual[theirs])

    def _hold_of(self, turn: Turn) -> None:
        """Remember the hold while it is open."""
        payment_id, account = turn.event["payment"]["payment_id"], turn.account
        if turn.payment.held:
            account.holds[payment_id] = turn.payment.expires_at
            account.first_expiry = min(account.first_expiry, turn.payment.expires_at)
        else:
            account.holds.pop(payment_id, None)

    def _unknown_card(self, event: Event, where: str) -> None:
        """Declined with 14, or taken back before or after: there is no account."""
        self._lifecycle(event, "payment_unknown_card", where)
        shown = event["payment"]
        code = "14" if shown["status"] == "declined" else "68"
        self.findings["decisions"].expect(
            shown["account"] not in self.accounts and shown["response_code"] == code,
            f"{where}: {shown['response_code']} for a card without an account",
        )

    # -- the account itself

    def _account_opened(self, turn: Turn) -> Lines:
        """One that comes from another system may owe something already."""
        account, shown = turn.account, turn.event["account"]
        given = turn.command if turn.known else shown
        account.currency, account.expiry = given["currency"], given.get("expiry", "")
        account.limit, account.status = given["limit"], given.get("status", "active")
        account.posted = posted = given.get("posted", 0)
        return {f"receivable:cardholder:{shown['account_id']}": posted, "opening:balances": -posted}

    def _account_changed(self, turn: Turn) -> Lines:
        account, given = turn.account, turn.command if turn.known else turn.event["account"]
        account.limit = given.get("limit", account.limit)
        account.status = given.get("status", account.status)
        return {}

    def _account_paid(self, turn: Turn) -> Lines:
        amount = turn.amount
        self._judge(turn, 0 < amount == turn.asked(amount), f"{amount} of {turn.asked(amount)} paid")
        turn.account.posted -= amount
        receivable = f"receivable:cardholder:{turn.event['account']['account_id']}"
        return {"settlement:bank": amount, receivable: -amount}

    # -- authorizations and increments

    def _payment_authorized(self, turn: Turn) -> Lines:
        self._authorization(turn)
        payment, amount = turn.payment, turn.amount
        payment.authorized = amount
        payment.ended = amount == 0
        if amount:
            self._lasts(turn)
        turn.account.held += amount
        return _hold(turn, amount)

    def _payment_declined(self, turn: Turn) -> Lines:
        self._authorization(turn)
        turn.payment.ended = True
        return {}

    def _payment_incremented(self, turn: Turn) -> Lines:
        payment, amount = turn.payment, turn.amount
        self._judge(turn, payment.held > 0, f"incremented when {payment.held} was held")
        self._right_answer(turn)
        payment.authorized += amount
        turn.account.held += amount
        return _hold(turn, amount)

    def _authorization(self, turn: Turn) -> None:
        """A new payment has the code of its answer, which is the domain's."""
        shown = turn.event["payment"]
        self._judge(turn, shown["response_code"] == turn.code, f"{shown['response_code']}, not {turn.code}")
        self._right_answer(turn)

    def _right_answer(self, turn: Turn) -> None:
        account, command = turn.account, turn.command
        if not turn.known:
            return
        expected = _answer(account, command, turn.event["at"])
        self._judge(
            turn,
            (turn.code, turn.amount) == expected,
            f"{command['amount']} answered {turn.code} with {turn.amount}, reckoned {expected[0]} with "
            f"{expected[1]}; {account.available} available, account {account.status}, risk says "
            f"{command.get('verdict', {}).get('response_code') or 'nothing'}",
        )

    def _lasts(self, turn: Turn) -> None:
        at, expires_at = turn.event["at"], turn.payment.expires_at
        until = turn.command.get("advice_until") or at + self.holds.of(turn.merchant.get("mcc", ""))
        self._judge(turn, expires_at == until, f"a hold from {at} to {expires_at}, reckoned to {until}")

    # -- the end of a hold

    def _payment_reversed(self, turn: Turn) -> Lines:
        payment, amount, held = turn.payment, turn.amount, turn.payment.held
        by_time_out = turn.code == "68"
        right = amount == held if by_time_out else 0 < amount == turn.asked(held) <= held
        self._judge(turn, right, f"{amount} of {held} reversed, {turn.asked(held)} asked for")
        if turn.command.get("client") == "reversal":
            self.findings["event-has-request"].expect(
                payment.failed and "amount" not in turn.command,
                f"{turn.where}: {amount} released by reversal, and no capture was rejected that left it",
            )
        payment.released += amount
        payment.reversed += amount
        payment.ended = payment.ended or amount == held
        turn.account.held -= amount
        return _hold(turn, -amount)

    def _hold_expired(self, turn: Turn) -> Lines:
        payment, amount, at = turn.payment, turn.amount, turn.event["at"]
        right = amount == payment.held and at >= payment.expires_at
        self._judge(turn, right, f"{amount} of {payment.held} expired at {at}")
        payment.released += amount
        payment.ended = payment.expired = True
        turn.account.held -= amount
        return _hold(turn, -amount)

    # -- captures and what follows

    def _payment_captured(self, turn: Turn) -> Lines:
        event, payment, amount = turn.event, turn.payment, turn.amount
        if not payment.authorized and not payment.ended:
            return self._sold(turn)
        used, freed, held = event.get("hold_used", 0), event.get("hold_freed", 0), payment.held
        whole = payment.authorized - payment.reversed
        due = whole - payment.captured if payment.expired else held
        most = due + tolerance(turn.merchant.get("mcc", ""), whole)
        ends = turn.command.get("final", True) or amount >= due
        self._judge(
            turn,
            0 < amount == turn.asked(due) <= most
            and used == min(amount, held) and freed == (held - used if ends else 0)
            and event.get("forced", False) == payment.expired and event["n"] == len(payment.captures) + 1
            and ends == (event["payment"]["status"] == "captured"),
            f"captured {amount} of {most} as {event['n']}, {turn.asked(due)} asked for, "
            f"used {used} and freed {freed} of {held} held, {'for good' if ends else 'not for good'}",
        )  # fmt: skip
        payment.captured += amount
        payment.released += freed
        payment.captures += (Capture(amount),)
        payment.ended = payment.ended or event["payment"]["status"] == "captured"
        turn.account.held -= used + freed
        turn.account.posted += amount
        receivable = f"receivable:cardholder:{payment.account}"
        return _hold(turn, -(used + freed)) | {receivable: amount, "clearing:suspense": -amount}

    def _sold(self, turn: Turn) -> Lines:
        """Authorized and captured in one: it never was on hold."""
        if turn.known and name_of(turn.command) != "authorize":
            self._judge(turn, False, "a capture of a payment that was never authorized")
            turn = turn._replace(known=False, command={})
        self._authorization(turn)
        event, payment, amount = turn.event, turn.payment, turn.amount
        odd = {name: event[name] for name in ("hold_used", "hold_freed", "forced") if event.get(name)}
        self._judge(
            turn,
            amount > 0 and event["n"] == 1 and not odd and turn.command.get("capture", False),
            f"{amount} captured at once, as capture {event['n']}, with {odd}",
        )
        payment.authorized = payment.captured = amount
        payment.captures = (Capture(amount),)
        payment.ended = True
        turn.account.posted += amount
        return {f"receivable:cardholder:{payment.account}": amount, "clearing:suspense": -amount}

    def _capture_cleared(self, turn: Turn) -> Lines:
        event, payment, amount = turn.event, turn.payment, turn.amount
        fees = event["interchange"], event["scheme_fee"]
        usual = share(amount, 150) + 10, share(amount, 13)
        former = self._outcome(turn, accepted=True, after=Capture(amount, "cleared", *fees))
        payment.cleared += amount
        posts = payment.post_reserved()
        self._judge(
            turn,
            event.get("refund_posted", 0) == posts and (not self.usual_fees or usual == fees),
            f"{former} cleared with fees {fees}, refunds of {event.get('refund_posted', 0)}",
        )
        turn.account.posted -= posts
        back = self._fees_returned(turn, posts)
        interchange, scheme = fees[0] - back[0], fees[1] - back[1]
        return {
            "clearing:suspense": amount,
            _payable(turn): interchange + scheme - amount + posts,
            "income:interchange": -interchange,
            "income:scheme": -scheme,
            f"receivable:cardholder:{payment.account}": -posts,
        }

    def _capture_rejected(self, turn: Turn) -> Lines:
        event, payment, amount = turn.event, turn.payment, turn.amount
        self._outcome(turn, accepted=False, after=Capture(amount, "rejected"))
        if not payment.ended:
            payment.released += amount
        payment.captured -= amount
        payment.failed = payment.failed or (not payment.captured and payment.held > 0)
        cancels, cancelled = payment.cancel_reserved(), event.get("refund_cancelled", 0)
        self._judge(turn, cancelled == cancels, f"refunds of {cancelled} cancelled, reckoned {cancels}")
        turn.account.posted -= amount
        return {"clearing:suspense": amount, f"receivable:cardholder:{payment.account}": -amount}

    def _outcome(self, turn: Turn, *, accepted: bool, after: Capture) -> Capture | None:
        """Clearing's one word on a capture, about all of it. Returns the capture as it was."""
        n, captures = turn.event["n"], turn.payment.captures
        former = captures[n - 1] if 0 < n <= len(captures) else None
        self._judge(
            turn,
            former == Capture(after.amount) and turn.command.get("accepted") is accepted,
            f"{after.state} with {after.amount}: capture {n}, {former}",
        )
        if former is not None:
            turn.payment.captures = (*captures[: n - 1], after, *captures[n:])
        return former

    def _payment_refunded(self, turn: Turn) -> Lines:
        event, payment, amount = turn.event, turn.payment, turn.amount
        left, posted = payment.refundable, event.get("posted", 0)
        payment.reserved += amount
        payment.refunds += (Refund(amount),)
        posts = payment.post_reserved()
        self._judge(
            turn,
            0 < amount == turn.asked(left) <= left and posted == posts and event["n"] == len(payment.refunds),
            f"{amount} of {left} refunded as {event['n']}, {turn.asked(left)} asked for, {posted} at once",
        )
        turn.account.posted -= posts
        return _give_back(turn, posts, self._fees_returned(turn, posts))

    def _fees_returned(self, turn: Turn, posts: int) -> tuple[int, int]:
        """Fees that go back with refunds: none, or in proportion to what is refunded of what has cleared."""
        event, payment = turn.event, turn.payment
        found = event.get("interchange_returned", 0), event.get("scheme_fee_returned", 0)
        if found == (0, 0):
            return found
        fees = (
            sum(one.interchange for one in payment.captures),
            sum(one.scheme_fee for one in payment.captures),
        )
        due = [fee * payment.refunded // max(1, payment.cleared) for fee in fees]
        expected = tuple(max(0, a - b) for a, b in zip(due, payment.returned, strict=True))
        self._judge(turn, found == expected and posts > 0, f"fees of {found} returned, reckoned {expected}")
        payment.returned = payment.returned[0] + found[0], payment.returned[1] + found[1]
        return found

    def _chargeback_opened(self, turn: Turn) -> Lines:
        payment, amount = turn.payment, turn.amount
        left = payment.cleared - payment.refunded - payment.charged_back
        payment.chargebacks += (Chargeback(amount),)
        self._judge(
            turn,
            0 < amount == turn.asked(left) <= left and turn.event["n"] == len(payment.chargebacks),
            f"{amount} of {left} charged back as {turn.event['n']}, {turn.asked(left)} asked for",
        )
        payment.charged_back += amount
        turn.account.posted -= amount
        return {_payable(turn): amount, f"receivable:cardholder:{payment.account}": -amount}

    def _chargeback_represented(self, turn: Turn) -> Lines:
        event, payment, amount = turn.event, turn.payment, turn.amount
        self._dispute_ends(turn, "represented")
        payment.charged_back -= amount
        posts, posted = payment.post_reserved(), event.get("refund_posted", 0)
        self._judge(turn, posted == posts, f"{posted} refunded, reckoned {posts}")
        turn.account.posted += amount - posts
        return _give_back(turn, posts - amount, self._fees_returned(turn, posts))

    def _chargeback_accepted(self, turn: Turn) -> Lines:
        self._dispute_ends(turn, "accepted")
        return {}

    def _dispute_ends(self, turn: Turn, state: str) -> None:
        """A chargeback ends once, all of it."""
        n, chargebacks = turn.event["n"], turn.payment.chargebacks
        former = chargebacks[n - 1] if 0 < n <= len(chargebacks) else None
        self._judge(
            turn, former == Chargeback(turn.amount), f"{turn.amount} {state}: chargeback {n}, {former}"
        )
        if former is not None:
            ended = former._replace(state=state)
            turn.payment.chargebacks = (*chargebacks[: n - 1], ended, *chargebacks[n:])


def _answer(account: Account, command: Command, at: int) -> tuple[str, int]:
    """(response code, amount approved) of an authorization or an increment. An advice was approved elsewhere
    already, and is held whatever is available."""
    asked: int = command["amount"]
    if command.get("advice_until") and command["currency"] == account.currency:
        return "00", asked
    code = reason_to_decline(account.status, account.expiry, account.currency, command, at)
    if code:
        return code, 0
    if not asked or asked <= account.available:
        return "00", asked
    if command.get("partial_approval") and account.available > 0:
        return "10", account.available
    return "51", 0


def _fixed_of(shown: dict[str, Any]) -> int:
    return fingerprint([shown.get(name) for name in FIXED])


def _held_in(shown: dict[str, Any]) -> int:
    """What is on hold of a payment as an event shows it."""
    if shown.get("hold_ended") or shown.get("expired"):
        return 0
    return max(0, int(shown.get("authorized", 0) - shown.get("captured", 0) - shown.get("released", 0)))


def _parts_of(shown: dict[str, Any]) -> tuple[list[tuple[Any, ...]], ...]:
    """A payment's captures, refunds and chargebacks as an event shows them."""
    return (
        [
            (one["n"], one["amount"], one.get("state", "submitted"), one.get("interchange", 0),
             one.get("scheme_fee", 0))
            for one in shown.get("captures", ())
        ],
        [
            (one["n"], one["amount"], one.get("posted", 0), one.get("cancelled", 0),
             one.get("state", "reserved"))
            for one in shown.get("refunds", ())
        ],
        [(one["n"], one["amount"], one.get("state", "open")) for one in shown.get("chargebacks", ())],
    )  # fmt: skip


def fingerprint(value: Any) -> int:
    """Of a value as JSON or MessagePack gives it; the order of names does not matter."""
    return hash(_canonical(value))


def _hold(turn: Turn, amount: int) -> Lines:
    return {f"holds:cardholder:{turn.payment.account}": amount, "holds:contra": -amount}


def _give_back(turn: Turn, amount: int, fees: tuple[int, int]) -> Lines:
    return {
        _payable(turn): amount - sum(fees),
        "income:interchange": fees[0],
        "income:scheme": fees[1],
        f"receivable:cardholder:{turn.payment.account}": -amount,
    }


def _payable(turn: Turn) -> str:
    return f"{PAYABLE}{turn.merchant.get('id') or 'unnamed'}"
