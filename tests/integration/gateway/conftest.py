"""A cluster with the real topics, a running gateway on it, and what may answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from mini_visa.broker import EmbeddedBroker
from mini_visa.gateway.app import create
from mini_visa.gateway.server import server
from mini_visa.kafka import apply_topics
from mini_visa.settings import Settings

SettingsBuilder = Callable[..., Settings]


class Client:
    """Talks to one running gateway over a real socket."""

    def __init__(self, session: ClientSession, app: web.Application, port: int) -> None:
        self.get, self.post, self.patch, self.request = (
            session.get,
            session.post,
            session.patch,
            session.request,
        )
        self.app = app
        self.port = port


GatewayRunner = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[str]:
    """HOST:PORT of a Kafka of the gateway's tests alone, with the real topics in it."""
    given = os.environ.get("MINI_VISA_TEST_GATEWAY_BROKER")
    started = None
    if given is None:
        started = EmbeddedBroker(tmp_path_factory.mktemp("gateway-broker"), libs_cache=jars_cache)
        started.start()
        given = started.address
    asyncio.run(apply_topics(Settings(broker=f"kafka://{given}")))
    assert given is not None
    yield given
    if started is not None:
        started.kill()


@pytest.fixture
def settings(settings_for: SettingsBuilder, cluster: str) -> Settings:
    return settings_for(cluster)


@pytest.fixture
def gateway_for(settings_for: SettingsBuilder, cluster: str) -> GatewayRunner:
    """Runs a gateway with changed settings: `async with gateway_for(gateway_in_flight_max=1) as client`."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Client]:
        app = create(settings_for(cluster, **changes))
        runner = server(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            async with ClientSession(f"http://127.0.0.1:{port}") as session:
                yield Client(session, app, port)
        finally:
            await runner.cleanup()

    return run


async def until_it_can_be_read_from(client: Client) -> None:
    """Payments can be made before the read model is open; lookups are 503 until then."""
    async with asyncio.timeout(30):
        while (await client.get("/alerts")).status == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
async def client(gateway_for: GatewayRunner) -> AsyncIterator[Client]:
    async with gateway_for() as client:
        yield client
