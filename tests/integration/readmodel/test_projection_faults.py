"""The projection when something else fails: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import warm
from aiohttp import ClientError, ClientSession
from postgresql import fresh_postgresql  # noqa: F401 - a fixture

from mini_visa import topics
from mini_visa.broker import EmbeddedBroker
from mini_visa.kafka import apply_topics
from mini_visa.readmodel import Database, ReadModel
from mini_visa.readmodel.projector import ProjectionStopped
from mini_visa.readmodel.testing import EventLog, random_log
from mini_visa.supervisor.ports import free_port

from .conftest import PARTITIONS, World, digest_of

pytestmark = pytest.mark.broker

KILLS = 5


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLite, unless a test says otherwise."""
    return ""


async def keep_paying(world: World, log: EventLog, enough: asyncio.Event) -> None:
    """A few hundred payments a second, in transactions as the services make them."""
    accounts = list(log.accounts)
    while not enough.is_set():
        for account in accounts:
            log.capture(log.authorize(account, 100, metadata={"n": str(len(log.payments))}))
        log.tick()
        await world.send(log, transactional=True)
        await asyncio.sleep(0.05)


async def test_a_locked_file_is_waited_for(world, database, read_model):
    log = random_log(50, accounts=5)
    other = Database.of(world.settings, write=True)
    async with world.running(database):
        async with other.transaction():
            await world.send(log)
            await asyncio.sleep(6)  # longer than SQLite itself waits
        await world.applied(read_model)
    await other.close()
    assert await digest_of(database) == await world.folded()


async def test_patience_has_an_end_and_nothing_is_half_done(world, database):
    impatient = World(world.settings.model_copy(update={"database_patience_s": 0.1}))
    impatient.views, impatient.events, impatient.alerts = world.views, world.events, world.alerts
    await world.send(random_log(50, accounts=5))
    empty = await digest_of(database)
    other = Database.of(world.settings, write=True)
    async with other.transaction():
        with pytest.raises(ProjectionStopped, match=r"readmodel\.sqlite: database is locked"):
            await impatient.catch_up(database)
    await other.close()
    assert await digest_of(database) == empty
    await world.catch_up(database)
    assert await digest_of(database) == await world.folded()


async def test_a_table_that_is_gone_is_not_waited_for(world, database):
    await world.send(random_log(10, accounts=5))
    async with database.transaction() as connection:
        await connection.exec_driver_sql("DROP TABLE payments")
    with pytest.raises(Exception, match="no such table: payments"):
        await asyncio.wait_for(world.catch_up(database), 30)


async def test_a_database_server_that_crashes_and_comes_back_is_waited_for(
    world,
    fresh_postgresql,  # noqa: F811
):
    settings = world.settings.model_copy(update={"database_url": fresh_postgresql.url})
    database = Database.of(settings, write=True)
    await database.migrate()
    reader = Database.of(settings)
    read_model = ReadModel(reader, topic=world.events)
    log = random_log(50, accounts=20)
    there = World(settings)
    there.views = world.views
    async with there.running(database) as projector:
        enough = asyncio.Event()
        paying = asyncio.create_task(keep_paying(world, log, enough))
        for _ in range(3):
            await asyncio.sleep(1)
            await asyncio.to_thread(fresh_postgresql.stop, signal.SIGQUIT)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(fresh_postgresql.start)
        enough.set()
        await paying
        await world.applied(read_model)
        assert projector.records > 0
    assert await digest_of(database) == await world.folded()
    await read_model.close()
    await database.close()


# -- the service, killed -----------------------------------------------------------------------------


class Service:
    """`mini-visa worker projection` as a process."""

    def __init__(self, world: World, log: Path) -> None:
        settings = world.settings
        self.environment = os.environ | {
            "MINI_VISA_HOME": str(settings.home),
            "MINI_VISA_ENVIRONMENT": settings.environment,
            "MINI_VISA_BROKER": settings.broker,
            "MINI_VISA_DATABASE_URL": settings.database_url,
            "MINI_VISA_SESSION_TIMEOUT_S": "6",
            "MINI_VISA_WEB_PORT": str(free_port()),
        }
        self.log = log
        self.process: warm.Warm | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = warm.start(
            "mini_visa.cli", ["worker", "projection"], environment=self.environment, log=self.log
        )

    async def ready(self) -> None:
        url = f"http://127.0.0.1:{self.environment['MINI_VISA_WEB_PORT']}/readyz"
        async with asyncio.timeout(60), ClientSession() as http:
            while True:
                assert self.process is not None and self.process.poll() is None, self.log.read_text()
                with contextlib.suppress(ClientError):
                    if (await http.get(url)).status == 200:
                        return
                await asyncio.sleep(0.05)

    def stop(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(30)


@pytest.fixture
def service_database(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else request.getfixturevalue("postgresql_database")


@pytest.fixture
async def service_world(fresh_broker: EmbeddedBroker, settings_for, service_database: str) -> World:
    settings = settings_for(fresh_broker.address, database_url=service_database, partitions=PARTITIONS)
    await apply_topics(settings)
    return World(settings)


@pytest.mark.slow
@pytest.mark.parametrize("service_database", ["sqlite", "postgresql"], indirect=True)
async def test_the_service_killed_under_load_leaves_every_event_once(service_world, tmp_path):
    world = service_world
    log = EventLog(PARTITIONS)
    for number in range(40):
        log.open(f"tok_{number}", limit=10**9)
    service = Service(world, tmp_path / "log")
    read_model = await ReadModel.open(world.settings)
    enough = asyncio.Event()
    paying = asyncio.create_task(keep_paying(world, log, enough))
    draw = random.Random(7)
    applied = []
    try:
        for _ in range(KILLS):
            service.start()
            applied.append(sum(position.next_offset for position in await read_model.positions()))
            async with asyncio.timeout(60):  # at work again, then at any moment
                while sum(p.next_offset for p in await read_model.positions()) <= applied[-1]:
                    assert service.process.poll() is None, service.log.read_text()[-2000:]
                    await asyncio.sleep(0.05)
            await asyncio.sleep(draw.random())
            assert service.stop(signal.SIGKILL) == -signal.SIGKILL
        enough.set()
        await paying
        service.start()
        await service.ready()
        await world.applied(read_model)
        assert service.stop(signal.SIGTERM) == 0, service.log.read_text()[-2000:]
    finally:
        paying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await paying
        if service.process is not None and service.process.poll() is None:
            service.stop(signal.SIGKILL)
    database = Database.of(world.settings)
    found = await digest_of(database)
    await database.close()
    await read_model.close()
    assert found == await world.folded()
    events = sum(map(len, (await world.contents(topics.PAYMENT_EVENTS.name)).values()))
    ticks = sum(b'"time_passed/1"' in r.value for records in log.records.values() for r in records)
    assert found["payment_events"][0] == events - ticks
    assert found["payments"][0] == len(log.payments)
    assert len(set(applied)) == KILLS


@pytest.mark.parametrize("service_database", ["sqlite"], indirect=True)
async def test_the_service_says_in_one_line_why_it_ends(service_world, tmp_path):
    world = service_world
    (world.settings.home).mkdir(parents=True, exist_ok=True)
    (world.settings.home / "readmodel.sqlite").write_bytes(b"no database at all, but long enough" * 50)
    service = Service(world, tmp_path / "log")
    service.start()
    assert await asyncio.to_thread(service.process.wait, 60) == 70
    lines = [line for line in service.log.read_text().splitlines() if "CRITICAL" in line]
    assert len(lines) == 1
    assert "readmodel.sqlite: file is not a database" in lines[0]
    assert "Traceback" not in service.log.read_text()
