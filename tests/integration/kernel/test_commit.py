"""The commit of a batch: all of it or nothing, whatever is refused, killed or unknown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from laboratory import Laboratory
from warm import ROOT

from mini_visa.streams.poison import EXIT_POISONED

pytestmark = pytest.mark.broker

STEPS = ["handled", "begin", "produced", "offsets", "commit_sent", "committed", "stored"]


async def test_a_backlog_is_processed_exactly_once_in_order(laboratory: Laboratory) -> None:
    """Points 1, 3, 7: outputs, tables, progress and offsets agree to the record."""
    await laboratory.create_topics(partitions=4)
    await laboratory.put(range(10_000))
    worker = laboratory.worker(batch_records_max=500)
    await laboratory.done(worker)
    assert await worker.stop() == 0
    await laboratory.expect_exact()


async def test_a_refused_changelog_batch_aborts_outputs_and_offset_too(laboratory: Laboratory) -> None:
    """Point 1: aiokafka alone would commit the rest: outputs and offset there, the row lost."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(10))
    await laboratory.put([10], do="huge row")
    await laboratory.put(range(11, 15))
    worker = laboratory.worker()
    assert await worker.ends() == EXIT_POISONED
    assert "MessageSizeTooLarge" in worker.log
    await laboratory.expect_exact(committed=False)
    assert laboratory.partitions and all(offset <= 10 for offset in (await laboratory.committed()).values())
    # What was refused is not lost: once the broker takes it, everything is processed, once.
    await laboratory.configure(
        laboratory.changelog(), **{"max.message.bytes": "4000000", "cleanup.policy": "compact"}
    )
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_a_refused_output_batch_aborts_tables_and_offset_too(laboratory: Laboratory) -> None:
    """Point 1, for a sink."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(10))
    await laboratory.put([10], do="huge output")
    worker = laboratory.worker()
    assert await worker.ends() == EXIT_POISONED
    assert "MessageSizeTooLarge" in worker.log
    await laboratory.expect_exact(committed=False)


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_killed_at_any_step_loses_and_repeats_nothing(
    laboratory: Laboratory, step: str, disk: str
) -> None:
    """Points 1, 2, 3, 7, 17: SIGKILL at the second batch's `step`; the next worker goes on exactly."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(1_000))
    killed = laboratory.worker(fault=f"{step}:kill:3", batch_records_max=100)
    assert await killed.ends() == -9
    assert f"fault: kill at {step}" in killed.log
    await laboratory.put(range(1_000, 1_200))
    worker = laboratory.worker(home="home" if disk == "kept" else "another", batch_records_max=100)
    await laboratory.done(worker)
    await laboratory.expect_exact()
    assert await worker.stop() == 0


@pytest.mark.parametrize("step", ["begin", "produced", "commit_sent", "committed"])
async def test_an_error_at_any_step_ends_the_process_and_nothing_is_lost(
    laboratory: Laboratory, step: str
) -> None:
    """Points 2, 9: whatever is raised, the producer is not used again and the process ends."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(500))
    broken = laboratory.worker(fault=f"{step}:raise:3", batch_records_max=100)
    assert await broken.ends() == EXIT_POISONED
    assert "Injected" in broken.log or "fault injected" in broken.log
    worker = laboratory.worker(batch_records_max=100)
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_an_unknown_commit_result_ends_the_process_and_says_so(laboratory: Laboratory) -> None:
    """Point 2: the commit was sent, its answer did not come."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(100))
    worker = laboratory.worker(fault="commit_sent:raise")
    assert await worker.ends() == EXIT_POISONED
    assert "outcome is unknown" in worker.log
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_a_commit_that_outlasts_its_bound_ends_the_process(laboratory: Laboratory) -> None:
    """Point 5: a transaction's time is bounded below its time-out at the broker."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(100))
    worker = laboratory.worker(fault="produced:delay=300", transaction_timeout_s=2)
    assert await worker.ends() == EXIT_POISONED
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()


async def test_a_shutdown_during_a_commit_finishes_commit_and_store(laboratory: Laboratory) -> None:
    """Point 2: a cancelled commit commits all the same, so nothing may cancel it half-way."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(100))
    worker = laboratory.worker(fault="commit_sent:delay=2")
    await worker.says("fault: delay at commit_sent")
    assert await worker.stop() == 0
    await laboratory.expect_exact()
    worker = laboratory.worker()
    await worker.says("acquired")
    assert ", 0 changelog records restored, going on at offset 100 " in worker.log


