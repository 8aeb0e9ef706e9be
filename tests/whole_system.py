"""The whole system in tests, as a user starts it: `mini-visa up` in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mini_visa.supervisor.lock import Running, running

START_S = 180.0
"""On a machine that does other things too."""


def make_home(parent: Path, jars_cache: Path) -> Path:
    """A home with nothing in it but Kafka's jars, so that they are not fetched again."""
    broker = parent / "home" / "broker"
    broker.mkdir(parents=True)
    for libs in jars_cache.glob("libs-*"):
        if libs.is_dir():
            (broker / libs.name).symlink_to(libs)
    return parent / "home"


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "MINI_VISA_HOME": str(home), "MINI_VISA_GATEWAY_PORT": "0", **more}


def mini_visa(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mini_visa.cli", *arguments]


def left_over(home: Path) -> dict[int, str]:
    """Processes that have this home in their environment or on their command line."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if str(home).encode() in known:
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:
            continue
    return found


def none_left_within(home: Path, seconds: float) -> dict[int, str]:
    deadline = time.monotonic() + seconds
    while (found := left_over(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class Up:
    """A running `mini-visa up`."""

    def __init__(self, home: Path, **more: str) -> None:
        self.home = home
        self.output = home.parent / "up.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                mini_visa("up"), env=environment(home, **more), stdout=output, stderr=output
            )

    def until(self, text: str, seconds: float = START_S) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"no {text!r} in: {self.output.read_text()}"
            time.sleep(0.05)

    def pids(self) -> dict[str, int]:
        state = running(self.home)
        return state.pids if state is not None else {}

    def state(self) -> Running:
        state = running(self.home)
        assert state is not None, self.output.read_text()
        return state

    def end(self) -> None:
        """SIGKILL, as the worst of all stops; nothing may be left of it."""
        self.process.kill()
        self.process.wait()
        assert not none_left_within(self.home, 30.0)
