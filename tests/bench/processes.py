"""Processes under test: each on its cores, watched for CPU and memory, never left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import psutil  # type: ignore[import-untyped]

Cores = frozenset[int]


def _allowed() -> Cores:
    return frozenset(os.sched_getaffinity(0)) if sys.platform == "linux" else frozenset()


ALLOWED: Final = _allowed()
"""Cores that this process was started with: read before it keeps itself on one of them."""
LOAD: Final[Cores] = frozenset(sorted(ALLOWED)[:1])
"""Broker and load generator."""
TEST: Final[Cores] = frozenset(sorted(ALLOWED)[1:2])
"""What is measured, alone."""
BOTH: Final[Cores] = LOAD | TEST
"""Everything together, where the whole system is measured: two cores, however many there are."""


def require_cores() -> None:
    """Raises `RuntimeError` where what is measured cannot have a core of its own."""
    if not TEST:
        raise RuntimeError(
            "the benchmarks need Linux and two cores: one for what is measured, one for broker and load"
        )


def _threads(pid: int) -> list[int]:
    try:
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return []


def cores_of(pid: int) -> Cores:
    """Every core that a thread of the process may run on; none when it is gone."""
    found: set[int] = set()
    for thread in _threads(pid):
        with contextlib.suppress(ProcessLookupError):
            found |= os.sched_getaffinity(thread)
    return frozenset(found)


def keep_self_on(cores: Cores) -> None:
    """Keep every thread of this process, and what it starts from now on, on `cores`."""
    for thread in _threads(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


@contextlib.contextmanager
def starting_on(cores: Cores) -> Iterator[None]:
    """What this thread starts meanwhile is on `cores` from its first instruction on."""
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


def dying_with_parent() -> list[str]:
    """The command prefix that has Linux kill a process when the thread that started it ends, however that
    does; nothing where that cannot be had."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def stop_in_order_when_told() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it started is stopped, what it wrote is thrown away."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started it to ignore this
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def must_be_on(asked: Cores, found: Cores, what: str) -> None:
    """Raises `RuntimeError` when `what` runs on other cores than the figures say."""
    if found != asked:
        raise RuntimeError(f"{what} may run on cores {sorted(found)} and was to be on {sorted(asked)}")


class Watched:
    """A process and all its descendants: `with Watched(command, log=...) as worker: ...`.

    `cpu_s` and `rss_peak_mib` are sums over the tree, sampled every 0.1 s and once more on request; `cores`
    are all that any of its threads was ever allowed to run on.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cores: Cores = TEST,
        cwd: Path | None = None,
    ) -> None:
        self.command = [*dying_with_parent(), *command]
        self.log = log
        self.rss_peak_mib = 0.0
        self.cores: Cores = frozenset()
        self._asked = cores
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._cpu: dict[int, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: IO[bytes] | None = None

    def __enter__(self) -> Watched:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = self.log.open("ab")
        with starting_on(self._asked):
            self._process = subprocess.Popen(
                self.command,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=self._log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._root = psutil.Process(self._process.pid)
        self._sampler = threading.Thread(target=self._sample_for_ever, daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """User and system seconds so far, of the whole tree, start-up included."""
        self._sample()
        with self._lock:
            return sum(self._cpu.values())

    def check(self) -> None:
        """Raises `RuntimeError` with the end of its log when the process has ended by itself, and when it is
        not on the cores that it was started for."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"{self.command[-1]} ended with {code}: {self.tail()}")
        if self.cores:
            self.check_cores()

    def check_cores(self) -> None:
        """Raises `RuntimeError` unless it was on the cores asked for, all of them and no other."""
        must_be_on(self._asked, self.cores, self.command[-1])

    def kill(self) -> None:
        """SIGKILL to the whole tree, at once."""
        for process in self._tree():
            _signal(process, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self, timeout_s: float = 20.0) -> None:
        """SIGTERM, then after `timeout_s` SIGKILL."""
        assert self._process is not None and self._log_file is not None
        self._stop.set()
        self._sample()
        tree = self._tree()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        for process in tree:
            _signal(process, signal.SIGKILL)
        self._process.wait()
        self._sampler.join()
        self._log_file.close()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _sample(self) -> None:
        rss = 0
        for process in self._tree():
            try:
                with process.oneshot():
                    rss += process.memory_info().rss
                    times = process.cpu_times()
            except psutil.Error:
                continue
            cores = cores_of(process.pid)
            with self._lock:
                self._cpu[process.pid] = times.user + times.system
                self.cores |= cores
        self.rss_peak_mib = max(self.rss_peak_mib, rss / 2**20)

    def _sample_for_ever(self) -> None:
        while not self._stop.wait(0.1):
            self._sample()


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_until(condition: str, ready: object, *, timeout_s: float, worker: Watched | None = None) -> float:
    """Poll `ready()` every 20 ms; seconds it took. Raises `TimeoutError` naming `condition`."""
    assert callable(ready)
    start = time.monotonic()
    while not ready():
        if worker is not None:
            worker.check()
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {condition}")
        time.sleep(0.02)
    return time.monotonic() - start


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
