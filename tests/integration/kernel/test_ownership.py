"""One partition's life without a group around it: fence, restore, run, release, again and again."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import apps
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import CoordinationType
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.structs import TopicPartition
from laboratory import WAIT_S, Laboratory

from mini_visa.kafka import client_options
from mini_visa.settings import Settings
from mini_visa.streams import faults, ownership
from mini_visa.streams.commit import Transactions
from mini_visa.streams.ownership import TRANSITIONS, Ownership, Plan, State
from mini_visa.streams.poison import Fatal
from mini_visa.streams.runtime import make_plans
from mini_visa.streams.store import (
    PROGRESS_KEY,
    Applied,
    Identity,
    RocksStore,
    StoreUnavailable,
    decode_progress,
)
from mini_visa.streams.wire import Wire

pytestmark = pytest.mark.broker


class Failures(list[tuple[str, BaseException]]):
    """Takes what would have ended the process."""

    def __call__(self, where: str, error: BaseException) -> None:
        self.append((where, error))

    async def arrive(self) -> BaseException:
        deadline = time.monotonic() + WAIT_S
        while not self:
            assert time.monotonic() < deadline, "nothing failed"
            await asyncio.sleep(0.01)
        return self[0][1]


class Bench:
    """Makes ownerships of partition 0 of the counting service."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.failures = Failures()
        self.made: list[Ownership] = []

    async def plan(self, **settings: Any) -> Plan:
        configuration = Settings(
            home=self.laboratory.home / "home",
            environment=self.laboratory.prefix,
            broker=f"kafka://{self.laboratory.broker}",
            **settings,
        )
        app = apps.counting(self.laboratory.prefix, configuration)
        (plan,) = await make_plans(
            app.processors.values(),
            service=app.service,
            settings=configuration,
            client_options=client_options(configuration),
        )
        return plan

    async def acquire(self, plan: Plan | None = None) -> Ownership:
        owner = Ownership(plan or await self.plan(), 0, self.failures)
        self.made.append(owner)
        await owner.acquire(lambda: True)
        return owner

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "did not come to be"
            assert not self.failures, self.failures
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for owner in self.made:
            if owner.state is State.RUNNING:
                await owner.drain()
            if owner.state in (State.PARKED, State.RESTORING, State.FENCING):
                await owner.release()


async def retire(owner: Ownership) -> None:
    await owner.drain()
    await owner.release()


@pytest.fixture
async def bench(laboratory: Laboratory) -> AsyncIterator[Bench]:
    await laboratory.create_topics(partitions=1)
    bench = Bench(laboratory)
    try:
        yield bench
    finally:
        await bench.close()


