"""Half an hour of ordinary work: is the memory of every process flat?

    python -m tests.integration.limits.soak --minutes 30

Shoppers as in the fault harness, without faults. RocksDB and the broker's heap get `ROCKSDB_MB` and
`BROKER_HEAP_MB` unless `--usual` is given: both fill up to their bounds, whatever those are, and with the
usual ones that takes the quieter services more than half an hour. A leak has no bound.

Memory is looked at each five seconds. What counts is the second half of the run, after caches have filled:
the slope of a line through its samples, in MB an hour. A process is flat while that is below the larger of
`SLOPE_MB_MAX` and `SLOPE_SHARE_MAX` of its size. Exit code 1 when one is not, 2 when the run is too short to
tell. `reports/soak.json` has the figures and every sample, `reports/soak.md` a table.
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
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.faults.client import Client
from tests.integration.limits.ground import a_system, memory_mb

ROCKSDB_MB: Final = 32
BROKER_HEAP_MB: Final = 192
SAMPLE_S: Final = 5.0
SAMPLES_MIN: Final = 12
"""Of the second half: a minute."""
POINTS: Final = 60
"""The second half is cut into so many pieces, whose medians the line goes through."""
SLOPE_MB_MAX: Final = 48.0
SLOPE_SHARE_MAX: Final = 0.20
"""An hour. A process of 128 MB that leaks 1 MB a minute is caught; a heap that breathes is not."""

Samples = list[tuple[float, float]]
"""(seconds since the start, MB)."""


@dataclass(frozen=True)
class Memory:
    """One process over a run."""

    start_mb: float
    half_mb: float
    end_mb: float
    peak_mb: float
    mb_per_hour: float
    bound_mb_per_hour: float
    flat: bool


def slope(samples: Samples) -> float:
    """MB an hour: the median of the slopes of all pairs (Theil and Sen), which single peaks do not bend."""
    size = max(1, len(samples) // POINTS)
    pieces = [samples[at : at + size] for at in range(0, len(samples), size)]
    points = [
        (statistics.mean(at for at, _ in one), statistics.median(mb for _, mb in one)) for one in pieces
    ]
    return 3_600 * statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))


def judge(samples: Samples) -> Memory:
    """Raises ValueError when there are too few samples to tell."""
    half = (samples[0][0] + samples[-1][0]) / 2
    late = [sample for sample in samples if sample[0] >= half]
    if len(late) < SAMPLES_MIN:
        raise ValueError(f"{len(late)} samples in the second half are too few: work for longer")
    size = statistics.median(mb for _, mb in late)
    per_hour, bound = slope(late), max(SLOPE_MB_MAX, SLOPE_SHARE_MAX * size)
    return Memory(
        round(samples[0][1], 1), round(late[0][1], 1), round(samples[-1][1], 1),
        round(max(mb for _, mb in samples), 1), round(per_hour, 1), round(bound, 1), per_hour < bound,
    )  # fmt: skip


async def run(minutes: float, shoppers: int, usual: bool, home: Path) -> dict[str, Any]:
    bounds = (
        {} if usual else {"rocksdb_memory_bytes": ROCKSDB_MB << 20, "broker_heap_bytes": BROKER_HEAP_MB << 20}
    )
    samples: dict[str, Samples] = defaultdict(list)
    pids: dict[str, set[int]] = defaultdict(set)
    async with a_system(home, clearing_cycle_s=60, **bounds) as system:
        address = system.settings.gateway_host, system.settings.gateway_port
        partitions = system.settings.partitions
        client = Client(address, home / "history.jsonl", seed=1, shoppers=shoppers, partitions=partitions)
        load = asyncio.create_task(client.run())
        began = time.monotonic()
        while (at := time.monotonic() - began) < minutes * 60:
            for name, mb in memory_mb(system).items():
                samples[name].append((round(at, 1), round(mb, 2)))
            for part in system.parts:
                if part.child is not None:
                    pids[part.service.name].add(part.child.pid)
            await asyncio.sleep(SAMPLE_S)
            if load.done() or system.failure.done():
                break
        client.stop()
        await load
    return {
        "minutes": round(at / 60, 1),
        "rocksdb_mb": system.settings.rocksdb_memory_bytes >> 20,
        "broker_heap_mb": system.settings.broker_heap_bytes >> 20,
        "requests": client.requests,
        "reads": client.reads,
        "requests_per_s": round(client.requests / at, 1),
        "statuses": {str(status): count for status, count in sorted(client.statuses.items())},
        "restarted": sorted(name for name, found in pids.items() if len(found) > 1),
        "processes": {name: asdict(judge(found)) for name, found in sorted(samples.items())},
        "samples": samples,
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Soak",
        "",
        f"{report['minutes']} minutes, {report['requests']:,} requests ({report['requests_per_s']} a "
        f"second), {report['reads']:,} of them reads. RocksDB had at most {report['rocksdb_mb']} MB a "
        f"service, the broker's heap {report['broker_heap_mb']} MB. Resident memory, MB; the slope is the "
        "second half's.",
        "",
        "| process | start | half-time | end | peak | MB an hour | bound | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in report["processes"].items():
        lines.append(
            f"| {name} | {one['start_mb']:.0f} | {one['half_mb']:.0f} | {one['end_mb']:.0f} | "
            f"{one['peak_mb']:.0f} | {one['mb_per_hour']:+.1f} | {one['bound_mb_per_hour']:.0f} | "
            f"{'flat' if one['flat'] else 'GROWS'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="(%(default)s)")
    parser.add_argument("--shoppers", type=int, default=8, help="requests at the same time (%(default)s)")
    parser.add_argument("--usual", action="store_true", help="with the settings' own bounds on memory")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder (%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mini-visa-soak-") as folder:
        try:
            report = uvloop.run(run(given.minutes, given.shoppers, given.usual, Path(folder) / "home"))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    given.reports.mkdir(parents=True, exist_ok=True)
    (given.reports / "soak.json").write_text(json.dumps(report) + "\n")
    (given.reports / "soak.md").write_text(markdown(report))
    print(markdown(report))
    return 0 if all(one["flat"] for one in report["processes"].values()) and not report["restarted"] else 1


if __name__ == "__main__":
    sys.exit(main())
