"""/readyz: could an authorization be answered now? On a whole system, of which parts are taken away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from whole_system import Up, left_over, make_home

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Up]:
    """Quick to notice: a deadline of 1 s, ticks of 0.2 s."""
    started = Up(
        make_home(tmp_path_factory.mktemp("readiness"), jars_cache),
        MINI_VISA_GATEWAY_DEADLINE_S="1",
        MINI_VISA_TICK_INTERVAL_S="0.2",
    )
    try:
        started.until("Ready")
        yield started
    finally:
        started.end()


@pytest.fixture
async def http(system: Up) -> AsyncIterator[ClientSession]:
    async with ClientSession(system.state().gateway_url) as session:
        yield session


async def until(http: ClientSession, status: int, within_s: float = 30.0) -> str:
    """What it says of itself once it answers so."""
    async with asyncio.timeout(within_s):
        while True:
            response = await http.get("/readyz")
            document = await response.json()
            if response.status == status:
                return str(document.get("detail", ""))
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("service", ["risk", "authorization"])
async def test_a_service_that_does_not_answer_is_named_and_its_return_seen(
    system: Up, http: ClientSession, service: str
) -> None:
    assert await until(http, 200) == ""
    pid = system.pids()[service]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert (await until(http, 503)).startswith(f"{service} on ")
        assert (await http.get("/healthz")).status == 200, "it need not be restarted for that"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await until(http, 200) == ""


async def test_ready_means_that_an_authorization_is_answered(http: ClientSession) -> None:
    await until(http, 200)
    card = {"pan": "4111111111111111"}
    assert (await http.post("/accounts", json={"request_id": "a", "limit": "9.00", **card})).status == 200
    paid = await http.post("/payments/authorize", json={"request_id": "b", "amount": "1.00", **card})
    assert (await paid.json())["response_code"] == "00"


async def test_without_a_broker_it_is_not_ready(system: Up, http: ClientSession) -> None:
    """Frozen, not killed: an end of the broker ends the whole system. The last test here."""
    await until(http, 200)
    (java,) = [pid for pid, name in left_over(system.home).items() if name == "java"]
    os.kill(java, signal.SIGSTOP)
    try:
        assert await until(http, 503) == "No working connection to Kafka."
    finally:
        os.kill(java, signal.SIGCONT)
    await until(http, 200)
