"""What a command asks, against what its event says was done: the same operation on the same payment, for the
same amount, merchant and verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from audit.accounts import fingerprint, name_of
from audit.rules import STATUS_CODES

Command = dict[str, Any]
Event = dict[str, Any]

RISK_CODES: Final = ("59", "61", "65")
BEFORE_RISK: Final = (*STATUS_CODES.values(), "54")
"""What an increment may be declined for before risk is asked."""


AUTHORIZE_NAMES: Final[dict[str, Any]] = {
    "expiry": "", "cvv_match": None, "capture": False, "partial_approval": False, "metadata": {},
    "device_id": "",
}  # fmt: skip
"""What a request to authorize and its command call the same -> what it is where it is left out."""
COMMANDS_OF: Final = {
    "authorize": "authorize", "increments": "increment", "captures": "capture", "reversals": "reverse",
    "refunds": "refund", "chargebacks": "open_chargeback", "represent": "represent_chargeback",
    "accept": "accept_chargeback", "accounts": "open_account", "payments": "pay_account",
}  # fmt: skip
"""Last part of a path -> its command; of any other, which is an account's: change_account."""


class Effect(NamedTuple):
    """What a request did, as one event says."""

    kind: str
    code: str
    """Response code; of a refusal, HTTP's status."""
    payment_id: str
    position: int
    at: int
    amount: int | None
    """What was asked for, minor units: of an account, its limit. None: the event does not say."""
    said: int = 0
    """Meaning of what the command names besides; 0: there is none, or it is no client's."""

    @property
    def decides(self) -> bool:
        return self.kind not in ("request_refused", "request_cancelled") and self.code != "68"

    @property
    def outcome(self) -> str:
        """The status of a refusal; else the kind of event, and whether a reversal was the reason."""
        if self.kind == "request_refused":
            return self.code
        return f"{self.kind} 68" if self.code == "68" else self.kind


class Deed(NamedTuple):
    """What one event says of its command. All events of a partition wait in memory for its commands: so it is
    fingerprints, where these will do."""

    effect: Effect
    of: str
    """Request id of the authorization that made the payment, or that is cancelled."""
    terms: int
    """Meaning of what the event repeats of its command, the amount apart."""
    whole: bool
    """It took all that there was: what a command without an amount asks for."""
    ends_hold: bool
    frees: bool
    """It let a rest of the hold go."""
    captured: bool = False
    """A refusal: its payment has captures."""


class CardAccount(NamedTuple):
    """What commands say of an account."""

    bin: str
    last4: str
    currency: str
    limit: int
    expiry: str
    status: str
    client: str


# -- from an event --------------------------------------------------------------------------------


def deed_of(event: Event) -> Deed:
    kind, payment = name_of(event), event.get("payment", {})
    payment_id = event.get("payment_id") or payment.get("payment_id", "")
    code = event.get("response_code", "00")
    if kind == "request_refused":
        code = str(event["http_status"])
    elif kind in ("payment_declined", "payment_unknown_card"):
        code = payment["response_code"]
    position = event["position"]
    first = bool(payment) and payment_id == payment_made_by(payment["account"], position)
    effect = Effect(
        kind, code, payment_id, position, event["at"], _amount_asked(event, kind, code, first=first)
    )
    return Deed(
        effect,
        of=event.get("original_request_id") or payment.get("request_id", ""),
        terms=_terms_of_payment(payment) if first else _terms_of_event(event, kind),
        whole=_took_all(event, kind, payment),
        ends_hold=payment.get("status") == "captured",
        frees=event.get("hold_freed", 0) > 0,
    )


def payment_made_by(account: str, position: int) -> str:
    """A payment's id names its account, and the command that made it."""
    return f"pay_{account[4:]}_{position:x}"


def _amount_asked(event: Event, kind: str, code: str, *, first: bool) -> int | None:
    if first or code == "68":
        return int(event["payment"]["amount"])
    if kind in ("account_opened", "account_changed"):
        return int(event["account"]["limit"])
    if "account" not in event or (kind == "payment_incremented" and code != "00"):
        return None
    return int(event.get("amount", 0))


