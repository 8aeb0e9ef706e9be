"""Payment requests: from checked fields to commands."""

from __future__ import annotations

from mini_visa.domain.commands import Authorize, Command
from mini_visa.domain.money import exponent_of
from mini_visa.domain.payment import Merchant
from mini_visa.gateway.endpoints import Call
from mini_visa.gateway.fields import money


async def authorize(call: Call) -> Command:
    values = call.values
    card = call.gateway.card(values.pop("pan"))
    given = values["currency"]
    currency = given or await call.gateway.currency_of(card.token)
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
