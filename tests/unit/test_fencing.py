"""The search for batches that a fenced worker wrote (tests/faults/fencing.py) finds one."""

from __future__ import annotations

from pathlib import Path

from tests.faults.fencing import HEADER, NO_PRODUCER, fences_of

PAYLOAD = b"records"


def batch(base: int, producer: int, epoch: int) -> bytes:
    length = HEADER.size - 12 + len(PAYLOAD)
    return HEADER.pack(base, length, 0, 2, 0, 0, 0, 0, 0, producer, epoch, -1, 1) + PAYLOAD


def log(folder: Path, *segments: list[bytes]) -> Path:
    partition = folder / "payment.events-0"
    partition.mkdir()
    for number, batches in enumerate(segments):
        (partition / f"{number:020d}.log").write_bytes(b"".join(batches))
    return folder


def test_epochs_that_rise_are_takeovers(tmp_path: Path) -> None:
    found = fences_of(
        log(
            tmp_path,
            [batch(0, 7, 0), batch(1, 7, 0), batch(2, NO_PRODUCER, -1)],
            [batch(3, 7, 2), batch(4, 8, 0)],
        )
    )
    assert (found.batches, found.producers, found.takeovers, found.stale) == (4, 2, 1, [])


def test_a_batch_behind_a_successors_is_found_across_segments(tmp_path: Path) -> None:
    found = fences_of(log(tmp_path, [batch(0, 7, 4), batch(1, 7, 5)], [batch(2, 7, 4), batch(3, 7, 5)]))
    assert found.stale == ["payment.events-0/2: producer 7 wrote with epoch 4 after 5"]


def test_a_torn_end_is_left_out(tmp_path: Path) -> None:
    assert fences_of(log(tmp_path, [batch(0, 7, 0), batch(1, 7, 1)[:-3]])).batches == 1