async def test_a_worker_started_anew_has_nothing_to_restore(laboratory: Laboratory) -> None:
    """Point 7: RocksDB keeps the last changelog record's offset, not the batch's first."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(500))
    worker = laboratory.worker(batch_records_max=100)
    await laboratory.done(worker)
    await worker.kill()
    worker = laboratory.worker()
    await worker.says("acquired")
    assert ", 0 changelog records restored, going on at offset 500 " in worker.log


async def test_batches_without_table_writes_advance_progress_too(laboratory: Laboratory) -> None:
    """Points 3, 7: the progress record is in every transaction."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(20), do="only output")
    await laboratory.put(range(20, 40), do="nothing")
    worker = laboratory.worker(batch_records_max=10)
    await laboratory.done(worker)
    assert await worker.stop() == 0
    await laboratory.expect_exact()
    assert await laboratory.count(laboratory.other) == 20
    worker = laboratory.worker(home="another")
    await worker.says("going on at offset 40 ")


async def test_a_bug_in_a_handler_stops_every_partition_and_skips_nothing(laboratory: Laboratory) -> None:
    """Point 9: Faust alone would restart the agent with the next batch and lose this one."""
    await laboratory.create_topics(partitions=2)
    await laboratory.put(range(300), partition=lambda number: 0)
    await laboratory.put([300], do="fail", partition=lambda number: 0)
    await laboratory.put(range(301, 900), partition=lambda number: 0)
    for _ in range(2):
        worker = laboratory.worker(batch_records_max=50)
        assert await worker.ends() == EXIT_POISONED
        assert "the handler has a bug" in worker.log
    await laboratory.expect_exact(committed=False)
    assert (await laboratory.committed())[0] == 300


async def test_garbage_and_impossible_records_become_dead_letters_and_the_partition_goes_on(
    laboratory: Laboratory,
) -> None:
    """What cannot be processed is kept with the reason and its place; what is staged for it is undone."""
    await laboratory.create_topics(partitions=1)
    await laboratory.put(range(5))
    await laboratory.put_raw(b"\xff not json")
    await laboratory.put_raw(None)
    await laboratory.put([7], do="impossible")
    await laboratory.put(range(8, 12))
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()
    letters = (await laboratory.read(laboratory.dead_letters))[0]
    assert [letter.value for letter in letters[:2]] == [b"\xff not json", None]
    assert dict(letters[2].headers)["reason"] == b"no state allows it"
    assert dict(letters[2].headers)["source"] == f"{laboratory.items}/0/7".encode()
    assert json.loads(letters[2].value)["number"] == 7


async def test_a_record_far_in_the_future_moves_no_time_and_becomes_a_dead_letter(
    laboratory: Laboratory,
) -> None:
    """No one record can move a partition's time, even where the broker lets it in."""
    await laboratory.create_topic(
        laboratory.items, partitions=1, message_timestamp_after_max_ms=str(2**63 - 1)
    )
    await laboratory.create_topic(laboratory.seen, laboratory.other, partitions=1)
    laboratory.partitions = 1
    await laboratory.put([0])
    await laboratory.put([1], do="nothing", timestamp_ms=4_000_000_000_000)
    await laboratory.put([2])
    worker = laboratory.worker()
    await laboratory.done(worker)
    await laboratory.expect_exact()
    (letter,) = (await laboratory.read(laboratory.dead_letters))[0]
    assert dict(letter.headers)["reason"] == b"its timestamp is in the future"
    assert letter.timestamp < 4_000_000_000_000


def test_the_kernel_refuses_to_start_without_assertions() -> None:
    """Point 2: under -O aiokafka's and the kernel's own guards are gone."""
    code = "from mini_visa.streams import create_app; create_app('counting')"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "start without them" in done.stderr
