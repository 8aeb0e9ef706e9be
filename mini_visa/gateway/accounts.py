"""Account requests: from checked fields to commands."""

from __future__ import annotations

from mini_visa.domain.commands import ChangeAccount, Command, OpenAccount, PayAccount
from mini_visa.domain.money import exponent_of
from mini_visa.gateway.endpoints import Call
from mini_visa.gateway.fields import money
from mini_visa.gateway.problems import FieldError, bad_input


async def open_account(call: Call) -> Command:
    values = call.values
    card = call.gateway.card(values.pop("pan"))
    currency = values["currency"] or call.gateway.settings.default_currency
    return OpenAccount(
        **call.envelope(card.token),
        bin=card.bin,
        last4=card.last4,
        currency=currency,
        limit=money(values["limit"], exponent_of(currency), "limit"),
        expiry=values["expiry"],
        status=values["status"],
    )


async def change_account(call: Call) -> Command:
    limit, status = call.values["limit"], call.values["status"]
    if limit is None and status is None:
        raise bad_input(FieldError("limit", "or status is required: there is nothing to change"))
    account = call.gateway.account_id(call.path["account_id"])
    if limit is None:
        return ChangeAccount(**call.envelope(account), status=status)
    currency = await call.gateway.currency_of(account, limit)
    return ChangeAccount(
        **call.envelope(account),
        limit=money(limit, exponent_of(currency), "limit"),
        status=status,
        currency=currency,
    )


async def pay_account(call: Call) -> Command:
    account = call.gateway.account_id(call.path["account_id"])
    currency = await call.gateway.currency_of(account, call.values["amount"])
    return PayAccount(
        **call.envelope(account),
        amount=money(call.values["amount"], exponent_of(currency)),
        currency=currency,
    )
