"""What is measured is on the core that the benchmarks say, and a benchmark fails where it is not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.processes import (
    ALLOWED,
    BOTH,
    LOAD,
    TEST,
    Cores,
    Watched,
    cores_of,
    keep_self_on,
    must_be_on,
    require_cores,
)

pytestmark = pytest.mark.skipif(not TEST, reason="needs Linux and two cores")
SLEEPER = (
    sys.executable,
    "-c",
    "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
)


@pytest.fixture
def on_load_core() -> Iterator[None]:
    """This process as a benchmark's load generator."""
    keep_self_on(LOAD)
    yield
    keep_self_on(ALLOWED)


def _cores_of_started(folder: Path, cores: Cores) -> Cores:
    with Watched(SLEEPER, log=folder / "log", cores=cores) as sleeper:
        deadline = time.monotonic() + 20
        while not (sleeper.cpu_s > 0 and len(list(Path(f"/proc/{sleeper.pid}/task").iterdir())) == 2):
            assert time.monotonic() < deadline, "the second thread and the first tick of CPU time"
            time.sleep(0.02)
        sleeper.check()
    sleeper.check_cores()
    return sleeper.cores


def test_what_is_measured_and_the_load_have_different_cores():
    require_cores()
    assert len(LOAD) == len(TEST) == 1
    assert LOAD != TEST
    assert BOTH == LOAD | TEST <= ALLOWED


def test_a_process_is_alone_on_its_core_though_its_starter_is_kept_on_another(
    on_load_core: None, tmp_path: Path
):
    assert _cores_of_started(tmp_path, TEST) == TEST
    assert cores_of(os.getpid()) == LOAD


def test_the_whole_system_has_two_cores_and_no_more(on_load_core: None, tmp_path: Path):
    assert _cores_of_started(tmp_path, BOTH) == BOTH


def test_a_process_on_another_core_than_asked_for_is_an_error(tmp_path: Path):
    with Watched(SLEEPER, log=tmp_path / "log", cores=TEST) as sleeper:
        os.sched_setaffinity(sleeper.pid, LOAD)
        assert sleeper.cpu_s >= 0
        with pytest.raises(RuntimeError, match="was to be on"):
            sleeper.check()


def test_the_message_names_both():
    with pytest.raises(RuntimeError, match=r"^broker may run on cores \[0, 1\] and was to be on \[0\]$"):
        must_be_on(frozenset({0}), frozenset({0, 1}), "broker")