def _terms_of_payment(payment: dict[str, Any]) -> int:
    return fingerprint([
        payment["card"], payment.get("merchant", {}), payment.get("metadata", {}),
        payment.get("verdict", {}), payment["currency"], payment["client"], payment["request_id"],
    ])  # fmt: skip


def _terms_of_event(event: Event, kind: str) -> int:
    if kind in ("account_opened", "account_changed"):
        account = event["account"]
        shown = account_in(account, account.get("client", ""))
        return hash((*shown, account.get("posted", 0) if kind == "account_opened" else 0))
    if kind == "chargeback_opened":
        return hash(event.get("reason_code", ""))
    return hash((event.get("n", 0), event.get("reason", "")))


def account_in(fields: dict[str, Any], client: str) -> CardAccount:
    return CardAccount(
        fields["bin"], fields["last4"], fields["currency"], fields["limit"], fields.get("expiry", ""),
        fields.get("status", "active"), client,
    )  # fmt: skip


def _took_all(event: Event, kind: str, payment: dict[str, Any]) -> bool:
    def sum_of(plus: str, *minus: str) -> int:
        return int(payment.get(plus, 0) - sum(payment.get(name, 0) for name in minus))

    if kind == "payment_captured":
        if event.get("forced"):
            return sum_of("authorized", "reversed", "captured") == 0
        return bool(event["amount"] == event.get("hold_used", 0) and payment["status"] == "captured")
    if kind == "payment_reversed":
        return bool(payment.get("hold_ended"))
    if kind == "payment_refunded":
        return sum_of("captured", "refunded", "refund_reserved", "charged_back") == 0
    return kind == "chargeback_opened" and sum_of("cleared", "refunded", "charged_back") == 0


# -- what a command names besides its payment and amount ----------------------------------------------


def said_by(command: Command) -> int:
    """To compare with `said_in` a request."""
    kind, part = name_of(command), "amount" in command
    named: list[Any]
    if kind == "authorize":
        merchant = command.get("merchant", {})
        named = [
            *(merchant.get(name, "") for name in ("id", "mcc", "terminal_id", "country")),
            command["currency"] if command.get("currency_given") else "",
            *(command.get(name, usual) for name, usual in AUTHORIZE_NAMES.items()), command["card"]["last4"],
        ]  # fmt: skip
    elif kind == "open_account":
        named = [command.get("status", "active"), command.get("expiry", ""), command["last4"]]
    elif kind == "change_account":
        named = [command.get("status", ""), "limit" in command]
    elif kind == "capture":
        named = [command.get("final", True), part]
    elif kind == "open_chargeback":
        named = [command["reason_code"], part]
    elif kind in ("represent_chargeback", "accept_chargeback"):
        named = [command["n"]]
    elif kind in ("reverse", "refund", "increment", "pay_account"):
        named = [command.get("original_request_id", ""), part]
    else:
        return 0
    return fingerprint([kind, *named])


def said_in(path: str, request: dict[str, Any]) -> int:
    """What a request to a path of the gateway names. What is null is left out."""
    body = {name: value for name, value in request.items() if value is not None}
    kind, part = COMMANDS_OF.get(path.rpartition("/")[2], "change_account"), "amount" in body
    named: list[Any]
    if kind == "authorize":
        named = [
            *(body.get(name, "") for name in ("merchant_id", "mcc", "terminal_id", "country", "currency")),
            *(body.get(name, usual) for name, usual in AUTHORIZE_NAMES.items()), body.get("pan", "")[-4:],
        ]  # fmt: skip
    elif kind == "open_account":
        named = [body.get("status", "active"), body.get("expiry", ""), body.get("pan", "")[-4:]]
    elif kind == "change_account":
        named = [body.get("status", ""), "limit" in body]
    elif kind == "capture":
        named = [body.get("final", True), part]
    elif kind == "open_chargeback":
        named = [body.get("reason_code", ""), part]
    elif kind in ("represent_chargeback", "accept_chargeback"):
        number = path.split("/")[-2]
        named = [int(number) if number.isdecimal() else number]
    else:
        named = [body.get("original_request_id", ""), part]
    return fingerprint([kind, *named])


