"""Workers that join, leave, hang and come back: every partition has one owner, and its batches follow on."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest
from laboratory import WAIT_S, Laboratory, Worker

from mini_visa.broker import EmbeddedBroker
from mini_visa.streams.poison import EXIT_POISONED

pytestmark = pytest.mark.broker

SESSION_S = 6
"""The shortest that a broker allows by default."""


async def keep_putting(laboratory: Laboratory, until: asyncio.Event, pause_s: float = 0.05) -> int:
    number = 0
    while not until.is_set():
        await laboratory.put(range(number, number + 50))
        number += 50
        await asyncio.sleep(pause_s)
    return number


def never_forgotten(worker: Worker) -> bool:
    return "had forgotten this member" not in worker.log


@pytest.mark.parametrize("fault", ["produced:delay=1.5:*", "fenced:delay=2:*", "handled:delay=1:*"])
async def test_a_slow_step_across_a_rebalance_repeats_and_loses_nothing(
    laboratory: Laboratory, fault: str
) -> None:
    """Points 10, 11, 12: the batch at hand commits before its partition is given up; a new group's first
    batch too, and reading offsets late reads them rightly."""
    await laboratory.create_topics(partitions=4)
    await laboratory.put(range(400))
    slow = laboratory.worker(
        instance="a", home="a", fault=fault, session_timeout_s=SESSION_S, batch_records_max=40
    )
    await slow.says("fault: delay", times=2)
    other = laboratory.worker(instance="b", home="b", session_timeout_s=SESSION_S, batch_records_max=40)
    await laboratory.put(range(400, 800))
    await other.says("acquired", times=2)
    await laboratory.done()
    await laboratory.expect_exact()
    assert slow.process.poll() is None and other.process.poll() is None


async def test_a_restore_longer_than_the_session_keeps_the_member(laboratory: Laboratory) -> None:
    """Point 14: the callback returns and heartbeats go on while tables are restored in the background."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(200))
    first = laboratory.worker(instance="a", session_timeout_s=SESSION_S)
    await laboratory.done(first)
    await first.kill()
    slow = laboratory.worker(
        instance="a", home="elsewhere", session_timeout_s=SESSION_S, fault="restore_batch:delay=8:*"
    )
    await slow.says("fault: delay at restore_batch", times=2)
    await laboratory.put(range(200, 300))
    await slow.says("acquired", times=2)
    await laboratory.done(slow)
    await asyncio.sleep(3)  # two heartbeats: a member that was evicted meanwhile learns of it
    assert never_forgotten(slow)
    assert slow.log.count("generation") == 1
    await laboratory.expect_exact()


