"""Reads: from the read model, as fresh as was asked for, and never older than this gateway's answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from sqlalchemy.exc import SQLAlchemyError

from mini_visa import topics
from mini_visa.gateway import views
from mini_visa.gateway.endpoints import CONSISTENCY_TOKEN, Call, Reply
from mini_visa.gateway.problems import FieldError, Problem, bad_input, busy, not_found
from mini_visa.readmodel import DatabaseUnusable, InvalidCursor, PaymentFilters, ReadModel

AGE_MS: Final = "Age-Ms"

_TOKEN: Final = re.compile(r"([0-9]{1,4}):([0-9]{1,18})", re.ASCII)


async def payment(call: Call) -> Reply:
    """The payment and what happened to it."""
    return await _of_payment(call, views.payment_record_view)


async def explanation(call: Call) -> Reply:
    """Why the payment was decided as it was."""
    return await _of_payment(call, views.explanation_view)


async def _of_payment(call: Call, view: Callable[..., dict[str, Any]]) -> Reply:
    payment_id = call.path["payment_id"]
    async with reading(call, call.gateway.account_of(payment_id)) as read_model:
        record = await read_model.payment(payment_id)
        age = await read_model.lag_ms()
    if record is None or not call.sees(record.payment.client):
        raise not_found("payment")
    return view_reply(view(record.payment, record.events, own=call.own), age)


async def payments(call: Call) -> Reply:
    """Payments that match all filters, newest first."""
    values = call.values
    filters = PaymentFilters(
        account=values["account"],
        merchant_id=values["merchant_id"],
        client=call.client if call.own else None,
        status=values["status"],
        from_ms=values["from"],
        to_ms=values["to"],
        min_amount=values["min_amount"],
        max_amount=values["max_amount"],
        metadata=values["metadata"],
    )
    async with reading(call, values["account"]) as read_model:
        page = await read_model.payments(filters, values["cursor"], values["limit"])
        age = await read_model.lag_ms()
    return page_reply([views.payment_view(item) for item in page.items], page.next_cursor, age)


async def account(call: Call) -> Reply:
    """The account as it is, or as it was at a time."""
    account_id = call.gateway.account_id(call.path["account_id"])
    at = call.values["at"]
    async with reading(call, account_id) as read_model:
        found = await (
            read_model.account(account_id) if at is None else read_model.account_at(account_id, at)
        )
        age = await read_model.lag_ms()
    if found is None or not call.sees(found.client):
        raise not_found("account" if at is None else "account at that time")
    call.gateway.recent.learn_currency(found.account_id, found.currency)
    return view_reply(views.account_view(found), age)


async def entries(call: Call) -> Reply:
    """The account's statement, newest first."""
    account_id = call.gateway.account_id(call.path["account_id"])
    values = call.values
    async with reading(call, account_id) as read_model:
        known = await read_model.account(account_id)
        if known is None or not call.sees(known.client):
            raise not_found("account")
        page = await read_model.entries(account_id, values["at"], values["cursor"], values["limit"])
        age = await read_model.lag_ms()
    return page_reply([views.entry_view(item) for item in page.items], page.next_cursor, age)


async def alerts(call: Call) -> Reply:
    """Fraud alerts, newest first."""
    async with reading(call, None) as read_model:
        page = await read_model.alerts(call.values["cursor"], call.values["limit"])
        age = await read_model.lag_ms()
    return page_reply([views.alert_view(item) for item in page.items], page.next_cursor, age)


@asynccontextmanager
async def reading(call: Call, account: str | None) -> AsyncIterator[ReadModel]:
    """The read model once it has what the caller may expect. Raises `Problem` 503 or 504."""
    read_model = call.gateway.read_model
    if read_model is None:
        raise busy("no-read-model", "The read model is not available: payments can be made, not looked up.")
    timeout_s = call.gateway.settings.gateway_deadline_s
    try:
        async with asyncio.timeout(2 * timeout_s):
            await _wait(read_model, _expected(call, account), timeout_s)
            yield read_model
    except InvalidCursor as error:
        raise bad_input(FieldError("cursor", f"is {error}")) from None
    except (SQLAlchemyError, DatabaseUnusable, OSError) as error:  # a TimeoutError is an OSError
        raise busy("no-read-model", f"The read model does not answer ({type(error).__name__}).") from None


def _expected(call: Call, account: str | None) -> Sequence[tuple[int, int]]:
    """(partition, position) that must be in the read model before it is asked."""
    places: list[tuple[int, int]] = []
    if account is None:
        places.extend(call.gateway.recent.places())
    elif (place := call.gateway.recent.place(account)) is not None:
        places.append(place)
    token = call.headers.get(CONSISTENCY_TOKEN)
    if token is not None:
        match = _TOKEN.fullmatch(token.strip())
        if match is None or int(match[1]) >= call.gateway.exchange.partitions[topics.ACCOUNT_COMMANDS.name]:
            raise bad_input(
                FieldError(CONSISTENCY_TOKEN, "is not one that a POST answered: send it as it was")
            )
        places.append((int(match[1]), int(match[2])))
    return places


async def _wait(read_model: ReadModel, places: Sequence[tuple[int, int]], timeout_s: float) -> None:
    arrived = await asyncio.gather(*(read_model.wait_for(*place, timeout_s) for place in places))
    if not all(arrived):
        raise Problem(
            504,
            "not-yet-visible",
            f"The read model did not get as far within {timeout_s:g} s: ask again in a moment.",
        )


def view_reply(view: Mapping[str, Any], age_ms: int) -> Reply:
    """An answer of the read model."""
    return Reply(orjson.dumps(view), headers={AGE_MS: str(age_ms)})


def page_reply(items: Sequence[Mapping[str, Any]], next_cursor: str | None, age_ms: int) -> Reply:
    """A page of a list."""
    return view_reply({"items": items, "next_cursor": next_cursor}, age_ms)
