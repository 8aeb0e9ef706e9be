"""More workers, fewer workers, slow and silent ones: which partitions move, how long each is silent."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from laboratory import WAIT_S, Laboratory, Worker
from watch import Commit, Tail, commits, moves, pauses, silences, summary

from mini_visa.streams.ownership import FETCH_WAIT_MS
from mini_visa.streams.poison import EXIT_POISONED

pytestmark = pytest.mark.broker

SESSION_S = 6
"""The shortest that a broker allows by default."""
OPTIONS = {"session_timeout_s": SESSION_S, "batch_records_max": 100}


@asynccontextmanager
async def load(laboratory: Laboratory, pause_s: float = 0.05) -> AsyncIterator[None]:
    """A steady load on every partition while the body runs."""
    enough = asyncio.Event()

    async def put() -> None:
        number = 0
        while not enough.is_set():
            await laboratory.put(range(number, number + 50))
            number += 50
            await asyncio.sleep(pause_s)

    putting = asyncio.create_task(put())
    try:
        yield
    finally:
        enough.set()
        await putting


async def all_commits(laboratory: Laboratory) -> dict[int, list[Commit]]:
    return {partition: await commits(laboratory, partition) for partition in range(laboratory.partitions)}


def acquired(worker: Worker) -> int:
    return worker.log.count(": acquired in ")


@pytest.mark.slow
async def test_one_worker_two_three_and_one_again_move_no_partition_that_need_not_move(
    laboratory: Laboratory, record_property: Callable[[str, object], None]
) -> None:
    """Points 10, 11, 12, on a number of partitions that does not divide: 5, then 3 and 2, then 2, 2 and 1,
    then 5. Whoever keeps a partition runs on without acquiring it again."""
    await laboratory.create_topics(partitions=5)
    async with load(laboratory):
        first = laboratory.worker(instance="a", home="a", **OPTIONS)
        await first.says("acquired", times=5)
        second = laboratory.worker(instance="b", home="b", **OPTIONS)
        await second.says("acquired", times=2)
        third = laboratory.worker(instance="c", home="c", **OPTIONS)
        await third.says("acquired", times=1)
        await asyncio.sleep(1)
        assert (acquired(first), acquired(second), acquired(third)) == (5, 2, 1)
        assert await second.stop() == 0 and await third.stop() == 0
        await first.says("partitions [0, 1, 2, 3, 4]", times=2)
        await first.says("acquired", times=5 + 3)
        await asyncio.sleep(1)
    await laboratory.done(first)
    assert await first.stop() == 0
    await laboratory.expect_exact()
    assert "had forgotten this member" not in first.log
    moved = [count for count in moves(laboratory.workers) if count]
    assert sum(moved[:2]) == 2 + 1, moved
    assert sum(moved[2:]) == 3, "back to the first, at once or one worker's after the other's"
    batches = await all_commits(laboratory)
    silent = [seconds for each in batches.values() for _, seconds in silences(each)]
    paused = [seconds for each in batches.values() for seconds in pauses(each, 0.2)]
    assert len(silent) == 3 + 3, "an ownership for each move and no more"
    record_property("partitions_moved", moved)
    record_property("silence_s", summary(silent))
    record_property("pause_s", summary(paused))
    print(f"partitions moved {moved}; silent for {summary(silent)}; pauses otherwise {summary(paused)}")


async def test_a_partition_with_nearly_all_the_load_does_not_hold_up_the_others(
    laboratory: Laboratory,
) -> None:
    """Each partition's batches take turns with the others', however long its own queue is."""
    await laboratory.create_topics(partitions=5)
    await laboratory.put(range(9_000), partition=lambda _: 0)
    await laboratory.put(range(9_000, 10_000), partition=lambda number: 1 + number % 4)
    worker = laboratory.worker(batch_records_max=100)
    await laboratory.done(worker)
    await laboratory.expect_exact()
    batches = await all_commits(laboratory)
    hot = batches.pop(0)
    assert len(hot) >= 90
    for partition, each in batches.items():
        first, *_, third = each[:3]  # 250 records are three batches; the last one may only tell an offset
        between = sum(first.time_s < batch.time_s < third.time_s for batch in hot)
        assert between <= 20, f"partition {partition} waited for {between} batches of the busy one"


@pytest.mark.slow
async def test_a_slow_worker_holds_up_its_own_partitions_only(laboratory: Laboratory) -> None:
    """It is slow, not silent: it stays a member, keeps its partitions, and loses nothing."""
    await laboratory.create_topics(partitions=4)
    quick = laboratory.worker(instance="a", home="a", **OPTIONS)
    await quick.says("acquired", times=4)
    slow = laboratory.worker(instance="b", home="b", fault="handled:delay=1:*", **OPTIONS)
    await slow.says("acquired", times=2)
    await laboratory.put(range(4_000))
    await laboratory.done()
    await laboratory.expect_exact()
    ends = sorted(each[-1].time_s for each in (await all_commits(laboratory)).values())
    assert ends[2] - ends[1] > 4, "two partitions were done long before the slow worker's"
    assert quick.log.count("generation") == 2 and slow.log.count("generation") == 1, "nobody was forgotten"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "blocked"])
async def test_the_partitions_of_a_worker_that_never_answers_move_and_it_does_no_harm_when_it_wakes(
    laboratory: Laboratory, how: str, record_property: Callable[[str, object], None]
) -> None:
    """Points 13, 9: once its session is over another one fences it. A process that is stopped, and one whose
    event loop is, come back as if nothing had happened: they end or join again, and commit nothing more."""
    await laboratory.create_topics(partitions=2)
    fault = f"handled:block={SESSION_S + 10}:10" if how == "blocked" else ""
    silent = laboratory.worker(instance="a", home="a", fault=fault, **OPTIONS)
    await silent.says(": acquired in ", times=2)
    other = laboratory.worker(instance="b", home="b", **OPTIONS)
    await other.says(": acquired in ")
    async with load(laboratory):
        if how == "blocked":
            await silent.says("fault: block")
        else:
            await asyncio.sleep(1)
            silent.freeze()
        await other.says(": acquired in ", times=2)
        await asyncio.sleep(1)
        silent.thaw()
        deadline = time.monotonic() + WAIT_S
        while silent.process.poll() is None and "had forgotten this member" not in silent.log:
            assert time.monotonic() < deadline, f"it knows nothing of it:\n{silent.log}"
            await asyncio.sleep(0.1)
    assert silent.process.returncode in (None, EXIT_POISONED), silent.log
    await laboratory.done()
    await laboratory.expect_exact()
    lengths = [seconds for each in (await all_commits(laboratory)).values() for _, seconds in silences(each)]
    assert max(lengths) > SESSION_S / 2, "until its session was over, and no earlier"
    record_property("silence_s", summary(lengths))
    print(f"silent for {summary(lengths)}")


async def test_a_lone_record_does_not_wait_for_company(laboratory: Laboratory) -> None:
    """At low load a batch is one record, at once: each is answered before the next one is written."""
    await laboratory.create_topics(partitions=1)
    worker = laboratory.worker()
    await worker.says(": acquired in ")
    answers = Tail(laboratory, laboratory.seen, 0)
    took = []
    for number in range(15):
        began = time.monotonic()
        await laboratory.put([number])
        while not await answers.more():
            assert time.monotonic() - began < WAIT_S, worker.log
        took.append(time.monotonic() - began)
    assert len(await commits(laboratory, 0)) >= 15, "a batch each, and some that tell the group's offset"
    assert statistics.median(took) < FETCH_WAIT_MS / 1000 / 2, summary(took)
    print(f"answered in {summary(took)} s")