async def test_a_second_worker_may_join_during_a_long_restore(laboratory: Laboratory) -> None:
    """Point 14: an acquisition under way is given up and begun again, without an eviction."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(200))
    first = laboratory.worker(instance="a", session_timeout_s=SESSION_S)
    await laboratory.done(first)
    await first.kill()
    slow = laboratory.worker(
        instance="a", home="elsewhere", session_timeout_s=SESSION_S, fault="restore_batch:delay=4:*"
    )
    await slow.says("fault: delay at restore_batch")
    other = laboratory.worker(instance="b", home="b", session_timeout_s=SESSION_S)
    await other.says("acquired")
    await laboratory.put(range(200, 300))
    await laboratory.done()
    assert never_forgotten(slow) and slow.process.poll() is None
    await laboratory.expect_exact()


@pytest.mark.slow
async def test_two_workers_of_the_same_instance_do_not_duel_for_ever(laboratory: Laboratory) -> None:
    """Point 18: one of them ends and says why; nothing is lost or doubled meanwhile."""
    await laboratory.create_topics(partitions=2)
    options = {"session_timeout_s": SESSION_S, "batch_records_max": 50, "instance": "same"}
    first = laboratory.worker(home="a", **options)
    await first.says("acquired", times=2)
    second = laboratory.worker(home="b", **options)
    enough = asyncio.Event()
    load = asyncio.create_task(keep_putting(laboratory, enough))
    deadline = time.monotonic() + WAIT_S
    while first.process.poll() is None and second.process.poll() is None:
        assert time.monotonic() < deadline, f"{first.log}\n{second.log}"
        await asyncio.sleep(0.1)
    enough.set()
    await load
    ended, stays = (first, second) if first.process.poll() is not None else (second, first)
    assert ended.process.returncode == EXIT_POISONED
    await laboratory.done(stays)
    await laboratory.expect_exact()


async def test_two_silent_workers_of_the_same_instance_do_not_duel_for_ever(laboratory: Laboratory) -> None:
    """Point 18 without any traffic that would fence one of them."""
    await laboratory.create_topics(partitions=2)
    options = {"session_timeout_s": SESSION_S, "instance": "same"}
    first = laboratory.worker(home="a", **options)
    await first.says("acquired", times=2)
    second = laboratory.worker(home="b", **options)
    deadline = time.monotonic() + WAIT_S
    while first.process.poll() is None and second.process.poll() is None:
        assert time.monotonic() < deadline, f"{first.log}\n{second.log}"
        await asyncio.sleep(0.1)
    ended = first if first.process.poll() is not None else second
    assert ended.process.returncode == EXIT_POISONED
    assert "MINI_VISA_INSTANCE" in ended.log or "Fenced" in ended.log


async def test_services_and_processors_in_one_process_keep_apart(laboratory: Laboratory) -> None:
    """Point 6: two apps, two processors on one source: transactional ids, groups and tables are their own."""
    await laboratory.create_topics(partitions=2)
    await laboratory.create_topic(
        f"{laboratory.prefix}.doubled", f"{laboratory.prefix}.tripled", partitions=2
    )
    await laboratory.put(range(600))
    worker = laboratory.worker(services=("counting", "doubling"), batch_records_max=50)
    groups = [
        laboratory.group(),
        f"{laboratory.prefix}.{laboratory.prefix}-more.double",
        f"{laboratory.prefix}.{laboratory.prefix}-more.triple",
    ]
    for group in groups:
        await laboratory.done(worker, group)
    assert await worker.stop() == 0
    await laboratory.expect_exact()
    for name, factor in (("doubled", 2), ("tripled", 3)):
        records = (await laboratory.read(f"{laboratory.prefix}.{name}")).values()
        numbers = Counter(json.loads(record.value)["number"] for part in records for record in part)
        assert numbers == Counter(factor * number for number in range(600))


async def test_ticks_reach_every_partition_in_its_own_order(laboratory: Laboratory) -> None:
    """Time passing is an input: it comes through the source, and never goes back."""
    await laboratory.create_topics(partitions=2)
    worker = laboratory.worker(services=("ticking",), tick_interval_s=0.1)
    await worker.says("acquired", times=2)
    deadline = time.monotonic() + WAIT_S
    while True:
        seen = await laboratory.read(laboratory.seen)
        if all(len(records) >= 5 for records in seen.values()):
            break
        assert time.monotonic() < deadline, worker.log
        await asyncio.sleep(0.2)
    for records in seen.values():
        times = [json.loads(record.value)["total"] for record in records]
        assert times == sorted(times) and times[-1] > times[0]
    assert await worker.stop() == 0


async def test_a_drain_that_does_not_end_ends_the_process(laboratory: Laboratory) -> None:
    """Point 10: on revocation or shutdown a batch is awaited, but not for ever."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(10))
    worker = laboratory.worker(fault="handled:delay=60", drain_timeout_s=2)
    await worker.says("fault: delay at handled")
    assert await worker.stop() == EXIT_POISONED
    assert "within 2 s" in worker.log
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_topics_that_must_be_co_partitioned_are_checked_at_start(laboratory: Laboratory) -> None:
    """Point 6: a record about an account would land on another partition number than its source's."""
    await laboratory.create_topic(laboratory.items, laboratory.other, partitions=2)
    await laboratory.create_topic(laboratory.seen, partitions=3)
    worker = laboratory.worker()
    assert await worker.ends() == EXIT_POISONED
    assert f"{laboratory.items} has 2 partitions and {laboratory.seen} 3" in worker.log


async def test_a_missing_topic_is_named_at_start(laboratory: Laboratory) -> None:
    await laboratory.create_topic(laboratory.items, laboratory.other, partitions=2)
    worker = laboratory.worker()
    assert await worker.ends() == EXIT_POISONED
    assert f"no such topic: {laboratory.seen}" in worker.log
    assert "mini-visa topics apply" in worker.log


@pytest.mark.slow
@pytest.mark.parametrize("step", ["produced", "commit_sent", "committed"])
async def test_a_broker_restart_in_the_middle_of_a_commit_loses_nothing(
    fresh_broker: EmbeddedBroker, laboratory: Laboratory, step: str
) -> None:
    """Points 2, 9: the coordinator goes away and comes back; the worker goes on, or ends and is restarted."""
    assert fresh_broker.address is not None
    laboratory.broker = fresh_broker.address
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(500))
    worker = laboratory.worker(
        fault=f"{step}:delay=2:3", batch_records_max=50, transaction_timeout_s=30, session_timeout_s=20
    )
    await worker.says(f"fault: delay at {step}")
    fresh_broker.kill()
    await asyncio.to_thread(fresh_broker.start)
    await laboratory.put(range(500, 600))
    for _ in range(60):
        if worker.process.poll() is not None or await laboratory.committed() == await laboratory.ends():
            break
        await asyncio.sleep(0.5)
    if worker.process.poll() is not None:
        assert worker.process.returncode == EXIT_POISONED
        worker = laboratory.worker(batch_records_max=50)
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_a_stop_in_the_middle_of_a_rebalance_drains_and_ends_in_order(laboratory: Laboratory) -> None:
    """Point 10: both give all partitions back; the later one waits for the earlier."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(200))
    slow = laboratory.worker(
        instance="a", home="a", fault="handled:delay=4:*", session_timeout_s=SESSION_S, batch_records_max=50
    )
    await slow.says("fault: delay at handled")
    other = laboratory.worker(instance="b", home="b", session_timeout_s=SESSION_S)
    await other.says("Starting...", times=2)
    await asyncio.sleep(2.5)  # a heartbeat tells the first that it must rejoin: it is draining now
    assert await slow.stop() == 0, slow.log
    await laboratory.done(other)
    await laboratory.expect_exact()
