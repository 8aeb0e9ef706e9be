"""A processor on a worker: its plan, its membership, its ownerships, its ticks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer

from mini_visa import topics
from mini_visa.errors import UserError
from mini_visa.kafka import apply_topics, await_broker, changelog_plan, dead_letters_plan
from mini_visa.settings import Settings
from mini_visa.streams import metrics
from mini_visa.streams.membership import Membership
from mini_visa.streams.ownership import Ownership, Pace, Plan, State
from mini_visa.streams.poison import Fatal, poison
from mini_visa.streams.processor import Processor
from mini_visa.streams.store import Identity
from mini_visa.streams.transaction_wire import TRANSACTION_VERSION
from mini_visa.streams.wire import TopicIdentity, Wire

log = logging.getLogger(__name__)


class Runtime:
    """One processor in this process: as many ownerships as partitions are assigned."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.group
        self.ownerships: dict[int, Ownership] = {}
        self._pace = Pace()
        self._acquisitions: dict[int, asyncio.Task[None]] = {}
        self._stopping = False
        self._turn = asyncio.Lock()
        """Held by whoever moves ownerships: a rebalance, or a stop that comes in the middle of one."""
        self._epoch = 0
        """Counts revocations: what was begun under an older one is void."""
        self._ticker: asyncio.Task[None] | None = None
        self._tick_producer: AIOKafkaProducer | None = None
        settings = plan.settings
        self._membership = Membership(
            group=plan.group,
            topic=plan.source,
            instance=settings.instance or plan.service,
            session_timeout_s=settings.session_timeout_s,
            rebalance_timeout_s=settings.drain_timeout_s + 5.0,
            on_disk=self._on_disk,
            revoked=self._revoked,
            assigned=self._assigned,
            processor=plan.processor.name,
            client_options=plan.client_options,
        )

    async def start(self) -> None:
        await self._membership.join()
        if self.plan.processor.tick is not None:
            self._tick_producer = AIOKafkaProducer(
                client_id=f"{self.name}.ticks",
                enable_idempotence=True,
                linger_ms=0,
                retry_backoff_ms=20,
                **self.plan.client_options,
            )
            await self._tick_producer.start()
            self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Drain what runs, release everything, leave. Bounded: one that takes too long ends the process."""
        self._stopping = True
        try:
            async with asyncio.timeout(self.plan.settings.drain_timeout_s):
                if self._ticker is not None:
                    self._ticker.cancel()
                async with self._turn:
                    await self._park()
                    await self._release(self.ownerships)
                if self._tick_producer is not None:
                    await self._tick_producer.stop()
                await self._membership.leave()
        except TimeoutError:
            poison(
                f"{self.name} (stop)",
                Fatal(f"not drained within {self.plan.settings.drain_timeout_s:.0f} s"),
            )
        except BaseException as error:
            poison(f"{self.name} (stop)", error)

    @property
    def ready(self) -> bool:
        """Joined, and every assigned partition is running."""
        return self._membership.joined and all(
            ownership.state is State.RUNNING for ownership in self.ownerships.values()
        )

    # -- rebalances ------------------------------------------------------------------------------

    async def _revoked(self) -> None:
        async with self._turn:
            await self._park()

    async def _assigned(self, partitions: set[int], kept: bool) -> None:
        async with self._turn:
            if not self._stopping:
                await self._take(partitions, kept)

    async def _park(self) -> None:
        """Every partition is given back: acquisitions end, running batches commit, all are parked."""
        self._epoch += 1
        for task in self._acquisitions.values():
            task.cancel()
        await asyncio.gather(*self._acquisitions.values(), return_exceptions=True)
        self._acquisitions.clear()
        running = [own for own in self.ownerships.values() if own.state is State.RUNNING]
        try:
            async with asyncio.timeout(self.plan.settings.drain_timeout_s):
                await asyncio.gather(*(ownership.drain() for ownership in running))
        except TimeoutError:
            raise Fatal(
                f"a running batch did not commit within {self.plan.settings.drain_timeout_s:.0f} s of the "
                "partitions being revoked"
            ) from None

    async def _take(self, partitions: set[int], kept: bool) -> None:
        """Returns quickly: acquisitions go on in the background, so that heartbeats do too."""
        staying = {
            partition
            for partition, ownership in self.ownerships.items()
            if kept and partition in partitions and ownership.state is State.PARKED
        }
        await self._release(set(self.ownerships) - staying)
        metrics.ASSIGNED.labels(self.plan.processor.name).set(len(partitions))
        for partition in sorted(staying):
            self.ownerships[partition].resume()
        for partition in sorted(partitions - staying):
            ownership = Ownership(self.plan, partition, poison, self._pace)
            self.ownerships[partition] = ownership
            self._acquisitions[partition] = asyncio.create_task(self._acquire(ownership, self._epoch))

    async def _acquire(self, ownership: Ownership, epoch: int) -> None:
        try:
            await ownership.acquire(lambda: self._epoch == epoch)
        except asyncio.CancelledError:
            if self._epoch == epoch:
                ownership.fail("acquire", RuntimeError("cancelled from outside"))
            raise
        except BaseException as error:
            ownership.fail("acquire", error)
        finally:
            if self._epoch == epoch:
                self._acquisitions.pop(ownership.partition, None)

    async def _release(self, partitions: Iterable[int]) -> None:
        leaving = [self.ownerships.pop(partition) for partition in list(partitions)]
        await asyncio.gather(*(ownership.release() for ownership in leaving))

    def _on_disk(self) -> list[int]:
        if not self.plan.state.is_dir():
            return []
        return [int(path.name) for path in self.plan.state.iterdir() if path.name.isdigit()]

    # -- ticks -----------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Tell each running partition, through its own source, that time has passed."""
        processor, producer = self.plan.processor, self._tick_producer
        assert processor.tick is not None and producer is not None
        ticks = metrics.TICKS.labels(processor.name)
        try:
            while True:
                await asyncio.sleep(self.plan.settings.tick_interval_s)
                now = int(time.time() * 1000)
                value = processor.source.encode(processor.tick())
                ownerships = list(self.ownerships.items())  # a rebalance may come between two sends
                waiting = [
                    await producer.send(
                        self.plan.source, value, key=b"", partition=partition, timestamp_ms=now
                    )
                    for partition, ownership in ownerships
                    if ownership.state is State.RUNNING
                ]
                await asyncio.gather(*waiting)
                ticks.inc(len(waiting))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            poison(f"{self.name} (ticks)", error)


