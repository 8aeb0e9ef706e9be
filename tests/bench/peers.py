"""W1 in the harness of the peers: this project beside Kafka Streams, Faust, Quix and Spark.

The harness is a folder outside of this project. It holds the workload, its oracle, the peers and the
scripts that run them; this project brings only its adapter (tests/bench/w1/app.py). The folder is
named by MINI_VISA_PEERS, or found as a folder `peers` in one beside the checkout.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.report import REPORTS, ROOT, Figure, Result, console

SCRIPTS = ("w1/run.sh", "common/broker.sh", "setup.sh")
BROKER = "127.0.0.1:19192"
"""Where the harness's own broker listens."""
INTERRUPT_S = 20.0
"""For the harness to end a peer in order."""
OURS = "mini-visa"
RATE_MIN = 1_000
"""Records/s. The harness ends a run of a peer that is slower than this; its own limit, 400 s, is too short
for Faust and 1,500,000 records."""


class NoHarness(Exception):
    """There is no harness on this machine; the text says how to name one."""


@dataclass(frozen=True, slots=True)
class Harness:
    folder: Path

    @property
    def work(self) -> Path:
        """Where the harness keeps jars, wheels and state (its own setting, PEERS_HOME)."""
        return Path(os.environ.get("PEERS_HOME", "/tmp/peers"))

    def is_set_up(self) -> bool:
        jars = all(any((self.work / "jars" / name).glob("*.jar")) for name in ("broker", "kstreams"))
        return jars and (self.work / "v/bin/python").exists() and any((self.work / "classes").glob("*.class"))

    async def set_up(self) -> None:
        """Fetch what the harness needs, unless it is there. Some minutes the first time."""
        if not self.is_set_up():
            console.print("setting up the harness of the peers: some minutes, once", style="dim")
            await _run([str(self.folder / "setup.sh")])

    def broker_runs(self) -> bool:
        try:
            os.kill(int((self.work / "kafka.pid").read_text()), 0)
        except (OSError, ValueError):
            return False
        return True

    async def run(self, peers: Sequence[str], *, records: int, reps: int, out: Path) -> list[dict[str, Any]]:
        """Run each of `peers` `reps` times over `records` requests, in turns, so that peers that are
        compared share the machine's mood. Appends the harness's JSON lines to `out` and returns them. A
        broker that was started for it is stopped, however this ends."""
        await self.set_up()
        out.parent.mkdir(parents=True, exist_ok=True)
        known = len(_lines(out))
        ran_before = self.broker_runs()
        broker = str(self.folder / "common/broker.sh")
        try:
            await _run([broker, "start"])
            await self._fill(records)
            adapter = f"{sys.executable} {ROOT / 'tests/bench/w1/app.py'}"
            await _run(
                [str(self.folder / "w1/run.sh"), BROKER, *peers],
                CMD_mini_visa=adapter,
                N=str(records),
                REPS=str(reps),
                OUT=str(out),
                RUN_TIMEOUT=os.environ.get("RUN_TIMEOUT", str(max(400, records // RATE_MIN))),
            )
        finally:
            if not ran_before and self.broker_runs():
                await _run([broker, "stop"])
        return _lines(out)[known:]

    async def _fill(self, records: int) -> None:
        """The harness does this first too, once: for some seconds a broker that has just started does not
        know its own topics' leaders."""
        load = [str(self.work / "v/bin/python"), str(self.folder / "common/w1.py"), BROKER]
        for wait_s in (1, 2, 4, 8, None):
            try:
                await _run(load, N=str(records))
                break
            except subprocess.CalledProcessError:
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)


def find_harness() -> Harness:
    """Raises `NoHarness`."""
    named = os.environ.get("MINI_VISA_PEERS", "")
    candidates = [Path(named)] if named else sorted(ROOT.parent.glob("*/peers"))
    for folder in candidates:
        if all((folder / script).is_file() for script in SCRIPTS):
            return Harness(folder.resolve())
    if named:
        raise NoHarness(f"MINI_VISA_PEERS={named} has no {' or no '.join(SCRIPTS)}")
    raise NoHarness(
        "no harness of the peers: set MINI_VISA_PEERS to its folder, the one that holds "
        + " and ".join(SCRIPTS)
    )


async def measure(peers: Sequence[str], *, records: int, reps: int, out: Path | None = None) -> Result:
    """Records/s and CPU of each peer, and the ratios of this project to each other peer.

    A ratio pairs the two runs of one turn. Raises `NoHarness`.
    """
    harness = find_harness()
    out = out or REPORTS / "peers.jsonl"
    runs = await harness.run(peers, records=records, reps=reps, out=out)
    return reckon(runs, peers, records=records, reps=reps)


def reckon(runs: Sequence[dict[str, Any]], peers: Sequence[str], *, records: int, reps: int) -> Result:
    """The figures of `runs`, in which a decision that is wrong, missing or made twice is an error."""
    suffix = "" if records <= 300_000 else ".long"
    result = Result(
        f"w1{suffix.replace('.', '-')}",
        f'make peers PEERS="{" ".join(peers)}" N={records} REPS={reps}',
        runs=list(runs),
    )
    rates: dict[str, list[float]] = {}
    faults: list[str] = []
    for peer in peers:
        own = [run for run in runs if run["peer"] == peer]
        for run in own:
            faults += [f"{peer}: {fault}" for fault in faults_of(run, records)]
        good = [run for run in own if not faults_of(run, records) and run.get("visible_seconds")]
        rates[peer] = [records / run["visible_seconds"] for run in good]
        if good:
            result.figures += [
                Figure(f"w1.{peer}{suffix}.per_s", "records/s", tuple(rates[peer])),
                Figure(f"w1.{peer}{suffix}.cpu_s", "CPU s", tuple(run["cpu_s"] for run in good)),
                Figure(f"w1.{peer}{suffix}.rss", "MiB", tuple(run["peak_rss_mib"] for run in good)),
            ]
        if len(good) < reps:
            faults.append(f"{peer}: {len(good)} good runs of {reps}")
    for peer in peers:
        if peer != OURS and rates.get(OURS) and rates[peer]:
            ratios = tuple(ours / theirs for ours, theirs in zip(rates[OURS], rates[peer], strict=False))
            result.figures.append(Figure(f"w1.ratio.{peer}{suffix}", "x", ratios))
    result.error = "; ".join(dict.fromkeys(faults))
    result.notes.append(
        f"{records:,} requests; records/s up to the last readable decision; every decision checked by the "
        "harness's oracle; CPU seconds of the process tree with its start"
    )
    return result


def faults_of(run: Mapping[str, Any], records: int) -> list[str]:
    """What the harness's oracle found wrong with a run's decisions."""
    found = []
    if run["wrong"] or run["missing"]:
        found.append(f"{run['wrong']} wrong, {run['missing']} missing of {records}")
    if run["records_out"] != records:
        found.append(f"{run['records_out']} decisions for {records} requests: not once each")
    return found


async def _run(command: list[str], **env: str) -> None:
    """Raises `CalledProcessError`. When this is cancelled, all that the command started is ended first."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **env}, cwd=ROOT, start_new_session=True
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        await _end_group(process)
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """As Ctrl-C does: the harness then ends the peer that it runs. What does not listen is killed."""
    with suppress(ProcessLookupError, TimeoutError):
        os.killpg(process.pid, signal.SIGINT)
        await asyncio.wait_for(process.wait(), INTERRUPT_S)
    deadline = asyncio.get_running_loop().time() + INTERRUPT_S
    with suppress(ProcessLookupError):
        while asyncio.get_running_loop().time() < deadline:
            os.killpg(process.pid, 0)
            await asyncio.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines: Iterable[str] = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]
