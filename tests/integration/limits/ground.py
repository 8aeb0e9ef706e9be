"""A whole system of its own, and the memory of its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from mini_visa.settings import Settings
from mini_visa.supervisor.system import System


@asynccontextmanager
async def a_system(home: Path, **settings: Any) -> AsyncIterator[System]:
    async with System(
        Settings(home=home, gateway_port=0, **settings), jars=Settings().home / "broker"
    ) as system:
        yield system


def memory_mb(system: System) -> dict[str, float]:
    """Resident memory by process: every service, and the broker."""
    pids = {part.service.name: part.child.pid for part in system.parts if part.child is not None}
    pids.update(("broker", pid) for pid in system.broker_pids)
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = psutil.Process(pid).memory_info().rss / (1 << 20)
        except psutil.NoSuchProcess:
            continue
    return found
