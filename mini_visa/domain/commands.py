"""Commands: what the outside asks of a card account. They travel on account.commands (and, before
risk has seen them, on card.requests), keyed by account, and are decided in that one order.

The bounds are checked when a record is decoded: what lies outside could not have passed the gateway.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mini_visa.domain.messages import Message
from mini_visa.domain.money import AMOUNT_MAX
from mini_visa.domain.payment import AccountStatus, Card, Merchant, RuleHit, Text, Verdict

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
"""Minor units."""
Exponent = Annotated[int, Meta(ge=0, le=4)]
Part = Annotated[int, Meta(ge=0, le=1_000_000)]
"""Number of a capture or chargeback of a payment."""
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]], Meta(max_length=20)
]

LOCAL_CLIENT = "local"
"""Services, and who asks a gateway that wants no keys."""
MIGRATION_CLIENT = "migration"
SHADOW_CLIENT = "shadow"
CLEARING_CLIENT = "clearing"
"""Records what the clearing house answers."""
REVERSAL_CLIENT = "reversal"
"""Undoes what fails to clear."""
RESERVED_CLIENTS = frozenset(
    {LOCAL_CLIENT, MIGRATION_CLIENT, SHADOW_CLIENT, CLEARING_CLIENT, REVERSAL_CLIENT}
)
"""No key is for one of these: it could answer for the program's own request ids, and see what these made."""
NO_REPLY = -1