@asynccontextmanager
async def plain_producer(laboratory: Laboratory, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**laboratory.options, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def store_path(bench: Bench) -> Path:
    prefix = bench.laboratory.prefix
    return bench.laboratory.home / "home" / "state" / prefix / prefix / "count" / "0"


# -- fencing -----------------------------------------------------------------------------------------


async def test_a_new_owner_fences_the_old_one_and_goes_on_after_its_last_commit(bench: Bench) -> None:
    """Point 13: the producer is the token. The old owner's next commit fails; nothing of it is seen."""
    lab = bench.laboratory
    await lab.put(range(100))
    plan = await bench.plan()
    old = await bench.acquire(plan)
    await bench.until(lambda: old.next_offset == 100)
    failed = Failures()
    new = Ownership(replace(plan, state=lab.home / "elsewhere"), 0, failed)
    bench.made.append(new)
    await new.acquire(lambda: True)
    assert new.next_offset == 100
    await lab.put(range(100, 200))
    error = await bench.failures.arrive()
    assert "Fenced" in type(error).__name__ or "Epoch" in type(error).__name__, repr(error)
    assert old.state is State.POISONED
    deadline = time.monotonic() + WAIT_S
    while new.next_offset < 200:
        assert time.monotonic() < deadline and not failed
        await asyncio.sleep(0.01)
    await lab.expect_exact()


async def test_the_committed_offset_is_read_after_fencing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point 13: whatever the old owner commits until it is fenced counts."""
    lab = bench.laboratory
    await lab.put(range(50))
    plan = await bench.plan()
    old = await bench.acquire(plan)
    await bench.until(lambda: old.next_offset == 50)
    fence = Transactions.fence

    async def fence_late(self: Transactions) -> None:
        # The old owner commits more at the last moment before it is fenced.
        await lab.put(range(50, 80))
        await bench.until(lambda: old.next_offset == 80 and not old._untold)  # else it tells when it drains
        await fence(self)

    monkeypatch.setattr(Transactions, "fence", fence_late)
    new = await bench.acquire(replace(plan, state=lab.home / "elsewhere"))
    assert new.next_offset == 80
    await lab.expect_exact()


async def test_an_open_transaction_of_a_dead_owner_is_aborted_by_the_next(bench: Bench) -> None:
    """Point 5: it hides the sink's records no longer than until the partition has an owner again."""
    lab = bench.laboratory
    plan = await bench.plan()
    dead = AIOKafkaProducer(transactional_id=plan.transactional_id(0), **lab.options)
    await dead.start()
    await dead.begin_transaction()
    await dead.send_and_wait(lab.seen, b'{"number":-1,"count":0,"total":0}', key=b"ghost", partition=0)
    await lab.put(range(10))
    owner = await bench.acquire(plan)
    await bench.until(lambda: owner.next_offset == 10)
    await lab.expect_exact()
    await dead.client.close()


# -- release -----------------------------------------------------------------------------------------


async def test_a_partition_can_be_regained_by_the_same_process(bench: Bench) -> None:
    """Point 15: a database that is not closed keeps its lock, and regaining the partition fails."""
    lab = bench.laboratory
    plan = await bench.plan()
    for turn in range(3):
        await lab.put(range(turn * 10, turn * 10 + 10))
        owner = await bench.acquire(plan)
        await bench.until(lambda: owner.next_offset == turn * 10 + 10)  # noqa: B023
        await retire(owner)
        assert owner.state is State.RELEASED
    await lab.expect_exact()


async def test_the_tables_of_a_running_partition_cannot_be_opened_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on one directory are told so."""
    monkeypatch.setattr(RocksStore, "LOCK_WAIT_S", 0.1)
    await bench.acquire()
    with pytest.raises(StoreUnavailable, match="MINI_VISA_HOME"):
        RocksStore(store_path(bench), 64 << 20)


async def test_an_acquisition_can_be_given_up_half_way(bench: Bench) -> None:
    """A rebalance may take a partition away while it is being restored."""
    lab = bench.laboratory
    plan = await bench.plan()
    await lab.put(range(10))
    for pause in (0.0, 0.01, 0.03, 0.1):
        given_up = Ownership(plan, 0, bench.failures)
        task = asyncio.create_task(given_up.acquire(lambda: True))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if given_up.state is State.RUNNING:
            await given_up.drain()
        await given_up.release()
    owner = await bench.acquire(plan)
    await bench.until(lambda: owner.next_offset == 10)
    await lab.expect_exact()
    assert not bench.failures


# -- a commit that is cancelled ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["handled", "begin", "produced", "offsets", "commit_sent", "committed", "stored"]
)
async def test_a_commit_cancelled_from_outside_is_still_one_with_its_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Point 2: cancelling whoever waits for a commit stops neither the commit nor the write after it. Before
    it is begun, it stops all of it. The partition is not gone on with either way."""
    lab = bench.laboratory
    plan = await bench.plan()
    owner = Ownership(plan, 0, bench.failures)
    done = asyncio.Event()

    async def reach(reached: str) -> None:
        if reached == step:
            owner._tasks[1].cancel()  # the one that runs batches; the first fetches
            await asyncio.sleep(0.05)
        if reached == "stored":
            done.set()

    monkeypatch.setattr(faults, "ARMED", {step: None})
    monkeypatch.setattr(faults, "reach", reach)
    await lab.put(range(100))
    await owner.acquire(lambda: True)
    assert "cancelled from outside" in str(await bench.failures.arrive())
    assert owner.state is State.POISONED
    assert owner._store is not None and owner._transactions is not None
    if step != "handled":
        await asyncio.wait_for(done.wait(), WAIT_S)
    await asyncio.sleep(0.1)
    progress = owner._store.progress()
    assert (progress and progress.next_offset) == (None if step == "handled" else 100)
    await lab.expect_exact(committed=step != "handled")
    for task in owner._tasks:  # what the end of the process would do
        task.cancel()
    await asyncio.gather(*owner._tasks, return_exceptions=True)
    await owner._transactions.stop()
    await owner._wire.stop()
    owner._store.close()


# -- restore -----------------------------------------------------------------------------------------


async def fill(bench: Bench, numbers: range, do: str = "") -> None:
    """Process items, release, and leave the store on the disk."""
    await bench.laboratory.put(numbers, do=do)
    owner = await bench.acquire()
    (end,) = (await bench.laboratory.ends()).values()
    await bench.until(lambda: owner.next_offset == end)
    await retire(owner)


def forget_disk(bench: Bench) -> None:
    shutil.rmtree(store_path(bench))


async def rows_of(owner: Ownership) -> dict[bytes, bytes]:
    assert owner._store is not None
    return dict(owner._store.scan(b"\x01", b"\xff"))


async def test_a_restored_store_equals_the_one_that_was_lost(bench: Bench) -> None:
    """Point 16: rows, deletions and progress come back from the changelog."""
    await fill(bench, range(200))
    await fill(bench, range(7), do="delete")
    first = await bench.acquire()
    before = await rows_of(first)
    await retire(first)
    forget_disk(bench)
    second = await bench.acquire()
    assert await rows_of(second) == before
    assert len(before) == 23 - 7
    assert second.next_offset == 207


async def test_an_aborted_tail_of_the_changelog_is_not_restored(bench: Bench) -> None:
    """Point 16: the end is reached by position; there may be no committed record at it."""
    lab = bench.laboratory
    await fill(bench, range(50))
    plan = await bench.plan()
    async with plain_producer(lab, transactional_id=plan.transactional_id(0)) as dead:
        await dead.begin_transaction()
        for number in range(30):
            await dead.send_and_wait(lab.changelog(), b"ghost", key=b"rows\0ghost%d" % number, partition=0)
        await dead.abort_transaction()
    for keep in (True, False):
        if not keep:
            forget_disk(bench)
        owner = await bench.acquire()
        assert owner.next_offset == 50
        assert not [key for key in await rows_of(owner) if b"ghost" in key]
        await retire(owner)


async def test_a_store_ahead_of_its_changelog_is_wiped(bench: Bench) -> None:
    """Points 3, 16: the broker lost what the disk has. What is left is what counts, if offsets agree."""
    await fill(bench, range(50))
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    assert applied is not None
    store.write([(b"rows\0wrong", b"row")], None, Applied(10_000, applied.written_ms, applied.identity))
    store.close()
    owner = await bench.acquire()
    assert b"rows\0wrong" not in await rows_of(owner)
    assert owner.next_offset == 50


async def test_a_store_of_other_logs_is_wiped(bench: Bench) -> None:
    """Point 16: the same names, other topics: cluster and topic ids are stored and checked."""
    await fill(bench, range(50))
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    assert applied is not None
    other = Identity("another cluster", applied.identity.source, applied.identity.changelog)
    store.write([(b"rows\0wrong", b"row")], None, Applied(3, applied.written_ms, other))
    store.close()
    owner = await bench.acquire()
    assert b"rows\0wrong" not in await rows_of(owner)
    assert owner.next_offset == 50


async def test_a_store_behind_the_changelogs_beginning_is_wiped(bench: Bench) -> None:
    """Point 16: records that the store has not applied are gone from the changelog's front."""
    lab = bench.laboratory
    await fill(bench, range(50))
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    assert applied is not None
    store.write([(b"rows\0wrong", b"row")], None, Applied(0, applied.written_ms, applied.identity))
    store.close()
    await lab.configure(lab.changelog(), **{"cleanup.policy": "compact,delete"})
    await lab.delete_records(lab.changelog(), 0, 5)
    owner = await bench.acquire()
    assert b"rows\0wrong" not in await rows_of(owner)


async def test_a_store_that_may_have_missed_deletions_is_wiped(bench: Bench) -> None:
    """Point 16: tombstones are compacted away after a while; an older store would keep deleted rows."""
    await fill(bench, range(50))
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    assert applied is not None
    store.write([(b"rows\0wrong", b"row")], None, Applied(applied.offset, 1, applied.identity))
    store.close()
    owner = await bench.acquire()
    assert b"rows\0wrong" not in await rows_of(owner)
    assert owner.next_offset == 50


async def test_a_rebalance_in_the_middle_of_a_wipe_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points 15, 16: a thread that goes on deleting after a release deletes what the next owner opens."""
    await fill(bench, range(50))
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    assert applied is not None
    store.write([], None, Applied(applied.offset, 1, applied.identity))  # too old to be carried on from
    store.close()
    deleting, rmtree = asyncio.Event(), shutil.rmtree
    loop = asyncio.get_running_loop()

    def slow(path: Path, **options: Any) -> None:
        if path.exists():
            loop.call_soon_threadsafe(deleting.set)
            time.sleep(0.5)
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", slow)
    given_up = Ownership(await bench.plan(), 0, bench.failures)
    acquiring = asyncio.create_task(given_up.acquire(lambda: True))
    await asyncio.wait_for(deleting.wait(), WAIT_S)
    acquiring.cancel()
    await asyncio.gather(acquiring, return_exceptions=True)
    await given_up.release()
    owner = await bench.acquire()
    assert owner.next_offset == 50 and len(await rows_of(owner)) == 23
    await retire(owner)
    assert store_path(bench).is_dir() and not bench.failures


async def test_a_recreated_changelog_is_refused(bench: Bench) -> None:
    """Points 3, 16: the tables are gone and the offsets say they should not be."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await lab.delete_topic(lab.changelog())
    with pytest.raises(Fatal, match="has lost its records"):
        await bench.acquire()


@pytest.mark.parametrize("keep_disk", [True, False])
@pytest.mark.parametrize("offset", [None, 20])
async def test_a_group_that_forgot_its_offset_is_told_anew(
    bench: Bench, offset: int | None, keep_disk: bool
) -> None:
    """Point 3: offsets expire, are reset, or come from a coordinator that has read a part of its log. The
    changelog knows better; starting where the group says would process records twice."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await delete_group(lab)
    if offset is not None:
        await set_group(lab, offset)
    if not keep_disk:
        forget_disk(bench)
    owner = await bench.acquire()
    assert owner.next_offset == 50
    await group_has(lab, 50)  # before its first batch
    await lab.put(range(50, 60))
    await bench.until(lambda: owner.next_offset == 60)
    await retire(owner)
    await lab.expect_exact()
    again = await bench.acquire()
    assert again.next_offset == 60
    await group_has(lab, 60)


async def test_a_changelog_behind_the_group_is_refused(bench: Bench) -> None:
    """Point 3: the other way round rows are missing, and no answer may be made from what is left."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await lab.put(range(50, 60))
    await delete_group(lab)
    await set_group(lab, 51)
    with pytest.raises(Fatal, match="has lost its records"):
        await bench.acquire()


@pytest.mark.parametrize("stands", [True, False])
async def test_a_rebalance_while_the_group_is_told_anew_waits_for_the_commit_and_its_outcome(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stands: bool
) -> None:
    """Points 2, 15: it cancels the acquisition, not the commit; what that ends with is not lost either."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await delete_group(lab)
    begun, commit = asyncio.Event(), Transactions.commit

    async def late(self: Transactions, *arguments: Any) -> int:
        begun.set()
        await asyncio.sleep(0.3)
        if not stands:
            raise Fatal("refused")
        return await commit(self, *arguments)

    given_up = Ownership(await bench.plan(), 0, bench.failures)
    with monkeypatch.context() as patched:
        patched.setattr(Transactions, "commit", late)
        acquiring = asyncio.create_task(given_up.acquire(lambda: True))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)
        if not stands:
            with pytest.raises(Fatal, match="refused"):
                await given_up.release()
            assert given_up._transactions is not None and given_up._store is not None
            await given_up._transactions.stop()
            await given_up._wire.stop()
            given_up._store.close()
            return
        await given_up.release()
    assert given_up._told == 50
    await group_has(lab, 50)
    owner = await bench.acquire()
    assert owner.next_offset == 50


async def group_has(lab: Laboratory, offset: int) -> None:
    """Returns when the group has it: the coordinator reads its own marker a moment after the commit."""
    deadline = time.monotonic() + WAIT_S
    while (found := (await lab.committed()).get(0)) != offset:
        assert time.monotonic() < deadline, f"the group has {found}"
        await asyncio.sleep(0.01)


async def delete_group(lab: Laboratory) -> None:
    wire = await lab.wire()
    node = await wire._client.coordinator_lookup(CoordinationType.GROUP, lab.group())
    await wire._client.send(node, DeleteGroupsRequest([lab.group()]))


async def set_group(lab: Laboratory, offset: int) -> None:
    """As `kafka-consumer-groups.sh --reset-offsets` does for a group without members."""
    consumer = AIOKafkaConsumer(bootstrap_servers=lab.broker, group_id=lab.group(), enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(lab.items, 0)])
        await consumer.commit({TopicPartition(lab.items, 0): offset})
    finally:
        await consumer.stop()


async def test_a_recreated_source_is_refused(bench: Bench) -> None:
    """Point 3: its offsets mean other records now."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await lab.delete_topic(lab.items)
    await lab.create_topic(lab.items, partitions=1)
    await lab.put(range(60))
    with pytest.raises(Fatal, match="other logs"):
        await bench.acquire()


async def test_a_source_recreated_under_a_worker_is_refused_at_the_next_acquisition(bench: Bench) -> None:
    """Point 3: its plan is of the former one. Deleting a topic deletes the group's offset too, which looks
    like one that was forgotten, and the new log is longer than the position."""
    lab = bench.laboratory
    plan = await bench.plan()
    await fill(bench, range(50))
    await lab.delete_topic(lab.items)
    await lab.create_topic(lab.items, partitions=1)
    await lab.put(range(60))
    with pytest.raises(Fatal, match="were made anew"):
        await bench.acquire(plan)


async def test_a_source_recreated_under_a_fetch_is_refused(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Point 3: the fetch waits for a topic that is gone; the one that comes is another."""
    lab = bench.laboratory
    await lab.put(range(50))
    owner = await bench.acquire()
    await bench.until(lambda: owner.next_offset == 50)
    await lab.delete_topic(lab.items)
    await bench.until(lambda: "trying again" in caplog.text)
    await lab.create_topic(lab.items, partitions=1)
    await lab.put(range(60))
    error = await bench.failures.arrive()
    assert isinstance(error, Fatal) and "were made anew" in str(error)
    assert owner.next_offset == 50


async def test_a_changelog_recreated_under_a_worker_is_refused(bench: Bench) -> None:
    """Points 3, 7: a commit that is behind the one before it is in another log, with a part of the rows."""
    lab = bench.laboratory
    await lab.put(range(50))
    owner = await bench.acquire()
    await bench.until(lambda: owner.next_offset == 50)
    await lab.delete_topic(lab.changelog())
    await lab.create_topic(lab.changelog(), partitions=1, cleanup_policy="compact")
    await lab.put(range(50, 55))
    error = await bench.failures.arrive()
    assert isinstance(error, Fatal) and "were made anew" in str(error)
    assert owner.next_offset == 50


async def test_records_deleted_before_they_were_processed_are_refused(bench: Bench) -> None:
    """Point 4: out of range is the end, never a silent jump."""
    lab = bench.laboratory
    await fill(bench, range(50))
    await lab.put(range(50, 100))
    await lab.delete_records(lab.items, 0, 70)
    with pytest.raises(Fatal, match="offset 50 is next"):
        await bench.acquire()


async def test_a_position_that_falls_out_of_the_log_while_running_is_refused(bench: Bench) -> None:
    """Point 4, later: the fetch is answered with out of range."""
    lab = bench.laboratory
    await fill(bench, range(50))
    owner = Ownership(await bench.plan(), 0, bench.failures)
    bench.made.append(owner)
    await owner.acquire(lambda: True)
    await owner.drain()
    for task in owner._tasks:
        task.cancel()
    await asyncio.gather(*owner._tasks, return_exceptions=True)
    bench.failures.clear()
    await lab.put(range(50, 100))
    await lab.delete_records(lab.items, 0, 70)
    with pytest.raises(Fatal, match="offset 50 is next"):
        await owner._fetch(50)


async def test_an_empty_group_on_a_source_whose_beginning_is_gone_starts_at_what_is_left(
    bench: Bench,
) -> None:
    """Point 3: both absent means the beginning, wherever that is now."""
    lab = bench.laboratory
    await lab.put(range(50))
    await lab.delete_records(lab.items, 0, 20)
    owner = await bench.acquire()
    assert owner.next_offset >= 20
    await bench.until(lambda: owner.next_offset == 50)
    assert await lab.count(lab.seen) == 30


async def test_compaction_of_the_changelog_changes_nothing(bench: Bench) -> None:
    """Point 16: gaps in the offsets are not records that are missing."""
    lab = bench.laboratory
    await lab.create_topic(
        lab.changelog(),
        partitions=1,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms="100",
        delete_retention_ms="1",
    )
    for turn in range(4):
        await fill(bench, range(turn * 100, turn * 100 + 100))
        await asyncio.sleep(0.2)
    first = await bench.acquire()
    before = await rows_of(first)
    await retire(first)
    wire = Wire("test", lab.options)
    await wire.start()
    partition = TopicPartition(lab.changelog(), 0)
    first_offset, end = await wire.bounds(partition)
    deadline = time.monotonic() + WAIT_S
    while True:  # until the log cleaner has been there
        found, position = 0, first_offset
        while position < end:
            chunk = await wire.fetch(partition, position, bytes_max=1 << 20, wait_ms=100)
            found, position = found + len(chunk.records), chunk.next_offset
        if found < 90:
            break
        assert time.monotonic() < deadline, f"the log cleaner has not been there: {found} records"
        await asyncio.sleep(0.5)
    await wire.stop()
    forget_disk(bench)
    owner = await bench.acquire()
    assert await rows_of(owner) == before
    assert owner.next_offset == 400
    await lab.expect_exact()


async def test_an_unknown_changelog_offset_leaves_the_former_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point 7: for a repeated batch the broker may answer -1. Rows are applied again, to the same end."""
    lab = bench.laboratory
    commit, commits = Transactions.commit, itertools.count(1)

    async def unknown(self: Transactions, *arguments: Any) -> int:
        last = await commit(self, *arguments)
        return last if next(commits) <= 2 else -1

    plan = await bench.plan(batch_records_max=10)
    monkeypatch.setattr(Transactions, "commit", unknown)
    await lab.put(range(50))
    owner = await bench.acquire(plan)
    await bench.until(lambda: owner.next_offset == 50)
    rows = await rows_of(owner)
    await retire(owner)
    monkeypatch.setattr(Transactions, "commit", commit)
    store = RocksStore(store_path(bench), 64 << 20)
    applied = store.applied()
    store.close()
    assert applied is not None and applied.offset == 2 * 11, "of the second batch: ten rows, progress, marker"
    owner = await bench.acquire(plan)
    assert await rows_of(owner) == rows and owner.next_offset == 50
    await lab.expect_exact()


async def test_a_restore_that_cannot_end_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point 16: a stranger's open transaction in the changelog hides its end."""
    monkeypatch.setattr(ownership, "RESTORE_STALL_S", 1.0)
    monkeypatch.setattr(ownership, "MENDED_S", -15.0)
    lab = bench.laboratory
    await fill(bench, range(10))
    async with plain_producer(lab, transactional_id=f"{lab.prefix}.stranger") as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(lab.changelog(), b"x", key=b"rows\0x", partition=0)
        with pytest.raises(Fatal, match="a transaction is open in it"):
            await bench.acquire()
        await stranger.abort_transaction()


@pytest.mark.parametrize("stall_s", [60.0, 0.5])
async def test_a_marker_that_got_lost_is_written_and_the_restore_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stall_s: float
) -> None:
    """Point 16: Kafka, killed and started again, has decided a transaction and forgotten a marker of it. With
    transactions that may last longer than a restore may stand, that is looked for before it is the end."""
    monkeypatch.setattr(ownership, "RESTORE_STALL_S", stall_s)
    monkeypatch.setattr(ownership, "MEND_AFTER_S", -9.0)
    lab = bench.laboratory
    await fill(bench, range(10))
    ended: list[Any] = []

    async with plain_producer(lab, transactional_id=f"{lab.prefix}.stranger") as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(lab.changelog(), b"x", key=b"rows\0x", partition=0)

        async def lost(settings: Any) -> list[Any]:
            return ["the marker of the stranger's transaction"]

        async def write(settings: Any, found: list[Any]) -> list[Any]:
            ended.extend(found)
            await stranger.abort_transaction()
            return found

        monkeypatch.setattr(ownership, "hanging", lost)
        monkeypatch.setattr(ownership, "finish", write)
        owner = await bench.acquire()
    assert len(ended) == 1 and owner.state is State.RUNNING


async def test_the_progress_record_is_in_every_transaction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point 3."""
    monkeypatch.setattr(ownership, "TELL_S", 60.0)
    lab = bench.laboratory
    plan = await bench.plan(batch_records_max=5)
    await lab.put(range(20), do="nothing")
    owner = await bench.acquire(plan)
    await bench.until(lambda: owner.next_offset == 20)
    records = (await lab.read(lab.changelog()))[0]
    assert [record.key for record in records] == [PROGRESS_KEY] * 4


async def test_the_group_is_told_of_the_first_batch_and_then_of_what_a_while_has_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point 3: not every transaction carries the group's offset, and each one's progress record says which
    offset the group has."""
    monkeypatch.setattr(ownership, "TELL_S", 1.0)
    lab = bench.laboratory
    plan = await bench.plan(batch_records_max=5)
    await lab.put(range(20))
    owner = await bench.acquire(plan)
    await bench.until(lambda: owner.next_offset == 20)
    assert owner._told == 5
    await group_has(lab, 5)
    rows = await rows_of(owner)
    for task in owner._tasks:  # it dies: what comes next finds a group that is behind
        task.cancel()
    await asyncio.gather(*owner._tasks, return_exceptions=True)
    assert owner._store is not None
    owner._store.close()
    forget_disk(bench)
    bench.failures.clear()
    heir = await bench.acquire(plan)
    assert (heir.next_offset, await rows_of(heir)) == (20, rows)
    await bench.until(lambda: heir._told == 20)
    await group_has(lab, 20)
    told = [decode_progress(record.value).told for record in (await lab.read(lab.changelog()))[0]
            if record.key == PROGRESS_KEY]  # fmt: skip
    assert told == [5, 5, 5, 5, 20], "the last one by itself, without a batch"
    await lab.put(range(20, 25))
    await bench.until(lambda: heir.next_offset == 25)
    await retire(heir)
    await lab.expect_exact()
    await group_has(lab, 25)  # who leaves in order leaves nothing untold


def test_every_state_can_be_left_or_is_an_end() -> None:
    """The transition table has no dead corner."""
    assert set(TRANSITIONS) == set(State)
    for state, targets in TRANSITIONS.items():
        assert targets or state in (State.RELEASED, State.POISONED)
        assert State.NEW not in targets
