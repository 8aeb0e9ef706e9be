"""Hours of ordinary work: is the memory of every process flat?

    python -m tests.integration.limits.soak --minutes 30

Shoppers as in the fault harness, without faults. Memory is looked at each five seconds. A process is flat
when the second half of the run, after its caches have filled, adds less than the bound to it: the slope of
a line through the samples of that half, times its length. Exit code 1 when one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from tests.faults.client import Client
from tests.integration.limits.ground import a_system, memory_mb

SAMPLE_S: Final = 5.0
GROWTH_MB_MAX: Final = 24.0
GROWTH_SHARE_MAX: Final = 0.10


def slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute: least squares."""
    times = [at / 60 for at, _ in samples]
    mean_at, mean = statistics.mean(times), statistics.mean(mb for _, mb in samples)
    spread = sum((at - mean_at) ** 2 for at in times)
    return sum((at - mean_at) * (mb - mean) for at, (_, mb) in zip(times, samples, strict=True)) / spread


async def run(minutes: float, shoppers: int, home: Path) -> dict[str, Any]:
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    async with a_system(home, clearing_cycle_s=60) as system:
        address = system.settings.gateway_host, system.settings.gateway_port
        partitions = system.settings.partitions
        client = Client(address, home / "history.jsonl", seed=1, shoppers=shoppers, partitions=partitions)
        load = asyncio.create_task(client.run())
        began = time.monotonic()
        while (at := time.monotonic() - began) < minutes * 60:
            for name, mb in memory_mb(system).items():
                samples[name].append((at, mb))
            await asyncio.sleep(SAMPLE_S)
            if load.done() or system.failure.done():
                break
        client.stop()
        await load
    processes = {}
    for name, found in sorted(samples.items()):
        late = [sample for sample in found if sample[0] >= minutes * 30]
        growth = slope(late) * minutes / 2
        start = statistics.median(mb for _, mb in late[: max(1, len(late) // 4)])
        processes[name] = {
            "start_mb": round(found[0][1]), "half_mb": round(start), "end_mb": round(found[-1][1]),
            "growth_mb": round(growth, 1), "mb_per_minute": round(slope(late), 2),
            "flat": growth < max(GROWTH_MB_MAX, GROWTH_SHARE_MAX * start),
        }  # fmt: skip
    return {
        "minutes": minutes,
        "requests": client.requests,
        "statuses": dict(client.statuses),
        "processes": processes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--shoppers", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mini-visa-soak-") as folder:
        report = asyncio.run(run(given.minutes, given.shoppers, Path(folder) / "home"))
    print(json.dumps(report, indent=2))
    return 0 if all(process["flat"] for process in report["processes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
