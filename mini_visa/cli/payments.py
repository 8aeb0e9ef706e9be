"""`authorize`, `load`, `payments`, `accounts`: what a client asks of the gateway."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

import typer
from rich.console import Console

from mini_visa.cli.common import (
    ApiKey,
    Json,
    Pan,
    RequestId,
    Url,
    gateway_at,
    new_request_id,
    out,
    path_part,
    print_json,
    read_pan,
    show_fields,
    table,
)

commands = typer.Typer(no_args_is_help=True, help="Payments.")
account_commands = typer.Typer(no_args_is_help=True, help="Card accounts.")


def authorize(
    amount: Annotated[str, typer.Argument(help='In the currency\'s own decimals: "10.00" USD, "10" JPY.')],
    pan: Pan = "",
    currency: Annotated[str, typer.Option(help="ISO 4217. Default: the account's.")] = "",
    merchant_id: Annotated[str, typer.Option(help="Who asks.")] = "",
    mcc: Annotated[str, typer.Option(help="Merchant category code, four digits.")] = "",
    capture: Annotated[bool, typer.Option("--capture", help="Authorize and capture in one.")] = False,
    partial_approval: Annotated[
        bool, typer.Option("--partial-approval", help="Approve what is available if it is less.")
    ] = False,
    request_id: RequestId = "",
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Ask for money on a card. A decline is an answer, not an error: exit code 0."""
    body: dict[str, Any] = {
        "request_id": request_id or new_request_id(),
        "pan": read_pan(pan),
        "amount": amount,
        "currency": currency,
        "merchant_id": merchant_id,
        "mcc": mcc,
        "capture": capture,
        "partial_approval": partial_approval,
    }
    payment = gateway_at(url, api_key).post(
        "/payments/authorize", {key: value for key, value in body.items() if value}
    )
    print_json(payment) if as_json else _show_payment(payment)


def load(
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Authorizations a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long. 0: until Ctrl-C.")] = 60.0,
    cards: Annotated[int, typer.Option(min=1, max=100_000, help="Accounts to open and use.")] = 100,
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Authorize at a steady rate with made-up cards. What gets no answer is asked for again, under the same
    request id. Exit code 1 when anything stayed without an answer."""
    from mini_visa.demo.load import Load, run

    console = Console(stderr=True, highlight=False)

    def show(so_far: Load) -> None:
        done = so_far.document()
        console.print(
            f"{done['seconds']:7.0f} s  {done['answered']:8,} answered  {done['per_s']:8,.1f}/s  "
            f"{done['unanswered']} without an answer"
        )

    address = gateway_at(url, api_key).url
    done = asyncio.run(run(address, rate=rate, seconds=seconds, cards=cards, api_key=api_key, show=show))
    print_json(done.document()) if as_json else show_fields(done.document())
    if done.unanswered or not done.answers:
        raise typer.Exit(1)


@commands.command("show")
def payments_show(
    payment_id: Annotated[str, typer.Argument(help="Such as pay_...")],
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """A payment as it stands, with what happened to it."""
    payment = gateway_at(url, api_key).get(f"/payments/{path_part(payment_id)}")
    print_json(payment) if as_json else _show_payment(payment)


@account_commands.command("open")
def accounts_open(
    limit: Annotated[str, typer.Argument(help='Credit limit, such as "1000.00".')],
    pan: Pan = "",
    currency: Annotated[str, typer.Option(help="ISO 4217. Default: the gateway's.")] = "",
    expiry: Annotated[str, typer.Option(help="Of the card, YYYY-MM.")] = "",
    request_id: RequestId = "",
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Open an account for a card."""
    body = {
        "request_id": request_id or new_request_id(),
        "pan": read_pan(pan),
        "limit": limit,
        "currency": currency,
        "expiry": expiry,
    }
    account = gateway_at(url, api_key).post("/accounts", {key: value for key, value in body.items() if value})
    print_json(account) if as_json else show_fields(account)


@account_commands.command("open-test-cards")
def accounts_open_test_cards(url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """Open an account for each of the usual test cards, as `mini-visa demo` does. Again: does nothing."""
    from mini_visa.demo.cards import TEST_CARD_LIMIT, TEST_CARDS
    from mini_visa.http_client import Refused

    opened = []
    for pan in TEST_CARDS:
        body = {"request_id": new_request_id(), "pan": pan, "limit": TEST_CARD_LIMIT}
        try:
            opened.append(gateway_at(url, api_key).post("/accounts", body))
        except Refused as refused:
            if refused.status != HTTPStatus.CONFLICT:  # it is there already
                raise
    if as_json:
        print_json(opened)
    else:
        out().print(f"{len(opened)} accounts opened, {len(TEST_CARDS) - len(opened)} were there.")


@account_commands.command("show")
def accounts_show(
    account_id: Annotated[str, typer.Argument(help="Such as tok_...")],
    url: Url = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """An account's limit, holds and balance."""
    account = gateway_at(url, api_key).get(f"/accounts/{path_part(account_id)}")
    print_json(account) if as_json else show_fields(account)


def _show_payment(payment: dict[str, Any]) -> None:
    operations = payment.pop("events", [])
    show_fields(payment)
    if operations:
        shown = table("time", "what", "#amount", "code")
        for event in operations:
            shown.add_row(*(str(event.get(key, "")) for key in ("at", "type", "amount", "response_code")))
        out().print(shown)