# -- a command against its event ------------------------------------------------------------------


def explains(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    """Whether the command asked for what the event says: on that payment, for that amount, and whatever else
    the event repeats. `account`: as commands have left it."""
    effect, named = deed.effect, command.get("payment_id")
    if named and effect.payment_id != named:
        return False
    rule = _RULES.get(name_of(command))
    return effect.kind == "request_refused" or (rule is not None and rule(command, deed, account))


def _authorizes(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    effect, amount = deed.effect, command["amount"]
    # Without a currency, it is the account's.
    given = account is None or command.get("currency_given")
    currency = command["currency"] if given or account is None else account.currency
    terms = fingerprint([
        command["card"], command.get("merchant", {}), command.get("metadata", {}),
        command.get("verdict", {}), currency, command.get("client", "local"), command["request_id"],
    ])  # fmt: skip
    made = effect.payment_id == payment_made_by(command["account"], effect.position)
    at_once = bool(command.get("capture")) and amount > 0
    return (
        made
        and deed.terms == terms
        and effect.amount == amount
        and (effect.code != "10" or bool(command.get("partial_approval")))
        and {"payment_captured": at_once, "payment_authorized": not at_once}.get(effect.kind, True)
    )


def _increments(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    """The event does not repeat what risk said: the code has to follow from it."""
    code, risk = deed.effect.code, command.get("verdict", {}).get("response_code", "")
    if code == "00" and deed.effect.amount != command["amount"]:
        return False
    return code == risk if code in RISK_CODES else not risk or code in BEFORE_RISK


def _takes(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    amount = command.get("amount")
    return deed.whole if amount is None else deed.effect.amount == amount


def _captures(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    ended_rightly = deed.ends_hold if command.get("final", True) else not deed.frees
    return ended_rightly and _takes(command, deed, account)


def _reverses(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    original = command.get("original_request_id", "")
    if deed.effect.kind == "request_cancelled":
        return bool(original) and deed.of == original
    return original in ("", deed.of) and _takes(command, deed, account)


def _undoes(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    return bool(deed.of == command["request_id"])


def _disputes(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    return deed.terms == hash(command["reason_code"]) and _takes(command, deed, account)


def _answers_dispute(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    return deed.terms == hash((command["n"], ""))


def _clears(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    accepted = deed.effect.kind == "capture_cleared"
    reason = "" if accepted else command.get("reason", "")
    return bool(command["accepted"]) == accepted and deed.terms == hash((command["n"], reason))


def _opens_account(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    asked = account_in(command, command.get("client", "local"))
    return account is None and deed.terms == hash((*asked, command.get("posted", 0)))


def _changes_account(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    if account is None:
        return False
    return deed.terms == hash((*changed(account, command), 0))


def _pays(command: Command, deed: Deed, account: CardAccount | None) -> bool:
    return bool(deed.effect.amount == command["amount"])


def changed(account: CardAccount, command: Command) -> CardAccount:
    """What a command does not name stays as it is."""
    return account._replace(
        limit=command.get("limit", account.limit), status=command.get("status", account.status)
    )


_RULES: Final[dict[str, Callable[[Command, Deed, CardAccount | None], bool]]] = {
    "authorize": _authorizes,
    "increment": _increments,
    "capture": _captures,
    "reverse": _reverses,
    "time_out_reversal": _undoes,
    "refund": _takes,
    "record_clearing": _clears,
    "open_chargeback": _disputes,
    "represent_chargeback": _answers_dispute,
    "accept_chargeback": _answers_dispute,
    "open_account": _opens_account,
    "change_account": _changes_account,
    "pay_account": _pays,
}