class Command(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What every command carries. Idempotency scope: (client, account, request_id), 24 h."""

    account: Name
    request_id: Name
    client: Name = LOCAL_CLIENT
    fingerprint: Text = ""
    """Digest of the request's meaning. Same request_id, other fingerprint: 422."""
    attempt: Text = ""
    """One HTTP attempt at the request: the correlation id of its answer. A retry is a new attempt."""
    reply_partition: Annotated[int, Meta(ge=NO_REPLY)] = NO_REPLY
    """Partition of gateway.replies where the asking gateway listens; NO_REPLY: nobody waits."""
    own: bool = False
    """The client may touch only what its own requests have made: anything else is not there for it."""


class OpenAccount(Command, frozen=True, kw_only=True, omit_defaults=True, tag="open_account/1"):
    bin: Text
    last4: Text
    currency: Text
    limit: Amount
    expiry: Text = ""
    status: AccountStatus = AccountStatus.ACTIVE
    posted: Annotated[int, Meta(ge=-AMOUNT_MAX, le=AMOUNT_MAX)] = 0
    """What the cardholder owes already (< 0: is owed), where the account comes from another system."""


class ChangeAccount(Command, frozen=True, kw_only=True, omit_defaults=True, tag="change_account/1"):
    limit: Amount | None = None
    status: AccountStatus | None = None
    currency: Text | None = None
    """What `limit` is in, as far as the gateway knew. None: without a limit, or of an older gateway."""


class PayAccount(Command, frozen=True, kw_only=True, omit_defaults=True, tag="pay_account/1"):
    """The cardholder pays. `currency` is what `amount` is in (see `Authorize.currency_given`)."""

    amount: Amount
    currency: Text


class Authorize(Command, frozen=True, kw_only=True, omit_defaults=True, tag="authorize/1"):
    amount: Amount
    """Minor units of `currency`."""
    currency: Text
    card: Card
    currency_given: bool = False
    """False: the client left the currency out and the gateway assumed the account's. The amount is
    then read in the account's currency where the exponents agree, and refused with 13 where not."""
    merchant: Merchant = Merchant()
    device_id: Text = ""
    ip: Text = ""
    expiry: Text = ""
    cvv_match: bool | None = None
    capture: bool = False
    partial_approval: bool = False
    metadata: Metadata = {}
    advice_until: Annotated[int, Meta(ge=0)] = 0
    """Set on an advice (ISO 8583, 0120): approved elsewhere already, so it is not declined for the card's
    state or its money, and held until this event time, ms. No gateway sends one."""
    verdict: Verdict | None = None
    """None on card.requests; risk sets it on account.commands."""


class Increment(Command, frozen=True, kw_only=True, omit_defaults=True, tag="increment/1"):
    """Goes through risk like an authorization."""

    payment_id: Text
    amount: Amount
    exponent: Exponent
    """Decimals that `amount` was parsed with; the payment's currency decides whether that is right."""
    verdict: Verdict | None = None


class CapturePayment(Command, frozen=True, kw_only=True, omit_defaults=True, tag="capture/1"):
    payment_id: Text
    amount: Amount | None = None
    """None: all that is held."""
    exponent: Exponent | None = None
    final: bool = True


class ReversePayment(Command, frozen=True, kw_only=True, omit_defaults=True, tag="reverse/1"):
    """Cancel (part of) a hold. Exactly one of `payment_id` and `original_request_id` is set; by
    request it may arrive before the original, which is then answered `reversed`."""

    payment_id: Text = ""
    original_request_id: Text = ""
    amount: Amount | None = None
    exponent: Exponent | None = None
    reason: Text = ""


class TimeOutReversal(Command, frozen=True, kw_only=True, omit_defaults=True, tag="time_out_reversal/1"):
    """The gateway gave up on `attempt` of `request_id` (an authorize): leave no hold. Ignored when a
    later attempt of the same request was already answered. `fingerprint` is the original's."""


class RefundPayment(Command, frozen=True, kw_only=True, omit_defaults=True, tag="refund/1"):
    payment_id: Text
    amount: Amount | None = None
    exponent: Exponent | None = None


class OpenChargeback(Command, frozen=True, kw_only=True, omit_defaults=True, tag="open_chargeback/1"):
    payment_id: Text
    reason_code: Text
    amount: Amount | None = None
    exponent: Exponent | None = None


class RepresentChargeback(
    Command, frozen=True, kw_only=True, omit_defaults=True, tag="represent_chargeback/1"
):
    payment_id: Text
    n: Part


class AcceptChargeback(Command, frozen=True, kw_only=True, omit_defaults=True, tag="accept_chargeback/1"):
    payment_id: Text
    n: Part


class RecordClearing(Command, frozen=True, kw_only=True, omit_defaults=True, tag="record_clearing/1"):
    """The clearing house's outcome for capture `n`. Its request_id is derived from payment and n."""

    payment_id: Text
    n: Part
    accepted: bool
    reason: Text = ""


class Tick(Message, frozen=True, kw_only=True, omit_defaults=True, tag="tick/1"):
    """Time has passed: the record's timestamp says how far. Written into every partition."""


class PutRule(Message, frozen=True, kw_only=True, omit_defaults=True, tag="put_rule/1"):
    """A version of a risk rule, written into every partition of card.requests."""

    rule: str
    version: int
    body: dict[str, str | int | bool]


class PaymentOutcome(Message, frozen=True, kw_only=True, omit_defaults=True, tag="payment_outcome/1"):
    """Authorization tells risk how a request ended, for rules that count declines."""

    account: str
    payment_id: str
    request_id: str
    response_code: str
    amount: int
    merchant_id: str = ""


class FraudAlert(Message, frozen=True, kw_only=True, omit_defaults=True, tag="fraud_alert/1"):
    """A rule fired on a request. Travels on fraud.alerts."""

    alert_id: str
    """Derived from the request's position and the rule: the same on every replay."""
    account: str
    request_id: str
    at: int
    score: int
    amount: int
    currency: str
    hit: RuleHit
    merchant_id: str = ""


CardRequest = Authorize | Increment | PaymentOutcome | PutRule | Tick
AccountCommand = (
    OpenAccount | ChangeAccount | PayAccount | Authorize | Increment | CapturePayment | ReversePayment
    | TimeOutReversal | RefundPayment | OpenChargeback | RepresentChargeback | AcceptChargeback
    | RecordClearing | Tick
)  # fmt: skip
