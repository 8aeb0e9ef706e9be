"""Everything has a bound, and who runs into one is told what is certain."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from typing import Any

import aiohttp
from aiohttp import ClientSession

from mini_visa.domain.commands import CapturePayment, TimeOutReversal
from mini_visa.settings import Settings

from .conftest import GatewayRunner, until_it_can_be_read_from
from .downstream import Downstream


def request() -> dict[str, Any]:
    return {"request_id": secrets.token_hex(8), "pan": "4111111111111111", "amount": "10.00"}


async def test_requests_beyond_those_in_flight_are_refused_at_once(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    async with (
        gateway_for(gateway_in_flight_max=2, gateway_deadline_s=1.0) as client,
        Downstream(settings, rule=lambda _: None) as downstream,
    ):
        responses = await asyncio.gather(
            *(client.post("/payments/authorize", json=request()) for _ in range(5))
        )
        assert sorted(response.status for response in responses) == [503, 503, 503, 504, 504]
        for response in responses:
            if response.status == 503:
                assert int(response.headers["Retry-After"]) >= 1
                assert (await response.json())["type"] == "urn:mini-visa:problem:busy"
        await downstream.saw(4)
        assert len({command.request_id for command in downstream.seen}) == 2, "the others left nothing"
        assert (await client.get("/healthz")).status == 200
        again = await client.post("/payments/authorize", json=request())
        assert again.status == 504, "there is room again"


async def test_reads_that_wait_keep_out_other_reads_and_no_payment(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    async with (
        gateway_for(gateway_in_flight_max=1, gateway_deadline_s=2.0) as client,
        Downstream(settings, rule=lambda _: None),
    ):
        await until_it_can_be_read_from(client)
        wait = {"Consistency-Token": "0:999999999999999999"}
        waiting = asyncio.create_task(client.get("/payments/pay_1abc_7", headers=wait))
        await asyncio.sleep(0.3)
        assert (await client.get("/payments/pay_1abc_7")).status == 503
        assert (await client.post("/payments/authorize", json=request())).status == 504, "it was let in"
        assert (await waiting).status == 504


async def test_who_is_slow_to_send_has_no_place_that_others_wait_for(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    async with (
        gateway_for(gateway_in_flight_max=1, gateway_deadline_s=1.0) as client,
        Downstream(settings, rule=lambda _: None),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(
            b"POST /payments/authorize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        await asyncio.sleep(0.3)
        assert (await client.post("/payments/authorize", json=request())).status == 504, "it was let in"
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()


async def test_a_client_that_sends_too_much_is_told_when_to_go_on(gateway_for: GatewayRunner) -> None:
    async with gateway_for(gateway_rate_per_s=0.1, gateway_burst=1) as client:
        assert (await client.post("/payments/authorize", json={})).status == 400
        refused = await client.post("/payments/authorize", json=request())
        assert refused.status == 429 and 1 <= int(refused.headers["Retry-After"]) <= 10
        assert (await client.get("/healthz")).status == 200, "probes are not limited"


async def test_a_command_without_an_answer_is_504_and_stands(
    gateway_for: GatewayRunner, settings: Settings
) -> None:
    async with (
        gateway_for(gateway_deadline_s=0.3) as client,
        Downstream(settings, rule=lambda _: None) as downstream,
    ):
        response = await client.post(
            "/payments/pay_1abc_7/captures", json={"request_id": secrets.token_hex(8)}
        )
        assert response.status == 504
        assert (await response.json())["type"] == "urn:mini-visa:problem:outcome-unknown"
        await asyncio.sleep(0.2)
    (command,) = downstream.seen
    assert isinstance(command, CapturePayment), "no reversal: a capture is not undone by its time-out"


async def test_sigterm_answers_what_is_in_flight_takes_nothing_new_and_ends(settings: Settings) -> None:
    environment = {
        **os.environ,
        "MINI_VISA_HOME": str(settings.home),
        "MINI_VISA_BROKER": settings.broker,
        "MINI_VISA_ENVIRONMENT": settings.environment,
        "MINI_VISA_GATEWAY_PORT": "0",
        "MINI_VISA_GATEWAY_DEADLINE_S": "3",
    }
    async with Downstream(settings, rule=lambda _: None) as downstream:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mini_visa.cli", "gateway",
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                while b"listening on" not in (line := await process.stdout.readline()):
                    assert line, "the gateway ended"
            url = line.decode().split("listening on ")[1].split()[0].rstrip('",')
            async with ClientSession(url) as session:
                waiting = asyncio.create_task(session.post("/payments/authorize", json=request()))
                await downstream.saw(1)
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(10):
                    while "Shutting" not in await (await session.get("/readyz")).text():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    refused = await session.post("/payments/authorize", json=request())
                    assert refused.status == 503
                    assert (await refused.json())["type"] == "urn:mini-visa:problem:shutting-down"
                    assert (await waiting).status == 504
            async with asyncio.timeout(20):
                assert await process.wait() == 0
            try:
                async with ClientSession(url) as session:
                    await session.get("/healthz")
                raise AssertionError("it still listens")
            except aiohttp.ClientConnectorError:
                pass
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await downstream.saw(2)
    assert sum(isinstance(command, TimeOutReversal) for command in downstream.seen) == 1
    assert len(downstream.seen) == 2
