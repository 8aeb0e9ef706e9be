"""One processor on one partition: acquire it, run it, release it. See docs/kernel.md.

An `Ownership` holds everything that is the partition's own: the transactional producer (the token: whoever
started it last owns the partition), the tables, the handler's execution, the position in the source. Nothing
of it is shared, and nothing outlives a release.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from mini_visa.kafka import TOMBSTONE_RETENTION_MS
from mini_visa.settings import Settings
from mini_visa.streams import faults, metrics
from mini_visa.streams.commit import Transactions
from mini_visa.streams.poison import Fatal
from mini_visa.streams.processor import BatchResult, Execution, Processor
from mini_visa.streams.store import (
    PROGRESS_VERSION,
    Applied,
    Change,
    Identity,
    Progress,
    RocksStore,
    encode_progress,
)
from mini_visa.streams.wire import Chunk, Wire
from mini_visa.transactions import GRACE_S, finish, hanging

log = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_BYTES_MAX: Final = 1 << 20
FETCH_WAIT_MS: Final = 1_000
"""A fetch is answered as soon as there is one record; an idle partition asks this often."""
INBOX_CHUNKS_MAX: Final = 3
"""Fetched ahead per partition: while one batch commits, the next is already here."""
HANDLER_S_MAX: Final = 0.25
"""Batches are cut so that the handler holds the event loop no longer than about this."""
FUTURE_MS_MAX: Final = 60_000
"""A record further ahead of the clock than this is dead-lettered: it would expire everything."""
PACE_S: Final = 0.02
"""How long a small batch waits for the commits of the worker's other partitions at most."""
PACED_RECORDS: Final = 64
"""A batch of so many pays for its transaction, and waits for nobody."""
TELL_S: Final = 0.2
"""The group's offset is behind the partition's progress for no longer than about this."""
RESTORE_STALL_S: Final = 60.0
"""A restore that does not advance for so long never will. With long transactions, mending comes first."""
MEND_AFTER_S: Final = GRACE_S + 1.0
"""Beyond a transaction's time-out: whatever is open in the changelog for longer has lost its marker."""
MENDED_S: Final = 30.0
"""Looking for what hangs and ending it takes less."""


class State(StrEnum):
    NEW = "new"
    FENCING = "fencing"
    RESTORING = "restoring"
    RUNNING = "running"
    DRAINING = "draining"
    PARKED = "parked"
    RELEASING = "releasing"
    RELEASED = "released"
    POISONED = "poisoned"


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.NEW: frozenset({State.FENCING, State.RELEASING, State.POISONED}),
    State.FENCING: frozenset({State.RESTORING, State.RELEASING, State.POISONED}),
    State.RESTORING: frozenset({State.RUNNING, State.RELEASING, State.POISONED}),
    State.RUNNING: frozenset({State.DRAINING, State.POISONED}),
    State.DRAINING: frozenset({State.PARKED, State.POISONED}),
    State.PARKED: frozenset({State.RUNNING, State.RELEASING, State.POISONED}),
    State.RELEASING: frozenset({State.RELEASED, State.POISONED}),
    State.RELEASED: frozenset(),
    State.POISONED: frozenset(),
}
"""Every way an ownership can go. POISONED is the end of the process, not only of the partition."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all partitions of a processor have in common, fixed at start and checked against the cluster."""

    processor: Processor
    service: str
    group: str
    changelog: str
    dead_letters: str
    partition_counts: Mapping[str, int]
    identity: Identity
    state: Path
    """Directory of this processor's tables, one below for each partition."""
    settings: Settings
    client_options: dict[str, Any]

    @property
    def source(self) -> str:
        return self.processor.source.name

    def transactional_id(self, partition: int) -> str:
        """One owner of a processor's partition at a time, in the whole environment."""
        return f"{self.group}.{self.source}.{partition}"


