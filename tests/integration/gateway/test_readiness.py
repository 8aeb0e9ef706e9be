"""/readyz: could an authorization be answered now? On a whole system, of which parts are taken away."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from whole_system import Up, left_over, make_home

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Up]:
    """Quicker to notice than by default: after 4 s of silence."""
    started = Up(
        make_home(tmp_path_factory.mktemp("readiness"), jars_cache),
        MINI_VISA_GATEWAY_DEADLINE_S="3",
        MINI_VISA_TICK_INTERVAL_S="0.5",
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


async def until(http: ClientSession, status: int, reason: str = "") -> None:
    """Waits until it answers so, for this reason."""
    async with asyncio.timeout(60):
        while True:
            response = await http.get("/readyz")
            detail = (await response.json()).get("detail", "")
            if response.status == status and detail.startswith(reason):
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("service", ["risk", "authorization"])
async def test_a_service_that_does_not_answer_is_named_and_its_return_seen(
    system: Up, http: ClientSession, service: str
) -> None:
    await until(http, 200)
    pid = system.pids()[service]
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(http, 503, f"{service} on ")
        assert (await http.get("/healthz")).status == 200, "it need not be restarted for that"
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(http, 200)


async def test_ready_means_that_an_authorization_is_answered(http: ClientSession) -> None:
    await until(http, 200)
    card = {"pan": "4111111111111111"}
    status, _ = await answer(http, "/accounts", limit="9.00", **card)
    assert status in (200, 409)
    status, paid = await answer(http, "/payments/authorize", amount="1.00", **card)
    assert (status, paid["response_code"]) == (200, "00")


async def answer(http: ClientSession, path: str, **body: str) -> tuple[int, dict[str, Any]]:
    """A busy machine may take longer than this deadline: another request, until one is answered."""
    async with asyncio.timeout(60):
        while True:
            response = await http.post(path, json={"request_id": secrets.token_hex(8), **body})
            if response.status not in (503, 504):
                return response.status, await response.json()
            await asyncio.sleep(0.1)


async def test_without_a_broker_it_is_not_ready(system: Up, http: ClientSession) -> None:
    """Frozen, not killed: an end of the broker ends the whole system. The last test here."""
    await until(http, 200)
    (java,) = [pid for pid, name in left_over(system.home).items() if name == "java"]
    os.kill(java, signal.SIGSTOP)
    try:
        await until(http, 503, "No working connection to Kafka.")
    finally:
        os.kill(java, signal.SIGCONT)
    await until(http, 200)
