"""From Kafka into the read model: follows topics from where the database says it stands.

Kafka's own committed offsets are never read; they are written now and then so that Kafka's tools show
the lag. After an assignment each partition is read from the last record that was applied: if that record
is not the one the database remembers, the topic was made anew or the broker lost data, and the read model
has to be rebuilt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import IllegalStateError, KafkaError, OffsetOutOfRangeError

from mini_visa.errors import UserError
from mini_visa.kafka import admin, await_broker, client_options
from mini_visa.readmodel.apply import Applied, Applier, Batch, PositionMoved, checksum
from mini_visa.readmodel.database import Database, first_line, is_connection_lost
from mini_visa.readmodel.views import ALL, View
from mini_visa.settings import Settings
from mini_visa.topics import dead_letters

T = TypeVar("T")
Progress = Callable[[int], None]

SERVICE: Final = "projection"
FETCH_WAIT_MS: Final = 20
"""aiokafka has one fetch in flight per broker: while it waits on idle partitions, busy ones wait too."""
REST_S: Final = 0.05
"""Between two transactions while there is no backlog: a transaction costs as much as the rows of some twenty
events. What comes after a quiet moment does not wait."""
BACKLOG_RECORDS: Final = 4_000
"""Found at once: it is behind, and rests no more."""
BATCHES_AT_ONCE: Final = 3
"""A transaction takes up to this many times the setting `batch_records_max`, of all partitions together. Keys
of indexes are spread evenly, and a page that many of them fall on is written once a transaction."""
CONFIRM_S: Final = 0.25
"""How often an idle partition's `as_of` is brought up to date."""
COMMIT_S: Final = 2.0
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
MOVED_MAX: Final = 20
"""Batches in a row that find their position moved: somebody else applies the same partitions for good."""

REBUILD: Final = "run: mini-visa readmodel rebuild"

log = logging.getLogger(__name__)


class ProjectionStopped(UserError):
    """The projection cannot go on. The text says why and what to do."""


class RebuildNeeded(ProjectionStopped):
    """The log is not the one that the read model was made from."""


async def check_topics(settings: Settings, names: Iterable[str]) -> None:
    """Raises `ProjectionStopped` when one is missing: aiokafka's consumer would wait for it for ever."""
    async with admin(settings) as client:
        found = set(await client.list_topics())
    missing = [name for name in names if name not in found]
    if missing:
        raise ProjectionStopped(f"no topic {', '.join(missing)}: run mini-visa topics apply")


