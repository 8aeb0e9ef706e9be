"""What processes cost and how they work, while something runs: CPU time, and records a batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.request import urlopen

import psutil  # type: ignore[import-untyped]


class Meter:
    """CPU time of some processes, each in relation to what was done meanwhile."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._begun: dict[str, float] = {}

    def _cpu_s(self) -> dict[str, float]:
        found = {}
        for name, process in self._processes.items():
            times = process.cpu_times()
            found[name] = times.user + times.system
        return found

    def begin(self) -> None:
        self._begun = self._cpu_s()

    def us_each(self, count: int) -> dict[str, float]:
        """Since `begin`, by process and in all."""
        used = {name: cpu_s - self._begun[name] for name, cpu_s in self._cpu_s().items()}
        return {
            name: cpu_s / max(1, count) * 1e6 for name, cpu_s in {**used, "all": sum(used.values())}.items()
        }


class Batches:
    """How many records the processors take at once, by what they say at /metrics."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = list(ports)
        self._begun: dict[tuple[str, str], float] = {}

    def _now(self) -> dict[tuple[str, str], float]:
        found = {}
        for port in self._ports:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                for line in answer.read().decode().splitlines():
                    said = _COUNTED.fullmatch(line)
                    if said:
                        found[said[2], said[1]] = float(said[3])
        return found

    def begin(self) -> None:
        self._begun = self._now()

    def records_each(self) -> dict[str, float]:
        """Since `begin`, by processor."""
        done = {key: value - self._begun.get(key, 0.0) for key, value in self._now().items()}
        return {
            name: done[name, "records"] / max(1.0, batches)
            for (name, what), batches in sorted(done.items())
            if what == "batches"
        }


_COUNTED: Final = re.compile(r'mini_visa_(batches|records)_total\{processor="(\w+)"\} (\S+)')