async def make_plans(
    processors: Iterable[Processor],
    *,
    service: str,
    settings: Settings,
    client_options: dict[str, Any],
) -> list[Plan]:
    """Check the cluster against the processors, create what only the kernel uses, and fix the plans.

    Raises `Fatal` when a topic is missing or two topics that must be co-partitioned are not.
    """
    processors = list(processors)
    try:
        await await_broker(settings)
    except UserError as error:
        raise Fatal(str(error)) from None
    wire = Wire(f"{settings.environment}.{service}", client_options)
    await wire.start()
    try:
        await _check_transactions(wire)
        names = {topic.name for processor in processors for topic in (processor.source, *processor.sinks)}
        _, found = await wire.topics(sorted(names))
        missing = sorted(names - set(found))
        if missing:
            raise Fatal(f"no such topic: {', '.join(missing)}. Create the topics: mini-visa topics apply")
        for processor in processors:
            _check_partitions(processor, found)
        own = {
            _changelog(settings, service, processor): found[processor.source.name].partitions
            for processor in processors
        }
        dead_partitions = max(found[processor.source.name].partitions for processor in processors)
        await apply_topics(
            settings,
            [
                *(changelog_plan(settings, name, partitions) for name, partitions in own.items()),
                dead_letters_plan(settings, service, dead_partitions),
            ],
        )
        dead_letters = topics.dead_letters(service)
        cluster, found = await wire.topics(sorted(names | set(own) | {dead_letters}))
        plans = []
        for processor in processors:
            group = f"{settings.environment}.{service}.{processor.name}"
            changelog = _changelog(settings, service, processor)
            source = found[processor.source.name]
            plans.append(
                Plan(
                    processor=processor,
                    service=service,
                    group=group,
                    changelog=changelog,
                    dead_letters=dead_letters,
                    partition_counts={name: topic.partitions for name, topic in found.items()},
                    identity=Identity(cluster, source.id, found[changelog].id),
                    state=settings.home / "state" / settings.environment / service / processor.name,
                    settings=settings,
                    client_options=client_options,
                )
            )
        return plans
    finally:
        await wire.stop()


async def _check_transactions(wire: Wire) -> None:
    version = (await wire.features()).get(TRANSACTION_VERSION, 0)
    if version < 2:
        raise Fatal(
            f"this cluster's {TRANSACTION_VERSION} is {version}, and 2 is needed: Kafka 4.0 or newer, with "
            f"kafka-features.sh --bootstrap-server HOST:PORT upgrade --feature {TRANSACTION_VERSION}=2"
        )


def _changelog(settings: Settings, service: str, processor: Processor) -> str:
    return f"{settings.environment}.{service}.{processor.name}.changelog"


def _check_partitions(processor: Processor, found: dict[str, TopicIdentity]) -> None:
    source = processor.source
    for sink in processor.sinks:
        if sink.key == source.key and found[sink.name].partitions != found[source.name].partitions:
            raise Fatal(
                f"{processor.name}: {source.name} has {found[source.name].partitions} partitions and "
                f"{sink.name} {found[sink.name].partitions}; both are keyed by {source.key}, so a record "
                "about one must be on the same partition number of both. Create them anew with equal numbers"
            )