class Projector(ConsumerRebalanceListener):  # type: ignore[misc]
    """Applies `views` to `database` until it is stopped.

    With a `group` the partitions are shared with other projections of it; without, all are taken, and
    nothing is committed to Kafka (a rebuild).
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        views: Sequence[View] = ALL,
        group: str | None = None,
        instance: str | None = None,
    ) -> None:
        self._settings = settings
        self._views = {view.topic.name: view for view in views}
        self._applier = Applier(database)
        self._database = database
        self._group = group
        self._instance = instance
        self._consumer: Any = None
        self._producer: Any = None
        self._assigned: set[TopicPartition] = set()
        """Assigned, but not positioned yet."""
        self._applied: dict[TopicPartition, Applied] = {}
        """Positioned: how far the database is. A partition that is revoked is taken out at once."""
        self._verify: dict[TopicPartition, Applied] = {}
        """Positioned on their last record, which is to be compared before anything is applied."""
        self._joined = False
        """Told its partitions, which may be none."""
        self._until: Mapping[TopicPartition, int] | None = None
        self._stopping = asyncio.Event()
        self._moved = 0
        self._confirm_at = self._commit_at = 0.0
        self.records = 0
        """Applied since the start."""

    @property
    def ready(self) -> bool:
        """Every assigned partition goes on from where the database stands."""
        return self._joined and not self._assigned

    # -- life --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """`run` returns after the batch that it is at."""
        self._stopping.set()

    async def run(
        self, until: Mapping[TopicPartition, int] | None = None, *, progress: Progress | None = None
    ) -> None:
        """Apply what comes until `stop`; with `until`, exactly what is before those offsets.

        `progress` is told the number of records applied so far. Raises `ProjectionStopped` with one line
        that says what to do.
        """
        self._until = until
        await self._start()
        try:
            while not self._stopping.is_set():
                if self._assigned:
                    await self._position()
                if until is not None and self._is_at(until):
                    return
                await self._step()
                if progress is not None:
                    progress(self.records)
        except OffsetOutOfRangeError:
            raise RebuildNeeded(
                f"the log no longer holds the records that follow the read model's position; {REBUILD}"
            ) from None
        except KafkaError as error:
            raise ProjectionStopped(f"Kafka: {error}") from error
        finally:
            await self._stop()

    async def _start(self) -> None:
        names = list(self._views)
        await await_broker(self._settings)
        await check_topics(self._settings, [*names, dead_letters(SERVICE)])
        self._consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            group_id=self._group,
            group_instance_id=self._instance if self._group else None,
            partition_assignment_strategy=(StickyPartitionAssignor,),
            session_timeout_ms=int(self._settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._settings.session_timeout_s * 1000 / 4),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=self._settings.batch_bytes_max,
        )
        self._consumer.subscribe(names, listener=self)
        try:
            await self._consumer.start()
            if not self._group:  # then all partitions are assigned, and nobody says so
                await self.on_partitions_assigned(self._consumer.assignment())
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        if self._group and self._applied:
            with contextlib.suppress(KafkaError):
                await self._commit()
        if self._producer is not None:
            await self._producer.stop()
        if self._consumer is not None:
            await self._consumer.stop()

    # -- assignment --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._joined = False
        for tp in revoked:
            self._assigned.discard(tp)
            self._applied.pop(tp, None)
            self._verify.pop(tp, None)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Quick: the database is asked in `_position`, for no heartbeat is sent while this runs."""
        for tp in assigned:
            self._consumer.seek(tp, 0)  # any valid position: keeps aiokafka from looking for a committed one
            self._consumer.pause(tp)
            self._assigned.add(tp)
        self._joined = True

    async def _position(self) -> None:
        """Seek each newly assigned partition to where the database stands."""
        wanted = sorted(self._assigned)
        beginnings = await self._consumer.beginning_offsets(wanted)
        stored = await self._patiently(
            lambda: self._applier.positions({(tp.topic, tp.partition): beginnings[tp] for tp in wanted})
        )
        ends = await self._consumer.end_offsets(wanted)  # after the database: another may be ahead of us
        for tp in wanted:
            if tp not in self._assigned:
                continue  # revoked meanwhile
            applied = stored[tp.topic, tp.partition]
            if applied.next_offset > ends[tp]:
                raise RebuildNeeded(
                    f"{tp.topic}/{tp.partition}: the read model is at {applied.next_offset}, the log ends at "
                    f"{ends[tp]}: the topic was made anew or the broker lost data; {REBUILD}"
                )
            if applied.next_offset < beginnings[tp]:
                raise RebuildNeeded(
                    f"{tp.topic}/{tp.partition}: the read model is at {applied.next_offset}, the log begins "
                    f"at {beginnings[tp]}: records expired before they were applied; {REBUILD}"
                )
            if applied.last_offset >= beginnings[tp]:
                self._verify[tp] = applied
                self._consumer.seek(tp, applied.last_offset)
            else:
                self._consumer.seek(tp, applied.next_offset)
            self._applied[tp] = applied
            self._assigned.discard(tp)
            self._consumer.resume(tp)

    def _verified(self, tp: TopicPartition, records: list[Any]) -> list[Any]:
        """`records` without the last applied one, which must be the first of them."""
        applied = self._verify.pop(tp, None)
        if applied is None:
            return records
        first = records[0]
        if first.offset != applied.last_offset or checksum(first) != applied.last_checksum:
            raise RebuildNeeded(
                f"{tp.topic}/{tp.partition}: record {applied.last_offset} is not the one that the read model "
                f"was made from: the topic was made anew; {REBUILD}"
            )
        return records[1:]

    # -- records -----------------------------------------------------------------------------------

    async def _step(self) -> None:
        """One transaction over all partitions that have something new."""
        fetched = await self._consumer.getmany(
            timeout_ms=FETCH_WAIT_MS * 2, max_records=self._settings.batch_records_max * BATCHES_AT_ONCE
        )
        batches: dict[TopicPartition, Batch] = {}
        for tp, records in fetched.items():
            if tp not in self._applied:
                continue
            records = self._verified(tp, records)
            applied = self._applied[tp]
            if records and records[0].offset < applied.next_offset:
                records = [record for record in records if record.offset >= applied.next_offset]
            if self._until is not None and records and records[-1].offset >= self._until.get(tp, 0):
                records = [record for record in records if record.offset < self._until.get(tp, 0)]
            if records:
                drained_at = self._drained_at(tp) if records[-1] is fetched[tp][-1] else 0
                batches[tp] = Batch(
                    self._views[tp.topic],
                    tp.partition,
                    applied.next_offset,
                    records,
                    drained_at or records[-1].timestamp,
                    drained_at > 0,
                )
        if batches:
            await self._apply(batches)
            if (
                self._until is None
                and sum(len(batch.records) for batch in batches.values()) < BACKLOG_RECORDS
            ):
                await asyncio.sleep(REST_S)
        now = time.monotonic()
        if now >= self._confirm_at:
            self._confirm_at = now + CONFIRM_S
            await self._confirm()
        if self._group and now >= self._commit_at:
            self._commit_at = now + COMMIT_S
            await self._commit()

    async def _apply(self, batches: dict[TopicPartition, Batch]) -> None:
        refused: list[tuple[TopicPartition, Any, str]] = []
        tps = {batch.place: tp for tp, batch in batches.items()}

        async def write() -> bool:
            refused.clear()
            try:
                await self._applier.apply(
                    batches.values(),
                    lambda record, reason: refused.append(
                        (tps[record.topic, record.partition], record, reason)
                    ),
                    before_commit=lambda: self._dead_letter(refused),
                )
            except PositionMoved:
                return False
            return True

        if not await self._patiently(write):
            # Another projection, or this one before its connection broke. The database knows.
            self._moved += 1
            if self._moved > MOVED_MAX:
                raise ProjectionStopped(
                    f"another projection writes the same partitions into {self._database}: stop one of them"
                )
            for tp in batches:
                if self._applied.pop(tp, None) is not None:
                    self._verify.pop(tp, None)
                    self._consumer.pause(tp)
                    self._assigned.add(tp)
            return
        self._moved = 0
        for tp, batch in batches.items():
            self.records += len(batch.records)
            if tp in self._applied:
                last = batch.records[-1]
                self._applied[tp] = Applied(batch.next_offset, last.offset, checksum(last), batch.as_of)

    async def _dead_letter(self, refused: list[tuple[TopicPartition, Any, str]]) -> None:
        """What is no message of its topic, to the dead letters. Before the position moves past it, so
        that none is lost; a crash in between sends it again, with the same `source`. A rebuild sends
        nothing: they are there."""
        if not refused or not self._group:
            return
        if self._producer is None:
            producer = AIOKafkaProducer(**client_options(self._settings), acks="all", enable_idempotence=True)
            await producer.start()
            self._producer = producer
        for tp, record, reason in refused:
            log.warning(
                "%s/%s/%s goes to the dead letters: %s", tp.topic, tp.partition, record.offset, reason
            )
            await self._producer.send_and_wait(
                dead_letters(SERVICE),
                value=record.value,
                key=record.key,
                partition=tp.partition,
                timestamp_ms=record.timestamp,
                headers=[
                    ("reason", reason.encode()),
                    ("processor", SERVICE.encode()),
                    ("source", f"{tp.topic}/{tp.partition}/{record.offset}".encode()),
                    ("source-timestamp", str(record.timestamp).encode()),
                ],
            )

    # -- freshness ---------------------------------------------------------------------------------

    def _drained_at(self, tp: TopicPartition) -> int:
        """Wall-clock time (ms) at which everything in the partition had been fetched; 0: not so."""
        end = self._consumer.last_stable_offset(tp)
        position = self._consumer._subscription.subscription.assignment.state_value(tp).position
        if end is None or position < end:
            return 0
        return int(self._consumer.last_poll_timestamp(tp) or 0)

    async def _confirm(self) -> None:
        """Partitions in which nothing is new: as of now."""
        as_of = {}
        for tp, applied in self._applied.items():
            at = 0 if tp in self._verify else self._drained_at(tp)
            if at > applied.as_of:
                as_of[(tp.topic, tp.partition), applied.next_offset] = at
        if as_of:
            await self._patiently(lambda: self._applier.confirm(as_of))

    async def _commit(self) -> None:
        """For Kafka's tools only; a rebalance at the same moment may refuse it."""
        try:
            await self._consumer.commit({tp: applied.next_offset for tp, applied in self._applied.items()})
        except (KafkaError, IllegalStateError) as error:
            log.debug("offsets not committed: %s", error)

    def _is_at(self, until: Mapping[TopicPartition, int]) -> bool:
        return all(tp in self._applied and self._consumer_at(tp) >= offset for tp, offset in until.items())

    def _consumer_at(self, tp: TopicPartition) -> int:
        """Applied so far, counting what holds no record (transaction markers)."""
        if tp in self._verify:
            return -1
        position = self._consumer._subscription.subscription.assignment.state_value(tp).position
        return int(max(self._applied[tp].next_offset, position))

    async def _patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """`operation`, again while the database is not there, up to the setting `database_patience_s`."""
        give_up_at = time.monotonic() + self._settings.database_patience_s
        pause_s = RETRY_MIN_S
        while True:
            try:
                return await operation()
            except Exception as error:
                if not is_connection_lost(error):
                    raise
                reason = first_line(error)
                if time.monotonic() >= give_up_at or self._stopping.is_set():
                    raise ProjectionStopped(f"{self._database}: {reason}") from error
                log.warning("%s: %s; trying again", self._database, reason)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            pause_s = min(pause_s * 2, RETRY_MAX_S)
