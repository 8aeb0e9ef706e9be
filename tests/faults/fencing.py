"""Was every zombie fenced? The broker's own files tell: each batch carries its producer's id and epoch.

A transactional id has one producer id, and whoever takes it over gets a higher epoch. So in each partition
the epochs of a producer id never fall. A batch of a lower epoch behind one of a higher is the write of a
worker whose partition another had taken over already: the one thing that fencing is for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
"""Record batch, version 2: base offset, length, leader epoch, magic, checksum, attributes, last offset delta,
first and last timestamp, producer id, producer epoch, base sequence, number of records."""
BEFORE_LENGTH: Final = 12
"""Bytes of a batch that its length does not count."""
NO_PRODUCER: Final = -1


class Fences(NamedTuple):
    batches: int
    """Of producers with an id."""
    producers: int
    takeovers: int
    """Times that the epoch of a producer rose from one batch to the next in a partition: with transactions of
    version 2 also at each new transaction."""
    stale: list[str]
    """A line for each batch that should have been fenced."""


def batches(file: Path) -> Iterator[tuple[int, int, int]]:
    """(base offset, producer id, epoch) of each batch of one log segment; a torn end is left out."""
    with file.open("rb") as opened:
        size = file.stat().st_size
        if not size:
            return
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            at = 0
            while at + HEADER.size <= size:
                base, length, _, magic, _, _, _, _, _, producer, epoch, _, _ = HEADER.unpack_from(data, at)
                if length <= 0 or magic != 2 or at + BEFORE_LENGTH + length > size:
                    return
                yield base, producer, epoch
                at += BEFORE_LENGTH + length


def fences_of(log: Path) -> Fences:
    """All partitions under a broker's `log` directory, its own topics left out."""
    count, rises, producers, stale = 0, 0, set[int](), list[str]()
    for folder in sorted(log.iterdir()):
        if not folder.is_dir() or folder.name.startswith("__"):
            continue
        highest: dict[int, int] = {}
        for segment in sorted(folder.glob("*.log")):
            for base, producer, epoch in batches(segment):
                if producer == NO_PRODUCER:
                    continue
                count += 1
                producers.add(producer)
                known = highest.get(producer, -1)
                if epoch < known:
                    stale.append(
                        f"{folder.name}/{base}: producer {producer} wrote with epoch {epoch} after {known}"
                    )
                else:
                    rises += -1 < known < epoch
                    highest[producer] = epoch
    return Fences(count, len(producers), rises, stale)
