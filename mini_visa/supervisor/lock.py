"""One system per home directory: who runs here, where its parts are, and the lock that says so."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Final

from mini_visa.errors import UserError

DURATIONS: Final = ("hold_days", "hold_days_travel", "hold_fuel_s", "clearing_cycle_s")


@dataclass
class Running:
    """What HOME/running.json says of the system that runs here."""

    supervisor: int
    """Process id."""
    gateway_url: str
    broker: str
    """kafka://HOST:PORT"""
    started_at: str
    pids: dict[str, int] = field(default_factory=dict)
    """Of each service that runs now."""
    web_ports: dict[str, int] = field(default_factory=dict)
    """Of each service's /healthz, /readyz and /metrics."""
    durations: dict[str, float] = field(default_factory=dict)
    """Of the settings `DURATIONS`: no record tells them, and who audits has to know."""


class AlreadyRunning(UserError):
    """Another supervisor runs in this home directory."""


class HomeLock:
    """Held as long as the supervisor lives: the kernel lets go of it however that ends, so there is no
    stale lock and nothing to clean up after a crash."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises `AlreadyRunning` with who holds it and what to do."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (self._home / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            other = running(self._home)
            who = (
                f"process {other.supervisor}, gateway {other.gateway_url}: use that one, or stop it with "
                f"Ctrl-C in its terminal or `kill {other.supervisor}`"
                if other
                else "it is just starting or stopping: try again in a moment"
            )
            raise AlreadyRunning(
                f"mini-visa runs already in {self._home} ({who}). "
                "Another one beside it needs a home of its own: MINI_VISA_HOME=/some/directory"
            ) from None
        self._file = file
        (self._home / "running.json").unlink(missing_ok=True)

    def publish(self, state: Running) -> None:
        """Tell other processes (the CLI, `mini-visa doctor`) what runs here."""
        assert self._file is not None, "publish without the lock"
        target = self._home / "running.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(state), indent=1))
        draft.replace(target)

    def release(self) -> None:
        if self._file is not None:
            (self._home / "running.json").unlink(missing_ok=True)
            self._file.close()
            self._file = None


def running(home: Path) -> Running | None:
    """The system that runs in `home` now; None when there is none."""
    try:
        state = Running(**json.loads((home / "running.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    try:
        os.kill(state.supervisor, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return state
