"""One partition without a broker: how large its batches are, and which ways it can go."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from counting import ITEMS, Item, a_plan, become_running, count

from mini_visa.streams import metrics, ownership
from mini_visa.streams.ownership import HANDLER_S_MAX, PACED_RECORDS, Ownership, Pace, State
from mini_visa.streams.processor import BatchResult, Record
from mini_visa.streams.wire import Chunk

PARTITION = 7_777
"""Of no other test in this process: metrics are the process's."""


def owner(tmp_path: Path, pace: Pace | None = None, **settings: Any) -> Ownership:
    return Ownership(
        a_plan(tmp_path, **settings), PARTITION, lambda where, error: pytest.fail(f"{where}: {error!r}"), pace
    )


def start(one: Ownership) -> None:
    """At offset 0, as a partition that has been acquired."""
    become_running(one)
    one.next_offset = one._told = 0


def chunk(first: int, records: int, record_bytes: int = 100) -> Chunk:
    end = first + records
    found = [Record(offset, 1, b"k", ITEMS.encode(Item(offset))) for offset in range(first, end)]
    return Chunk(found, first, end, records * record_bytes, end)


def sizes(owner: Ownership) -> list[int]:
    """Of all batches that the inbox makes; they must hold its records in order, each once."""
    batches = []
    while owner._inbox:
        batches.append(owner._take())
    offsets = [record.offset for batch in batches for record in batch]
    assert offsets == sorted(set(offsets)) == list(range(len(offsets)))
    return [len(batch) for batch in batches]


async def test_what_is_there_is_one_batch_however_little(tmp_path: Path) -> None:
    one = owner(tmp_path)
    one._inbox.append(chunk(0, 1))
    assert sizes(one) == [1]
    one._inbox.extend([chunk(0, 3), chunk(3, 4)])
    assert sizes(one) == [7]


async def test_a_batch_is_bounded_in_records(tmp_path: Path) -> None:
    bounded = owner(tmp_path, batch_records_max=10)
    bounded._inbox.extend([chunk(0, 7), chunk(7, 18)])
    assert sizes(bounded) == [10, 10, 5]


async def test_a_batch_is_bounded_in_bytes_but_holds_a_record_at_least(tmp_path: Path) -> None:
    bounded = owner(tmp_path, batch_bytes_max=10_000)
    bounded._inbox.extend([chunk(0, 6, 1_500), chunk(6, 6, 1_500)])
    assert sizes(bounded) == [6, 6]
    bounded._inbox.extend([chunk(0, 3, 50_000), chunk(3, 2, 100)])
    assert sizes(bounded) == [1, 1, 1, 2]