class Pace:
    """Small batches of one worker's partitions commit one after the other, and grow while they wait.

    Transactions cost the broker and the worker about the same whatever is in them. A busy worker of four
    partitions that commits them at the same time has four small ones under way, each as slow as all four; in
    turn each is quicker, and takes with it what came while the others were at it. A lone record finds nobody
    before it and waits for nothing; a commit that takes long (a broker is away) holds nobody up for more
    than `PACE_S`.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        ours = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PACE_S):
                ours = await self._lock.acquire()
        try:
            yield
        finally:
            if ours:
                self._lock.release()


class Ownership:
    """See the module. `on_failure` is called with every error that is not an orderly release. `pace`: of all
    partitions of the processor in this worker; None: of this one alone."""

    def __init__(
        self,
        plan: Plan,
        partition: int,
        on_failure: Callable[[str, BaseException], None],
        pace: Pace | None = None,
    ) -> None:
        self.plan = plan
        self.partition = partition
        self.name = f"{plan.group}/{partition}"
        self.state = State.NEW
        self.next_offset = -1
        """The first source offset that is not committed."""
        self._told: int | None = None
        """The group's committed offset."""
        self._tell_at = 0.0
        """When the next transaction carries it again (loop time): at once, to begin with."""
        self._pace = pace or Pace()
        self._on_failure = on_failure
        self._source = TopicPartition(plan.source, partition)
        self._changelog = TopicPartition(plan.changelog, partition)
        self._transactions: Transactions | None = None
        self._store: RocksStore | None = None
        self._execution: Execution | None = None
        self._applied_offset = -1
        self._wire = Wire(self.name, plan.client_options)
        self._inbox: deque[Chunk] = deque()
        self._taken = 0
        """Records of the inbox's first chunk that are already processed."""
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held during a batch by the run loop, and all the while the partition is parked."""
        self._tasks: list[asyncio.Task[None]] = []
        self._committing: asyncio.Task[None] | None = None
        """The last commit. A rebalance that cancels an acquisition leaves it to `release`."""
        self._record_s = 1e-5
        """The handler's time per record, a moving average."""
        processor = plan.processor.name
        self._batches = metrics.BATCHES.labels(processor)
        self._records = metrics.RECORDS.labels(processor)
        self._outputs = metrics.OUTPUTS.labels(processor)
        self._changes = metrics.CHANGES.labels(processor)
        self._dead_letters = metrics.DEAD_LETTERS.labels(processor)
        self._batch_seconds = metrics.BATCH_SECONDS.labels(processor)
        self._handler_seconds = metrics.HANDLER_SECONDS.labels(processor)
        self._commit_seconds = metrics.COMMIT_SECONDS.labels(processor)
        self._lag = metrics.LAG.labels(processor, str(partition))

    # -- acquire ---------------------------------------------------------------------------------

    async def acquire(self, still_ours: Callable[[], bool]) -> None:
        """Fence the former owner, restore the tables, and start at the first offset not committed.

        Everything is read AFTER fencing: before it, the former owner may still commit.
        """
        began = time.monotonic()
        self._become(State.FENCING)
        await self._wire.start()
        self._transactions = Transactions(
            self.plan.transactional_id(self.partition),
            self.plan.group,
            self._source,
            self._changelog,
            self.plan.settings.transaction_timeout_s,
            self.plan.client_options,
        )
        await self._transactions.fence()
        if faults.ARMED:
            await faults.reach("fenced")
        self._become(State.RESTORING)
        await self._same_logs()
        committed = await self._wire.committed(self.plan.group, self._source)
        first, end = await self._wire.bounds(self._source)
        path = self.plan.state / str(self.partition)

        def open_store() -> RocksStore:  # for `release` to close, also when nobody waits for it any more
            store = self._store = RocksStore(path, self.plan.settings.rocksdb_memory_bytes)
            return store

        self._store = await _whole(open_store)
        restored = await self._restore(self._store)
        progress = self._store.progress()
        if not self._agrees(progress, committed) and restored.from_disk:
            log.warning(
                "%s: %s; restoring from an empty store", self.name, self._mismatch(progress, committed)
            )
            await _whole(self._store.wipe)
            restored = await self._restore(self._store)
            progress = self._store.progress()
        forgotten = self._forgotten(progress, committed)
        if not forgotten and not self._agrees(progress, committed):
            raise Fatal(self._mismatch(progress, committed))
        if faults.ARMED:
            await faults.reach("restored")
        if progress is None:
            self.next_offset, partition_time = first, 0
        else:
            self.next_offset, partition_time = progress.next_offset, progress.partition_time
            self._told = progress.told
        if not first <= self.next_offset <= end:
            raise Fatal(self._out_of_range(first, end))
        self._execution = Execution(
            self.plan.processor,
            self.partition,
            self._store,
            dead_letters=self.plan.dead_letters,
            partition_counts=self.plan.partition_counts,
            partition_time=partition_time,
        )
        assert still_ours(), f"{self.name}: the partition was taken away while it was being acquired"
        if forgotten:
            metrics.FORGOTTEN.labels(self.plan.processor.name).inc()
            log.error(
                "%s. The changelog knows better: the group is told anew", self._differ(progress, committed)
            )
            await self._process([])
        seconds = time.monotonic() - began
        metrics.RESTORE_SECONDS.labels(self.plan.processor.name, str(self.partition)).set(seconds)
        log.info(
            "%s: acquired in %.2f s, %d changelog records restored, going on at offset %d of %d",
            self.name,
            seconds,
            restored.records,
            self.next_offset,
            end,
        )
        self._become(State.RUNNING)
        self._tasks = [
            asyncio.create_task(self._guarded("fetch", lambda: self._fetch(self.next_offset))),
            asyncio.create_task(self._guarded("run", self._run)),
        ]

    def _agrees(self, progress: Progress | None, committed: int | None) -> bool:
        if progress is None:
            return committed is None
        return progress.told == committed and progress.identity == self.plan.identity

    def _forgotten(self, progress: Progress | None, committed: int | None) -> bool:
        """The group has an older offset than it was told, or none. Nothing is lost by that: the changelog has
        the progress, in one transaction with outputs and rows. Offsets expire and can be reset, and a
        coordinator of Kafka that is loaded twice at once can go on with a part of its log."""
        if progress is None or progress.told is None or progress.identity != self.plan.identity:
            return False
        return committed is None or committed < progress.told

    def _mismatch(self, progress: Progress | None, committed: int | None) -> str:
        group = self.plan.group
        if progress is not None and progress.identity != self.plan.identity:
            return self._other_logs()
        if self._forgotten(progress, committed):
            return self._differ(progress, committed)
        return (
            f"{self._differ(progress, committed)}. The changelog topic {self.plan.changelog} has lost its "
            f"records: restore it, or delete the group {group} to process the source from its beginning"
        )

    async def _same_logs(self) -> None:
        """The names mean the logs that they meant when this worker started, or the process ends: a topic that
        was deleted and made again under a running worker has offsets that are of other records."""
        if await self._wire.identity(self.plan.source, self.plan.changelog) != self.plan.identity:
            raise Fatal(self._other_logs())

    def _other_logs(self) -> str:
        return (
            f"{self.name}: its tables are of other logs than this cluster has (cluster, source topic or "
            f"changelog were made anew). To start over, delete the changelog topic {self.plan.changelog} "
            f"and the group {self.plan.group}; to keep the tables, bring the former topics back"
        )

    def _differ(self, progress: Progress | None, committed: int | None) -> str:
        changelog = "nothing" if progress is None or progress.told is None else f"offset {progress.told}"
        offsets = "nothing" if committed is None else f"offset {committed}"
        return (
            f"{self.name}: the changelog says that {changelog} of the source was committed to the group, the "
            f"group says {offsets}: one of them was changed, expired or lost from outside"
        )

    def _out_of_range(self, first: int, end: int) -> str:
        return (
            f"{self.name}: offset {self.next_offset} is next, and the source {self._source.topic} holds "
            f"{first} to {end} only: records were deleted before they were processed, or the topic lost "
            "some. Nothing is skipped silently: restore the topic, or reset group and changelog on purpose"
        )

    async def _restore(self, store: RocksStore) -> _Restored:
        """Apply the changelog from where the store is to its end, which is fixed: the partition is fenced."""
        first, end = await self._wire.bounds(self._changelog)
        applied = store.applied()
        from_disk = applied is not None
        if applied is not None:
            reason = self._stale(applied, first, end)
            if reason:
                log.warning("%s: %s; restoring from an empty store", self.name, reason)
                await _whole(store.wipe)
                applied, from_disk = None, False
        position = first if applied is None else applied.offset + 1
        self._applied_offset = position - 1
        records, progressed, mended = 0, time.monotonic(), False
        mend_after_s = self.plan.settings.transaction_timeout_s + MEND_AFTER_S
        stall_s = max(RESTORE_STALL_S, mend_after_s + MENDED_S)
        counter = metrics.RESTORED.labels(self.plan.processor.name)
        fetching = self._fetch_changelog(position) if position < end else None
        try:
            while fetching is not None:
                chunk = await fetching
                if chunk.next_offset > position:
                    position, progressed = chunk.next_offset, time.monotonic()
                elif time.monotonic() - progressed > stall_s:
                    raise Fatal(
                        f"{self.name}: restoring stands at offset {position} of {end} of "
                        f"{self._changelog.topic} for {stall_s:.0f} s: a transaction is open in it. "
                        "mini-visa doctor --repair finds and ends it, where its coordinator has decided it"
                    )
                elif not mended and time.monotonic() - progressed > mend_after_s:
                    mended = True
                    await self._mend()
                fetching = self._fetch_changelog(position) if position < end else None
                await asyncio.sleep(0)  # the request goes out, and is answered while these rows are written
                if not chunk.records:
                    continue
                rows: list[Change] = [(record.key, record.value) for record in chunk.records]
                self._applied_offset = position - 1
                store.write(rows, None, self._applied())
                records += len(rows)
                counter.inc(len(rows))
                if faults.ARMED:
                    await faults.reach("restore_batch")
        finally:
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
        return _Restored(records, from_disk)

    async def _mend(self) -> None:
        """End transactions that were decided and hang all the same, here and wherever else: a single Kafka
        that is killed forgets markers when it starts again. The fence has made sure that the one at hand is
        decided. Where a service may not write markers, an operator has to: `mini-visa doctor --repair`."""
        settings = self.plan.settings
        try:
            for ended in await finish(settings, await hanging(settings)):
                log.warning("%s: %s; it is written now", self.name, ended)
        except Exception as error:
            log.warning(
                "%s: looking for transactions that hang: %s: %s", self.name, type(error).__name__, error
            )

    def _fetch_changelog(self, position: int) -> asyncio.Task[Chunk]:
        return asyncio.create_task(
            self._wire.fetch(
                self._changelog,
                position,
                bytes_max=FETCH_BYTES_MAX,
                wait_ms=FETCH_WAIT_MS,
                interrupted=self._same_logs,
            )
        )

    def _stale(self, applied: Applied, first: int, end: int) -> str | None:
        """Why the store on disk cannot be carried on from, or None."""
        if applied.identity != self.plan.identity:
            return "the store is of another cluster, source topic or changelog"
        if applied.offset + 1 > end:
            return f"the store is ahead of the changelog ({applied.offset + 1} > {end}): the broker lost data"
        if applied.offset + 1 < first:
            return f"the changelog begins after the store's position ({first} > {applied.offset + 1})"
        if time.time() * 1000 - applied.written_ms > TOMBSTONE_RETENTION_MS // 2:
            return "the store is so old that it may have missed deletions"
        return None

    def _applied(self) -> Applied:
        return Applied(self._applied_offset, int(time.time() * 1000), self.plan.identity)

    # -- run -------------------------------------------------------------------------------------

    async def _fetch(self, position: int) -> None:
        """Keep the inbox filled. The position is this task's own: nothing else can move it."""
        bytes_max = min(FETCH_BYTES_MAX, self.plan.settings.batch_bytes_max)
        rest_s = self.plan.processor.rest_s
        while True:
            while len(self._inbox) >= INBOX_CHUNKS_MAX:
                self._room.clear()
                await self._room.wait()
            try:
                chunk = await self._wire.fetch(
                    self._source,
                    position,
                    bytes_max=bytes_max,
                    wait_ms=FETCH_WAIT_MS,
                    interrupted=self._same_logs,
                )
            except OffsetOutOfRangeError:
                await self._same_logs()
                raise Fatal(self._out_of_range(*await self._wire.bounds(self._source))) from None
            assert chunk.start == position <= chunk.next_offset, f"{self.name}: fetched out of turn"
            self._lag.set(chunk.end - chunk.next_offset)
            position = chunk.next_offset
            if chunk.records:
                self._inbox.append(chunk)
                self._arrival.set()
                if rest_s and chunk.size_bytes < bytes_max // 2:
                    await asyncio.sleep(rest_s)

    async def _run(self) -> None:
        """One batch after the other: whatever has arrived, no waiting for company but where others commit."""
        while True:
            if not self._inbox:
                self._arrival.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._tell_at if self._untold else None):
                        await self._arrival.wait()
            async with self._turn:
                assert self.state is State.RUNNING, f"{self.name}: a batch while {self.state}"
                if self._waiting() < PACED_RECORDS:
                    async with self._pace.turn():
                        await self._batch()
                else:
                    await self._batch()

    async def _batch(self) -> None:
        """Of what is in the inbox; if nothing is, it does no more than to tell the group's offset."""
        began = time.perf_counter()
        records = self._take()
        assert not records or records[0].offset >= self.next_offset, (
            f"{self.name}: offset {records[0].offset} again, {self.next_offset} is next"
        )
        await self._process(records)
        self._batch_seconds.observe(time.perf_counter() - began)

    @property
    def _untold(self) -> bool:
        """The group's offset is behind. Before the first batch there is nothing to tell."""
        return self._told is not None and self._told != self.next_offset

    def _waiting(self) -> int:
        """Records in the inbox."""
        return sum(len(chunk.records) for chunk in self._inbox) - self._taken

    def _take(self) -> list[Any]:
        """The next batch: bounded in records, in bytes and, by what the handler took so far, in time."""
        records_max = min(self.plan.settings.batch_records_max, max(1, int(HANDLER_S_MAX / self._record_s)))
        bytes_left = self.plan.settings.batch_bytes_max
        batch: list[Any] = []
        while self._inbox and len(batch) < records_max:
            chunk = self._inbox[0]
            record_bytes = max(1, chunk.size_bytes // len(chunk.records))
            count = min(
                len(chunk.records) - self._taken, records_max - len(batch), max(0, bytes_left // record_bytes)
            )
            if count == 0 and batch:
                break
            count = max(1, count)
            batch += chunk.records[self._taken : self._taken + count]
            bytes_left -= count * record_bytes
            self._taken += count
            if self._taken == len(chunk.records):
                self._inbox.popleft()
                self._taken = 0
                self._room.set()
        return batch

    async def _process(self, records: list[Any]) -> None:
        assert self._execution is not None
        if records:
            began = time.thread_time()  # a handler's own time: a busy machine must not make batches small
            result = self._execution.run(records, timestamp_max=int(time.time() * 1000) + FUTURE_MS_MAX)
            seconds = time.thread_time() - began
            self._record_s += (seconds / len(records) - self._record_s) * 0.2
            self._handler_seconds.observe(seconds)
        else:
            result = BatchResult([], [], self.next_offset, self._execution.partition_time, 0, 0)
        if faults.ARMED:
            await faults.reach("handled")
        # A cancelled commit still commits. Once begun, commit and store are one: nothing interrupts them.
        self._committing = asyncio.create_task(self._commit(result))
        await asyncio.shield(self._committing)

    async def _commit(self, result: BatchResult) -> None:
        assert self._transactions is not None and self._store is not None and self._execution is not None
        began, now = time.perf_counter(), asyncio.get_running_loop().time()
        offset = result.next_offset if now >= self._tell_at else None
        told = self._told if offset is None else offset
        progress = encode_progress(
            Progress(PROGRESS_VERSION, result.next_offset, result.partition_time, self.plan.identity, told)
        )
        last = await self._transactions.commit(result.outputs, result.changes, progress, offset)
        self._commit_seconds.observe(time.perf_counter() - began)
        if faults.ARMED:
            await faults.reach("committed")
        # An unknown offset (-1) leaves the former one: applying rows again that are there is harmless.
        if last >= 0:
            if last <= self._applied_offset:
                raise Fatal(
                    f"{self._other_logs()}. A batch was committed at offset {last} of the changelog, where "
                    f"{self._applied_offset} was before"
                )
            self._applied_offset = last
        self._store.write(result.changes, progress, self._applied())
        if faults.ARMED:
            await faults.reach("stored")
        self._execution.committed()
        assert result.next_offset > self.next_offset or not result.records
        self.next_offset = result.next_offset
        if offset is not None:
            self._told, self._tell_at = offset, now + TELL_S
        self._batches.inc()
        self._records.inc(result.records)
        self._outputs.inc(len(result.outputs) - result.dead_letters)
        self._changes.inc(len(result.changes))
        if result.dead_letters:
            self._dead_letters.inc(result.dead_letters)

    async def _guarded(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            if self.state is not State.RELEASING:
                self.fail(what, RuntimeError("cancelled from outside"))
            raise
        except BaseException as error:
            self.fail(what, error)

    # -- drain and release -----------------------------------------------------------------------

    async def drain(self) -> None:
        """Let the running batch commit, tell the group's offset, and start no other: RUNNING -> PARKED."""
        self._become(State.DRAINING)
        await self._turn.acquire()
        if self._untold:
            self._tell_at = 0.0
            await self._process([])
        self._become(State.PARKED)

    def resume(self) -> None:
        """Go on where the last batch ended: the partition stayed ours all the while."""
        self._become(State.RUNNING)
        self._turn.release()

    async def release(self) -> None:
        """Close in order: tasks, a commit that was left under way, producer, connection, database. Only when
        parked or not yet running."""
        self._become(State.RELEASING)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._committing is not None:
            await self._committing
        if self._transactions is not None:
            await self._transactions.stop()
        await self._wire.stop()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        self._inbox.clear()
        self._become(State.RELEASED)

    def fail(self, where: str, error: BaseException) -> None:
        """This partition's state is not known any more: nothing of this process may go on."""
        if self.state not in (State.POISONED, State.RELEASED):
            self._become(State.POISONED)
        self._on_failure(f"{self.name} ({where})", error)

    def _become(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], (
            f"{self.name}: {self.state} -> {state} is not a way an ownership can go"
        )
        log.debug("%s: %s -> %s", self.name, self.state, state)
        where = self.plan.processor.name, str(self.partition)
        if self.state is not State.NEW:
            metrics.STATE.remove(*where, self.state)
        if state is not State.RELEASED:
            metrics.STATE.labels(*where, state).set(1)
        self.state = state


async def _whole(work: Callable[[], T]) -> T:
    """`work` in a thread, to its end also when this is cancelled: the directory's next owner must not find
    a thread at work in it."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await working
        raise


@dataclass(frozen=True, slots=True)
class _Restored:
    records: int
    from_disk: bool
    """The store was not empty before."""
