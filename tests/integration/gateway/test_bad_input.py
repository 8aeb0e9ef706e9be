"""Bad input: refused with the field and the reason, and nothing of it anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from mini_visa import topics
from mini_visa.kafka import client_options
from mini_visa.settings import Settings

from .conftest import Client, GatewayRunner

PAN = "4111111111111111"
GOOD = {"request_id": "r1", "pan": PAN, "amount": "10.00"}
JSON = "application/json"


def body(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


BAD = {
    "no body": (b"", "body"),
    "not JSON": (b"amount=10.00", "body"),
    "half a body": (b'{"request_id": "r1", "pan": "41', "body"),
    "not an object": (b'["4111111111111111"]', "body"),
    "JSON null": (b"null", "body"),
    "two documents": (body() + body(), "body"),
    "invalid UTF-8": (b'{"request_id": "\xff\xfe"}', "body"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "body"),
    "a byte order mark": (b"\xef\xbb\xbf" + body(), "body"),
    "deep JSON": (b'{"metadata":' * 5_000 + b"1" + b"}" * 5_000, "body"),
    "deep arrays": (b"[" * 30_000, "body"),
    "a number of 20,000 digits": (b'{"amount": ' + b"9" * 20_000 + b"}", "body"),
    "duplicate keys": (
        b'{"request_id":"r1","pan":"4111111111111111","amount":"10.00","amount":"1.00"}',
        "amount",
    ),
    "duplicate keys inside": (body()[:-1] + b',"metadata":{"a":"1","a":"2"}}', "a"),
    "an unknown field": (body(amout="10.00"), "amout"),
    "an unknown field that looks like a PAN": (body(**{"4111111111111111": "1"}), "(unnamed)"),
    "no request_id": (without("request_id"), "request_id"),
    "no pan": (without("pan"), "pan"),
    "no amount": (without("amount"), "amount"),
    "request_id empty": (body(request_id=""), "request_id"),
    "request_id of 65": (body(request_id="r" * 65), "request_id"),
    "request_id with a newline": (body(request_id="r1\n"), "request_id"),
    "request_id with a space": (body(request_id="r 1"), "request_id"),
    "request_id of other letters": (body(request_id="é"), "request_id"),
    "request_id a number": (body(request_id=1), "request_id"),
    "request_id is the PAN": (body(request_id=PAN), "request_id"),
    "pan with spaces": (body(pan="4111 1111 1111 1111"), "pan"),
    "pan with letters": (body(pan="411111111111111l"), "pan"),
    "pan with a bad check digit": (body(pan="4111111111111112"), "pan"),
    "pan of 11 digits": (body(pan="41111111116"), "pan"),
    "pan of 20 digits": (body(pan="41111111111111111112"), "pan"),
    "pan of other digits": (body(pan="٤١١١١١١١١١١١١١١١"), "pan"),
    "pan a number": (body(pan=4111111111111111), "pan"),
    "pan null": (body(pan=None), "pan"),
    "amount a number": (body(amount=10.00), "amount"),
    "amount negative": (body(amount="-10.00"), "amount"),
    "amount with an exponent": (body(amount="1e5"), "amount"),
    "amount too exact": (body(amount="10.005", currency="USD"), "amount"),
    "amount without its decimals": (body(amount="10", currency="USD"), "amount"),
    "amount with decimals of no currency": (body(amount="10.5"), "amount"),
    "amount with one decimal": (body(amount="10.0"), "amount"),
    "amount NaN": (body(amount="NaN"), "amount"),
    "amount a bare NaN": (b'{"request_id":"r1","pan":"4111111111111111","amount":NaN}', "body"),
    "amount bare Infinity": (b'{"request_id":"r1","pan":"4111111111111111","amount":-Infinity}', "body"),
    "amount 10^30": (body(amount=f"{10**30}.00"), "amount"),
    "amount with a sign": (body(amount="+10.00"), "amount"),
    "amount with a space": (body(amount=" 10.00"), "amount"),
    "amount with a leading zero": (body(amount="010.00"), "amount"),
    "amount with a separator": (body(amount="1,000.00"), "amount"),
    "amount of other digits": (body(amount="١٠.٠٠"), "amount"),
    "amount empty": (body(amount=""), "amount"),
    "amount true": (body(amount=True), "amount"),
    "yen with decimals": (body(amount="10.00", currency="JPY"), "amount"),
    "currency unknown": (body(currency="XXX"), "currency"),
    "currency in lower case": (body(currency="usd"), "currency"),
    "currency a list": (body(currency=["USD"]), "currency"),
    "mcc of letters": (body(mcc="54a1"), "mcc"),
    "country of three letters": (body(country="USA"), "country"),
    "ip": (body(ip="1.2.3.256"), "ip"),
    "expiry": (body(expiry="2028-13"), "expiry"),
    "cvv_match a string": (body(cvv_match="true"), "cvv_match"),
    "capture a number": (body(capture=1), "capture"),
    "merchant_id is the PAN": (body(merchant_id=PAN), "merchant_id"),
    "metadata a list": (body(metadata=[]), "metadata"),
    "metadata of 21 pairs": (body(metadata={str(n): "" for n in range(21)}), "metadata"),
    "metadata with a key of 65": (body(metadata={"k" * 65: ""}), "metadata"),
    "metadata with an empty key": (body(metadata={"": "x"}), "metadata"),
    "metadata with a value of 257": (body(metadata={"k": "v" * 257}), "metadata"),
    "metadata with a number": (body(metadata={"k": 1}), "metadata"),
    "metadata with a lone surrogate": (body(metadata={"k": "\ud800"}), "metadata"),
    "metadata with the PAN": (body(metadata={"card": f"it is {PAN}"}), "metadata"),
}


@pytest.fixture
async def topic_ends(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(**client_options(settings))
    await consumer.start()
    yield consumer
    await consumer.stop()


def files_with_pan(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and PAN.encode() in path.read_bytes()]


async def ends(consumer: AIOKafkaConsumer, settings: Settings) -> dict[TopicPartition, int]:
    """Where every topic ends that the gateway writes to."""
    return dict(
        await consumer.end_offsets(
            [
                TopicPartition(topic.name, number)
                for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS)
                for number in range(settings.partitions)
            ]
        )
    )


async def test_bad_input_is_refused_with_the_field_and_leaves_nothing(
    client: Client,
    settings: Settings,
    topic_ends: AIOKafkaConsumer,
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
) -> None:
    caplog.set_level(logging.DEBUG)
    before = await ends(topic_ends, settings)
    for name, (data, field) in BAD.items():
        with subtests.test(name):
            response = await client.post("/payments/authorize", data=data, headers={"Content-Type": JSON})
            text = await response.text()
            assert response.status == 400, text
            assert response.content_type == "application/problem+json"
            problem = json.loads(text)
            assert problem["status"] == 400 and problem["title"] == "Bad Request"
            assert [error["field"] for error in problem["errors"]] == [field]
            assert problem["errors"][0]["message"]
            assert PAN not in text and PAN not in str(response.headers)
    assert await ends(topic_ends, settings) == before
    assert PAN not in caplog.text
    assert not files_with_pan(settings.home)


async def test_every_field_at_fault_is_named_at_once(client: Client) -> None:
    response = await client.post("/payments/authorize", json={"pan": "1", "amount": 1, "currency": "?"})
    fields = [error["field"] for error in (await response.json())["errors"]]
    assert fields == ["pan", "amount", "currency", "request_id"]


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_ten_megabytes_are_refused_as_too_large(client: Client, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b" " * 65_536

    data = chunks() if chunked else b" " * (10 << 20)
    response = await client.post("/payments/authorize", data=data, headers={"Content-Type": JSON})
    assert response.status == 413
    assert (await response.json())["type"] == "urn:mini-visa:problem:too-large"


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "application/xml"]
)
async def test_another_media_type_is_415(client: Client, content_type: str) -> None:
    response = await client.post("/payments/authorize", data=body(), headers={"Content-Type": content_type})
    assert response.status == 415


async def test_a_body_that_does_not_arrive_is_408(gateway_for: GatewayRunner) -> None:
    async with gateway_for(gateway_deadline_s=0.2) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(
            b"POST /payments/authorize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        status = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
    assert status.split()[1] == b"408"


async def test_an_idempotency_key_carries_the_request_id_or_agrees_with_it(client: Client) -> None:
    for headers, data, field in (
        ({"Idempotency-Key": "r2"}, body(), "Idempotency-Key"),
        ({"Idempotency-Key": "r 2"}, without("request_id"), "Idempotency-Key"),
        ({"Idempotency-Key": ""}, without("request_id"), "Idempotency-Key"),
    ):
        response = await client.post(
            "/payments/authorize", data=data, headers={"Content-Type": JSON, **headers}
        )
        assert response.status == 400
        assert [error["field"] for error in (await response.json())["errors"]] == [field]


async def test_unknown_paths_and_methods_are_problems(client: Client) -> None:
    for method, path, status, allow in (
        ("GET", "/nothing", 404, None),
        ("POST", "/payments/authorize/", 404, None),
        ("GET", "/payments/authorize", 405, "POST"),
        ("DELETE", "/payments", 405, "GET"),
        ("PUT", "/accounts", 405, "POST"),
        ("POST", "/healthz", 405, "GET"),
        ("GET", f"/payments/{PAN}", 404, None),
        ("GET", f"/accounts/{PAN}", 404, None),
        ("GET", f"/accounts/tok_{PAN}", 404, None),
        ("GET", f"/payments/pay_{PAN}_1", 404, None),
    ):
        response = await client.request(method, path)
        assert (response.status, response.headers.get("Allow")) == (status, allow), (method, path)
        assert response.content_type == "application/problem+json"
        assert (await response.json())["status"] == status
        assert PAN not in await response.text()


async def test_a_pan_in_a_path_or_a_query_is_not_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await client.get(f"/payments/{PAN}")
    await client.get(f"/accounts/{PAN}/entries?cursor={PAN}")
    await client.get(f"/{PAN}")
    await client.get(f"/payments?pan={PAN}")
    assert "/accounts/{account_id}/entries 404" in caplog.text
    assert PAN not in caplog.text
