"""Topics of the test's own on the real Kafka, what is in them, and a read model beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from postgresql import postgresql, postgresql_binaries, postgresql_database  # noqa: F401 - fixtures

from mini_visa.kafka import admin, apply_topics, dead_letters_plan
from mini_visa.readmodel import Database, ReadModel
from mini_visa.readmodel.apply import Applier, Batch
from mini_visa.readmodel.digest import digest
from mini_visa.readmodel.projector import Projector
from mini_visa.readmodel.testing import EventLog
from mini_visa.readmodel.views import ALERTS_VIEW, PAYMENTS_VIEW
from mini_visa.settings import Settings

PARTITIONS = 4


class World:
    """Settings, topics and views that belong together, on a broker."""

    def __init__(self, settings: Settings, prefix: str = "") -> None:
        self.settings = settings
        self.views = [
            replace(view, topic=replace(view.topic, name=f"{prefix}{view.topic.name}"))
            for view in (PAYMENTS_VIEW, ALERTS_VIEW)
        ]
        self.events, self.alerts = (view.topic.name for view in self.views)
        self.bootstrap = settings.broker.removeprefix("kafka://")
        self.sent: dict[tuple[str, int], int] = {}

    async def create(self, *names: str) -> None:
        await self._admin(
            "create_topics",
            [NewTopic(name, PARTITIONS, 1, topic_configs={"retention.ms": "-1"}) for name in names],
        )

    async def delete(self, *names: str) -> None:
        await self._admin("delete_topics", list(names))
        async with admin(self.settings) as client:
            while set(names) & set(await client.list_topics()):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)

    async def _admin(self, method: str, argument: Any) -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await client.start()
        try:
            for _attempt in range(50):
                answer = await getattr(client, method)(argument)
                errors = getattr(answer, "topic_errors", None) or getattr(answer, "topic_error_codes", [])
                if not any(error[1] for error in errors):
                    return
                await asyncio.sleep(0.1)  # a deleted topic is gone a moment later
            raise AssertionError(f"{method}: {errors}")
        finally:
            await client.close()

    async def send(self, log: EventLog, *, transactional: bool = False, commit: bool = True) -> None:
        """What is new in `log`, each record to its own partition."""
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap}
        if transactional:
            options["transactional_id"] = f"{self.settings.environment}.test"
        async with AIOKafkaProducer(**options) as producer:
            if transactional:
                await producer.begin_transaction()
            acknowledgements = []
            for name, partitions in ((self.events, log.records), (self.alerts, log.alerts)):
                for partition, records in partitions.items():
                    done = self.sent.get((name, partition), 0)
                    for record in records[done:]:
                        acknowledgements.append(
                            await producer.send(name, record.value, record.key, partition, record.timestamp)
                        )
                    if commit:
                        self.sent[name, partition] = len(records)
            await asyncio.gather(*acknowledgements)
            if transactional:
                await (producer.commit_transaction() if commit else producer.abort_transaction())
        if transactional:  # a commit is answered before its markers are there
            async with asyncio.timeout(60):
                while await self.ends() != await self.ends("read_uncommitted"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def ends(self, isolation_level: str = "read_committed") -> dict[TopicPartition, int]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, isolation_level=isolation_level)
        await consumer.start()
        try:
            names = (self.events, self.alerts)
            places = [TopicPartition(name, partition) for name in names for partition in range(PARTITIONS)]
            return await consumer.end_offsets(places)
        finally:
            await consumer.stop()

    async def contents(self, name: str) -> dict[int, list[Any]]:
        """Committed records of each partition."""
        places = [TopicPartition(name, partition) for partition in range(PARTITIONS)]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            found: dict[int, list[Any]] = {partition: [] for partition in range(PARTITIONS)}
            async with asyncio.timeout(60):
                while any([await consumer.position(place) < ends[place] for place in places]):
                    for place, records in (await consumer.getmany(timeout_ms=100)).items():
                        found[place.partition] += records
            return found
        finally:
            await consumer.stop()

    # -- the read model --------------------------------------------------------------------------------

    def projector(self, database: Database, **options: Any) -> Projector:
        return Projector(self.settings, database, views=self.views, **options)

    @asynccontextmanager
    async def running(self, database: Database, **options: Any) -> AsyncIterator[Projector]:
        projector = self.projector(database, **options)
        task = asyncio.create_task(projector.run())
        try:
            yield projector
        finally:
            projector.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def catch_up(self, database: Database) -> Projector:
        """Apply all there is."""
        projector = self.projector(database)
        async with asyncio.timeout(120):
            await projector.run(until=await self.ends())
        return projector

    async def applied(self, read_model: ReadModel, timeout_s: float = 60) -> None:
        """Wait until the read model is where the topics end."""
        last = {
            name: {p: records[-1].offset for p, records in (await self.contents(name)).items() if records}
            for name in (self.events, self.alerts)
        }
        async with asyncio.timeout(timeout_s):
            while True:
                at = {(p.topic, p.partition): p.next_offset for p in await read_model.positions()}
                if all(
                    at.get((name, partition), 0) > offset
                    for name, partitions in last.items()
                    for partition, offset in partitions.items()
                ):
                    return
                await asyncio.sleep(0.02)

    async def folded(self) -> dict[str, tuple[int, str]]:
        """Digest of what the topics make when they are applied from the beginning, in one go, elsewhere."""
        elsewhere = Settings(home=self.settings.home / "fold", environment=self.settings.environment)
        database = Database.of(elsewhere, write=True)
        try:
            await database.migrate()
            applier = Applier(database)
            for view in self.views:
                for partition, records in (await self.contents(view.topic.name)).items():
                    if records:
                        await applier.positions({(view.topic.name, partition): 0})
                        await applier.apply([Batch(view, partition, 0, records, 0)], lambda *_: None)
            return await digest_of(database)
        finally:
            await database.close()


async def digest_of(database: Database) -> dict[str, tuple[int, str]]:
    async with database.snapshot() as connection:
        return await digest(connection)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgresql_database")
    return url


@pytest.fixture
async def world(
    broker: str, settings_for: Callable[..., Settings], environment: str, database_url: str
) -> AsyncIterator[World]:
    made = World(
        settings_for(broker, database_url=database_url, partitions=PARTITIONS), prefix=f"{environment}."
    )
    await made.create(made.events, made.alerts)
    await apply_topics(made.settings, [dead_letters_plan(made.settings, "projection")])
    yield made
    await made.delete(made.events, made.alerts)


@pytest.fixture
async def database(world: World) -> AsyncIterator[Database]:
    made = Database.of(world.settings, write=True)
    await made.migrate()
    yield made
    await made.close()


@pytest.fixture
async def read_model(world: World, database: Database) -> AsyncIterator[ReadModel]:
    async with ReadModel(Database.of(world.settings), topic=world.events) as opened:
        yield opened


def where(records: Sequence[Any]) -> list[int]:
    return [record.offset for record in records]
