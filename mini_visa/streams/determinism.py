"""Is a handler a function of its log? Run it over the same records in other ways and compare every byte.

    assert_deterministic(decide, records, path="agents.authorization:decide")

Caught: reading a clock, drawing random numbers, opening files or connections, keeping state outside the
tables, depending on how the log is cut into batches or on where a worker was restarted, iterating in an order
that changes with Python's hash seed.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import msgspec

from mini_visa.streams.processor import Execution, Processor, RawOutput, Record
from mini_visa.streams.store import Change
from mini_visa.streams.testing import DEAD_LETTERS, MemoryStore

FORBIDDEN: Final[dict[str, frozenset[str]]] = {
    "time": frozenset(
        {
            "time",
            "time_ns",
            "monotonic",
            "monotonic_ns",
            "perf_counter",
            "perf_counter_ns",
            "process_time",
            "process_time_ns",
            "thread_time",
            "thread_time_ns",
            "clock_gettime",
            "clock_gettime_ns",
            "localtime",
            "sleep",
        }
    ),
    "posix": frozenset({"urandom", "getrandom", "getpid"}),
    "_random": frozenset({"random", "getrandbits", "seed"}),
    "io": frozenset({"open"}),
    "_io": frozenset({"open", "FileIO"}),
    "_uuid": frozenset({"generate_time_safe"}),
    "_socket": frozenset({"connect", "connect_ex", "bind", "sendto", "getaddrinfo", "gethostbyname"}),
    "_posixsubprocess": frozenset({"fork_exec"}),
    "datetime": frozenset({"now", "utcnow", "today"}),
}
"""C functions, by module, that a handler's result must not depend on."""


class NotDeterministic(AssertionError):
    """The text says what the handler did, or where two runs differ."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything a run staged."""

    outputs: list[RawOutput]
    changes: list[list[Change]]
    """Of each batch."""
    rows: dict[bytes, bytes]
    """What the tables hold in the end."""
    partition_time: int

    def digest(self) -> str:
        """The same for the same outputs and rows, in whatever batches they came."""
        staged = ([[*output[:5], list(output[5])] for output in self.outputs], sorted(self.rows.items()))
        return hashlib.sha256(msgspec.msgpack.encode((staged, self.partition_time))).hexdigest()


def trace(
    processor: Processor,
    records: Sequence[Record],
    *,
    batch: int,
    restart_every: int = 0,
    partition: int = 0,
    partitions: int = 4,
) -> Trace:
    """Run `processor` over `records`, `batch` at a time, with a new execution over the same store after
    every `restart_every` batches (0: never)."""
    store = MemoryStore()
    topics = (processor.source, *processor.sinks)
    counts = {topic.name: topic.partitions or partitions for topic in topics}
    outputs: list[RawOutput] = []
    changes: list[list[Change]] = []
    now = 0
    execution: Execution | None = None
    for number, start in enumerate(range(0, len(records), batch)):
        if execution is None or (restart_every and number % restart_every == 0):
            execution = Execution(
                processor,
                partition,
                store,
                dead_letters=DEAD_LETTERS,
                partition_counts=counts,
                partition_time=now,
            )
        result = execution.run(records[start : start + batch])
        store.write(result.changes)
        execution.committed()
        outputs.extend(result.outputs)
        changes.append(result.changes)
        now = result.partition_time
    return Trace(outputs, changes, dict(store.rows), now)


@contextmanager
def nothing_from_outside() -> Iterator[None]:
    """Raises `NotDeterministic` where the code inside calls one of `FORBIDDEN`, however it got hold of it."""

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        name = getattr(called, "__name__", "")
        owner = getattr(called, "__self__", None)
        module = getattr(called, "__module__", None) or getattr(owner, "__module__", None)
        if module is None:
            module = type(owner).__module__
        bases = [base.__module__ for base in type(owner).__mro__] if module not in FORBIDDEN else []
        for each in (module, *bases):
            if name in FORBIDDEN.get(each, ()):
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise NotDeterministic(
                    f"{where} calls {each}.{name}: a handler takes time, ids and state from its context only"
                )

    former = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(former)


def assert_deterministic(
    processor: Processor,
    records: Sequence[Record],
    *,
    path: str | None = None,
    partition: int = 0,
    partitions: int = 4,
) -> Trace:
    """Raises `NotDeterministic` unless every way of running `processor` over `records` stages the same.

    With `path` ("module:name" of the processor) a fresh interpreter with another hash seed runs it too.
    Returns the trace of all records in one batch.
    """
    assert records, "nothing to run"

    def run(batch: int, restart_every: int = 0) -> Trace:
        return trace(
            processor,
            records,
            batch=batch,
            restart_every=restart_every,
            partition=partition,
            partitions=partitions,
        )

    with nothing_from_outside():
        whole = run(len(records))
    again = run(len(records))
    _compare(whole, again, "the same batch again")
    if whole.changes != again.changes:
        raise NotDeterministic("the same batch again writes its rows in another order or twice")
    _compare(whole, run(1), "a record a batch")
    _compare(whole, run(7, restart_every=3), "batches of 7 with restarts")
    _compare(whole, run(1, restart_every=1), "a restart after every record")
    if path is not None:
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        if _elsewhere(path, records, partition, partitions, seed) != whole.digest():
            raise NotDeterministic(
                f"{path} does something else in an interpreter with PYTHONHASHSEED={seed}: it iterates over "
                "a set, or over what another process filled"
            )
    return whole


def _compare(one: Trace, other: Trace, what: str) -> None:
    for number, (first, second) in enumerate(zip(one.outputs, other.outputs, strict=False)):
        if first != second:
            raise NotDeterministic(f"{what}: output {number} is {second}, it was {first}")
    if len(one.outputs) != len(other.outputs):
        raise NotDeterministic(f"{what}: {len(other.outputs)} outputs, there were {len(one.outputs)}")
    for key in one.rows.keys() | other.rows.keys():
        if one.rows.get(key) != other.rows.get(key):
            raise NotDeterministic(
                f"{what}: row {key!r} is {other.rows.get(key)!r}, it was {one.rows.get(key)!r}"
            )
    if one.partition_time != other.partition_time:
        raise NotDeterministic(f"{what}: the partition's time is {other.partition_time}")


def _elsewhere(path: str, records: Sequence[Record], partition: int, partitions: int, seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mini_visa.streams.determinism", path, str(partition), str(partitions)],
        input=msgspec.msgpack.encode([tuple(record) for record in records]),
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise NotDeterministic(f"{path} fails in a fresh interpreter:\n{done.stderr.decode()}")
    return done.stdout.decode().split()[-1]


def _main(path: str, partition: str, partitions: str) -> None:
    module, _, name = path.partition(":")
    processor: Processor = getattr(importlib.import_module(module), name)
    raw = msgspec.msgpack.decode(sys.stdin.buffer.read())
    records = [
        Record(offset, timestamp, key, value, [tuple(header) for header in headers])
        for offset, timestamp, key, value, headers in raw
    ]
    staged = trace(
        processor, records, batch=5, restart_every=2, partition=int(partition), partitions=int(partitions)
    )
    sys.stdout.write(staged.digest() + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