async def test_a_batch_is_bounded_in_the_time_that_the_handler_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned from the batches before: a handler of 2 ms a record gets 125 records at a time."""
    slow = owner(tmp_path)
    record_s = 0.002

    class Slow:
        def run(self, records: list[Record], **_: Any) -> BatchResult:
            until = time.thread_time() + record_s * len(records)
            while time.thread_time() < until:
                pass
            return BatchResult([], [], records[-1].offset + 1, 1, len(records), 0)

    async def commit(_: BatchResult) -> None: ...

    monkeypatch.setattr(slow, "_execution", Slow())
    monkeypatch.setattr(slow, "_commit", commit)
    for number in range(12):
        await slow._process(list(chunk(number * 10, 10).records))
    slow._inbox.append(chunk(0, 1_000))
    right = HANDLER_S_MAX / record_s
    assert 0.5 * right <= sizes(slow)[0] <= 1.2 * right


async def test_a_way_that_the_table_does_not_have_is_refused_and_each_step_is_logged_and_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = owner(tmp_path)

    def shown() -> set[str]:
        return {
            sample.labels["state"]
            for metric in metrics.STATE.collect()
            for sample in metric.samples
            if sample.value == 1 and sample.labels["partition"] == str(PARTITION)
        }

    with caplog.at_level(logging.DEBUG):
        one._become(State.FENCING)
        assert shown() == {"fencing"}
        with pytest.raises(AssertionError, match="fencing -> running is not a way"):
            one._become(State.RUNNING)
        one._become(State.RESTORING)
    assert shown() == {"restoring"} and one.state is State.RESTORING
    one._become(State.RELEASING)
    one._become(State.RELEASED)
    assert shown() == set(), "it is this worker's no more"
    assert f"e.s.count/{PARTITION}: fencing -> restoring" in caplog.text


class Log:
    """A source that has one more record of `record_bytes` each time it is asked, up to `last`."""

    def __init__(self, last: int, record_bytes: int) -> None:
        self.asked: list[float] = []
        self.caught_up = asyncio.Event()
        self._last = last
        self._record_bytes = record_bytes

    async def fetch(self, partition: Any, offset: int, **limits: int) -> Chunk:
        self.asked.append(time.monotonic())
        if offset >= self._last:
            self.caught_up.set()
            await asyncio.Event().wait()
        return chunk(offset, 1, self._record_bytes)


@pytest.mark.parametrize(
    ("rest_s", "record_bytes", "least_s", "most_s"),
    [(0.1, 100, 0.2, 10.0), (10.0, 600_000, 0.0, 9.0)],
    ids=["caught up", "behind"],
)
async def test_a_processor_that_rests_looks_again_after_a_while_unless_it_is_behind(
    tmp_path: Path, rest_s: float, record_bytes: int, least_s: float, most_s: float
) -> None:
    resting = owner(tmp_path)
    resting.plan = replace(resting.plan, processor=replace(count, rest_s=rest_s))
    log = Log(2, record_bytes)
    resting._wire = log  # type: ignore[assignment]
    fetching = asyncio.create_task(resting._fetch(0))
    await log.caught_up.wait()
    fetching.cancel()
    assert len(log.asked) == 3
    assert least_s <= log.asked[-1] - log.asked[0] <= most_s
    assert sizes(resting) == [2]


class Commits:
    """Two partitions of one worker whose commits last until they are told to end."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = Pace()
        self.owners = [owner(tmp_path, pace), owner(tmp_path, pace)]
        self.under_way: list[tuple[int, int]] = []
        """(which partition, records of its batch)"""
        self._ends = [asyncio.Event(), asyncio.Event()]
        self._tasks = []
        for number, one in enumerate(self.owners):
            start(one)
            monkeypatch.setattr(
                one, "_process", lambda records, number=number: self._process(number, records)
            )
            self._tasks.append(asyncio.create_task(one._run()))

    async def _process(self, number: int, records: list[Record]) -> None:
        self.under_way.append((number, len(records)))
        await self._ends[number].wait()
        self._ends[number].clear()
        self.under_way.remove((number, len(records)))
        one = self.owners[number]
        one.next_offset += len(records)
        one._told = one.next_offset

    async def come(self, number: int, first: int, records: int) -> None:
        self.owners[number]._inbox.append(chunk(first, records))
        self.owners[number]._arrival.set()
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self, number: int) -> None:
        self._ends[number].set()
        for _ in range(9):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_small_batches_of_a_worker_commit_in_turn_and_take_what_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PACE_S", 60.0)
    commits = Commits(tmp_path, monkeypatch)
    await commits.come(0, 0, 1)
    assert commits.under_way == [(0, 1)], "the first one waits for nobody"
    await commits.come(1, 0, 1)
    await commits.come(1, 1, 2)
    assert commits.under_way == [(0, 1)]
    await commits.end(0)
    assert commits.under_way == [(1, 3)]
    await commits.come(0, 1, 1)
    assert commits.under_way == [(1, 3)]
    await commits.end(1)
    assert commits.under_way == [(0, 1)], "the turn comes back"
    await commits.stop()


async def test_a_batch_that_pays_for_its_transaction_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PACE_S", 60.0)
    commits = Commits(tmp_path, monkeypatch)
    await commits.come(0, 0, 1)
    await commits.come(1, 0, PACED_RECORDS)
    assert commits.under_way == [(0, 1), (1, PACED_RECORDS)]
    await commits.stop()


async def test_a_commit_that_takes_long_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what went ahead of it gives no turn back that it did not have."""
    commits = Commits(tmp_path, monkeypatch)
    await commits.come(0, 0, 1)
    await commits.come(1, 0, 1)
    while len(commits.under_way) < 2:  # noqa: ASYNC110 - bounded by PACE_S
        await asyncio.sleep(0.001)
    monkeypatch.setattr(ownership, "PACE_S", 60.0)
    await commits.end(1)
    await commits.come(1, 1, 1)
    assert commits.under_way == [(0, 1)], "the long one has the turn still"
    await commits.end(0)
    assert commits.under_way == [(1, 1)]
    await commits.stop()
