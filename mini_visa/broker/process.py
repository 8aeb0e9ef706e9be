"""Processes known by pid AND start time, so that a stale pid never kills a stranger."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """A process of this machine, told apart from a later one that got the same pid."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has `pid` now; None when there is none (a zombie is none)."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Sends the signal if this very process is still there."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s`."""
        self.signal(signal.SIGTERM)
        if not self.wait(grace_s):
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait(5.0)


def _started(pid: int) -> str | None:
    """When `pid` started, in a form that only compares: ticks since boot, with the boot's id."""
    proc = Path("/proc")
    if (proc / "self" / "stat").exists():
        try:
            # The command's name is in parentheses and may hold anything: split after the last one.
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        state, ticks = fields[0], fields[19]
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return None if state in "ZX" else f"{boot}:{ticks}"
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
