from __future__ import annotations

import secrets

from mini_visa.domain.commands import Authorize, TimeOutReversal
from mini_visa.settings import Settings

from .conftest import Client, GatewayRunner
from .downstream import Downstream

PAN = "4111111111111111"


def request(**changes: object) -> dict[str, object]:
    return {"request_id": secrets.token_hex(8), "pan": PAN, "amount": "10.00"} | changes


async def test_an_approved_authorization_is_answered_as_the_contract_says(
    client: Client, settings: Settings
) -> None:
    asked = request()
    async with Downstream(settings):
        response = await client.post("/payments/authorize", json=asked)
        assert response.status == 200
        body = await response.json()
    assert body["request_id"] == asked["request_id"]
    assert (body["status"], body["response_code"], body["response_text"]) == ("authorized", "00", "approved")
    assert (body["amount"], body["approved_amount"], body["currency"]) == ("10.00", "10.00", "USD")
    assert body["card"]["bin"] == "411111" and body["card"]["last4"] == "1111"
    assert body["card"]["token"].startswith("tok_")
    assert body["operation"] == {"request_id": asked["request_id"], "response_code": "00"}
    partition, position = response.headers["Consistency-Token"].split(":")
    assert int(partition) in range(4) and int(position) >= 0
    assert "Idempotency-Replayed" not in response.headers


async def test_the_command_carries_a_token_instead_of_the_pan(client: Client, settings: Settings) -> None:
    async with Downstream(settings) as downstream:
        await client.post("/payments/authorize", json=request(merchant_id="m1", metadata={"order": "7"}))
    (command,) = downstream.seen
    assert isinstance(command, Authorize)
    assert PAN not in repr(command)
    assert command.account == command.card.token
    assert (command.amount, command.currency, command.currency_given) == (1000, "USD", False)
    assert (command.merchant.id, command.metadata) == ("m1", {"order": "7"})


async def test_an_amount_of_an_account_that_is_not_known_here_yet_is_read_as_it_is_written(
    client: Client, settings: Settings
) -> None:
    """It may have been opened a moment ago, through another gateway: the decision says what is right."""
    async with Downstream(settings) as downstream:
        for pan, amount in ((PAN, "7"), ("5555555555554444", "7.00"), ("378282246310005", "7.125")):
            asked = request(pan=pan, amount=amount)
            assert (await client.post("/payments/authorize", json=asked)).status == 200
    assert [(command.amount, command.currency, command.currency_given) for command in downstream.seen] == [
        (7, "JPY", False),
        (700, "USD", False),
        (7_125, "KWD", False),
    ]


async def test_a_retry_has_the_same_fingerprint_and_another_attempt(
    client: Client, settings: Settings
) -> None:
    asked = request()
    async with Downstream(settings) as downstream:
        await client.post("/payments/authorize", json=asked)
        await client.post("/payments/authorize", json=dict(reversed(asked.items())) | {"capture": False})
        await client.post("/payments/authorize", json=asked | {"amount": "10.01"})
    first, retry, other = downstream.seen
    assert first.fingerprint == retry.fingerprint != other.fingerprint
    assert len({first.attempt, retry.attempt, other.attempt}) == 3


async def test_no_answer_in_time_is_a_504_once_the_reversal_is_in_the_log(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    async with (
        gateway_for(gateway_deadline_s=0.3) as client,
        Downstream(settings, rule=lambda _: None) as downstream,
    ):
        response = await client.post("/payments/authorize", json=request())
        assert response.status == 504
        assert response.content_type == "application/problem+json"
        assert (await response.json())["type"] == "urn:mini-visa:problem:timed-out"
        await downstream.saw(2)
    authorization, reversal = sorted(
        downstream.seen, key=lambda command: isinstance(command, TimeOutReversal)
    )
    assert isinstance(reversal, TimeOutReversal)
    assert reversal.attempt == authorization.attempt
    assert reversal.request_id == authorization.request_id
    assert reversal.fingerprint == authorization.fingerprint
    assert reversal.account == authorization.account
