"""Payment requests: from checked fields to commands."""

from __future__ import annotations

from typing import Any

from mini_visa.domain.commands import (
    AcceptChargeback,
    Authorize,
    CapturePayment,
    Command,
    Increment,
    OpenChargeback,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
)
from mini_visa.domain.money import exponent_of
from mini_visa.domain.payment import Merchant
from mini_visa.gateway.endpoints import Call
from mini_visa.gateway.fields import has_decimals, money
from mini_visa.gateway.problems import FieldError, bad_input, not_found


async def authorize(call: Call) -> Command:
    values = call.values
    card = call.gateway.card(values.pop("pan"))
    given = values["currency"]
    currency = given or call.gateway.assumed_currency(card.token)
    if given is None and not has_decimals(values["amount"], exponent_of(currency)):
        currency = await call.gateway.currency_of(card.token, values["amount"])
    return Authorize(
        **call.envelope(card.token),
        amount=money(values["amount"], exponent_of(currency)),
        currency=currency,
        currency_given=given is not None,
        card=card,
        merchant=Merchant(
            id=values["merchant_id"],
            mcc=values["mcc"],
            terminal_id=values["terminal_id"],
            country=values["country"],
        ),
        device_id=values["device_id"],
        ip=values["ip"],
        expiry=values["expiry"],
        cvv_match=values["cvv_match"],
        capture=values["capture"],
        partial_approval=values["partial_approval"],
        metadata=values["metadata"],
    )


async def _on_payment(call: Call) -> dict[str, Any]:
    """What a command on the payment of the path carries: its account is part of its id."""
    payment_id = call.path["payment_id"]
    return {**call.envelope(call.gateway.account_of(payment_id)), "payment_id": payment_id}


async def _amount_on_payment(call: Call) -> dict[str, Any]:
    """The same with an amount, read in the decimals of the account's currency as far as they are known
    here; the decision on the account says whether they were right."""
    fields = await _on_payment(call)
    text = call.values["amount"]
    if text is not None:
        exponent = await call.gateway.exponent_of(fields["account"], text)
        fields |= {"amount": money(text, exponent), "exponent": exponent}
    return fields


async def increment(call: Call) -> Command:
    return Increment(**await _amount_on_payment(call))


async def capture(call: Call) -> Command:
    return CapturePayment(**await _amount_on_payment(call), final=call.values["final"])


async def reverse(call: Call) -> Command:
    return ReversePayment(**await _amount_on_payment(call), reason=call.values["reason"])


async def reverse_by_request(call: Call) -> Command:
    if call.values["original_request_id"] == call.values["request_id"]:
        raise bad_input(FieldError("original_request_id", "must not be this request's own request_id"))
    account = call.gateway.card(call.values.pop("pan")).token
    return ReversePayment(**call.envelope(account), original_request_id=call.values["original_request_id"])


async def refund(call: Call) -> Command:
    return RefundPayment(**await _amount_on_payment(call))


async def open_chargeback(call: Call) -> Command:
    return OpenChargeback(**await _amount_on_payment(call), reason_code=call.values["reason_code"])


async def represent_chargeback(call: Call) -> Command:
    return RepresentChargeback(**await _on_payment(call), n=_chargeback_number(call))


async def accept_chargeback(call: Call) -> Command:
    return AcceptChargeback(**await _on_payment(call), n=_chargeback_number(call))


def _chargeback_number(call: Call) -> int:
    text = call.path["n"]
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise not_found("chargeback")
    return int(text)
