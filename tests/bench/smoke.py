"""The guard: this kernel against an idiomatic Faust agent, on W1, in one run, on one core.

A machine's speed changes from hour to hour; the ratio of two programs on it within a minute changes
less, and that of their CPU time hardly at all. When one falls under its bound, something in the kernel became
slow. Every decision is checked, too, and that it was made once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiokafka.structs import ConsumerRecord

from tests.bench.ground import Ground
from tests.bench.processes import python
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import LOG_APPEND_TIME, Entry, Progress, create_topics, preload, read_all
from tests.bench.w1.rule import Decision, oracle, requests

HERE = Path(__file__).resolve().parent
OURS, FAUST = "mini-visa", "faust"
RECORDS = {OURS: 120_000, FAUST: 8_000}
"""Faust takes some seconds for these few; this kernel needs more, to be measured over whole batches."""
COMMANDS = {
    OURS: python(str(HERE / "w1/app.py")),
    FAUST: python(str(HERE / "faust_app.py"), "worker", "-l", "warn", "--without-web"),
}
RATIO_MIN = 20.0
"""Of records/s, in the best turn: others that want a core slow down a turn, a slow kernel slows down all."""
CPU_RATIO_MIN = 40.0
"""Of CPU time a record, in the median turn: half of what any machine has shown, idle or not."""
PARTITIONS = 4
RUN_TIMEOUT_S = 100.0

_decision: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def entries(count: int) -> list[Entry]:
    return [
        (request["card"].encode(), msgspec.json.encode(request), request["ts"]) for request in requests(count)
    ]


async def w1_once(ground: Ground, peer: str, command: list[str], count: int, *, name: str) -> dict[str, Any]:
    """Run `command` over `count` requests of W1; what it measured. Raises when a decision is wrong."""
    source, sink = f"{name}.in.{count}", f"{name}.out"
    state = ground.home / name
    await create_topics(
        ground.bootstrap, {source: {"retention.ms": "-1"}, sink: LOG_APPEND_TIME}, partitions=PARTITIONS
    )
    await preload(ground.bootstrap, source, entries(count), partitions=PARTITIONS)
    environment = {
        "BROKER": ground.bootstrap,
        "IN_TOPIC": source,
        "OUT_TOPIC": sink,
        "APP_ID": name,
        "STATE_DIR": str(state),
    }
    load_before = time.monotonic()
    with ground.watched(peer, command, log=ground.home / f"{name}.log", env=environment) as worker:
        async with Progress(ground.bootstrap, sink, lambda: worker.cpu_s) as progress:
            await progress.until(count, timeout_s=RUN_TIMEOUT_S, check=worker.check)
        cpu_s = worker.cpu_s
    expected = oracle(count)
    found: dict[str, Decision] = {}

    def note(record: ConsumerRecord) -> bool:
        decision = _decision.decode(record.value)
        found[decision["request_id"]] = (
            decision["card"],
            decision["approved"],
            decision["reason"],
            decision["balance"],
        )
        return True

    appended = await read_all(ground.bootstrap, sink, note)
    check_decisions(peer, expected, found, appended.records)
    shutil.rmtree(state, ignore_errors=True)
    return {
        "peer": peer,
        "records": count,
        "seconds": appended.seconds,
        "per_s": count / appended.seconds,
        "cpu_s": cpu_s,
        "cpu_us_per_record": progress.cpu_us_per_record(),
        "rss_peak_mib": worker.rss_peak_mib,
        "wall_s": time.monotonic() - load_before,
    }


def check_decisions(
    peer: str, expected: Mapping[str, Decision], found: Mapping[str, Decision], records: int
) -> None:
    """Raises `RuntimeError` unless each decision is right, and `records` of them were put out, no more."""
    wrong = sum(found.get(request_id) != decision for request_id, decision in expected.items())
    if wrong:
        raise RuntimeError(f"{peer}: {wrong} of {len(expected)} decisions wrong or missing")
    if records != len(expected):
        raise RuntimeError(f"{peer}: {records} decisions for {len(expected)} requests: not once each")


def verdict(ratio: Figure, cpu_ratio: Figure, ratio_min: float) -> str:
    """Which bound is not held; "" when both are."""
    slow = [
        f"{number(found)} times the idiomatic Faust agent's {what}, at least {least:g} is asked for"
        for what, found, least in (
            ("records/s", max(ratio.values), ratio_min),
            ("records in a second of CPU time", cpu_ratio.median, CPU_RATIO_MIN),
        )
        if not found >= least
    ]
    return "; ".join([*slow, '`make bench ARGS="parts w1"` tells what costs the time']) if slow else ""


async def smoke(*, reps: int = 1, ratio_min: float = RATIO_MIN) -> Result:
    """Both peers in turns. A ratio of records/s under `ratio_min` in every turn is an error of the result,
    and so is one of CPU time under `CPU_RATIO_MIN`."""
    result = Result("smoke", f"make bench ARGS='smoke --reps {reps}'")
    rates: dict[str, list[float]] = {OURS: [], FAUST: []}
    costs: dict[str, list[float]] = {OURS: [], FAUST: []}
    async with Ground() as ground:
        for turn in range(reps):
            for peer in (OURS, FAUST):
                run = await w1_once(ground, peer, COMMANDS[peer], RECORDS[peer], name=f"smoke-{peer}-{turn}")
                result.runs.append(run)
                rates[peer].append(run["per_s"])
                costs[peer].append(run["cpu_us_per_record"])
                console.print(
                    f"  {peer} {turn + 1}/{reps}: {number(run['per_s'])} records/s, "
                    f"{run['cpu_us_per_record']:.1f} CPU us each",
                    style="dim",
                )
        result.cores = ground.placed()
    ratios = tuple(ours / theirs for ours, theirs in zip(rates[OURS], rates[FAUST], strict=True))
    cpu_ratios = tuple(theirs / ours for ours, theirs in zip(costs[OURS], costs[FAUST], strict=True))
    result.figures = [
        Figure("smoke.mini-visa.per_s", "records/s", tuple(rates[OURS])),
        Figure("smoke.faust.per_s", "records/s", tuple(rates[FAUST])),
        Figure("smoke.mini-visa.cpu_us", "CPU us a record", tuple(costs[OURS])),
        Figure("smoke.faust.cpu_us", "CPU us a record", tuple(costs[FAUST])),
        Figure("smoke.ratio", "x", ratios),
        Figure("smoke.cpu_ratio", "x", cpu_ratios),
    ]
    result.notes.append(
        f"W1, one core each, {RECORDS[OURS]:,} and {RECORDS[FAUST]:,} records, all decisions right, once each"
    )
    result.error = verdict(result.figures[-2], result.figures[-1], ratio_min)
    return result
