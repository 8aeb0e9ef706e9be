"""Streams of alerts: whose they are, how many there may be, and what ends one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from mini_visa import topics
from mini_visa.domain.commands import FraudAlert
from mini_visa.domain.payment import RuleHit
from mini_visa.gateway import alert_stream, endpoints
from mini_visa.gateway.access import create_key, keys_file, list_keys, revoke_key
from mini_visa.gateway.app import GATEWAY
from mini_visa.settings import Settings

from .conftest import Client, GatewayRunner

pytestmark = pytest.mark.broker

HIT = RuleHit(
    rule="velocity-count-60s", version=1, outcome="decline", metric="count", value=11, threshold=10,
    window_s=60, response_code="65",
)  # fmt: skip


def bearer(settings: Settings, client: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(keys_file(settings), client, ['risk:read'])}"}


@pytest.fixture
async def alerts(cluster: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(bootstrap_servers=cluster) as made:
        yield made


async def write(alerts: AIOKafkaProducer, count: int) -> None:
    for number in range(count):
        value = FraudAlert(
            alert_id=f"alert-0-{number}-x", account="tok_a", request_id=f"r-{number}", at=1, score=1,
            amount=1, currency="USD", hit=HIT, merchant_id="m",
        )  # fmt: skip
        await alerts.send(topics.FRAUD_ALERTS.name, topics.FRAUD_ALERTS.encode(value), b"tok_a", 0)
    await alerts.flush()


async def none_is_left(client: Client) -> None:
    async with asyncio.timeout(20):
        while client.app[GATEWAY].streams:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_revoked_key_loses_its_stream(
    settings: Settings, gateway_for: GatewayRunner, alerts: AIOKafkaProducer
) -> None:
    lost, kept = bearer(settings, "lost"), bearer(settings, "kept")
    async with (
        gateway_for(auth="required") as client,
        client.get("/alerts/stream", headers=lost) as first,
        client.get("/alerts/stream", headers=kept) as second,
    ):
        for stream in (first, second):
            assert b"from here on" in await stream.content.readuntil(b"\n\n")
        (key_id,) = [key.key_id for key in list_keys(keys_file(settings)) if key.name == "lost"]
        revoke_key(keys_file(settings), key_id)
        async with asyncio.timeout(10):
            assert await first.content.read() == b"", "it ends in order"
        await write(alerts, 1)
        async with asyncio.timeout(10):
            assert b"event: alert" in await second.content.readuntil(b"\n\n")


async def test_one_key_cannot_have_all_streams(
    settings: Settings, gateway_for: GatewayRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_stream, "STREAMS_PER_CLIENT_MAX", 1)
    greedy, other = bearer(settings, "greedy"), bearer(settings, "other")
    async with gateway_for(auth="required") as client, client.get("/alerts/stream", headers=greedy) as first:
        assert first.status == 200
        assert (await client.get("/alerts/stream", headers=greedy)).status == 429
        async with client.get("/alerts/stream", headers=other) as second:
            assert second.status == 200


async def test_a_stream_ends_when_it_is_old(
    gateway_for: GatewayRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_stream, "STREAM_S_MAX", 0.1)
    async with gateway_for() as client, client.get("/alerts/stream") as stream, asyncio.timeout(10):
        assert (await stream.content.read()).startswith(b"retry: 2000")


async def test_a_client_that_reads_nothing_loses_its_stream(
    gateway_for: GatewayRunner, alerts: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "STALLED_S", 0.5)
    async with gateway_for() as client:
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 10)
            stalled.connect(("127.0.0.1", client.port))
            stalled.sendall(b"GET /alerts/stream HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                while not client.app[GATEWAY].streams:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            assert client.app[GATEWAY].streams, "with nothing to read it is no slower than any other"
            begun = time.monotonic()
            await write(alerts, 400)  # 150 kB
            await none_is_left(client)
            assert time.monotonic() - begun < 15.0
