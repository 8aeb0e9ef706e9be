"""`make bench`: every benchmark and the table of floors and aims; or one of them.

Each writes reports/NAME.json; what failed, or was asked to be smaller than usual, NAME.partial.json. The exit
code is 0 unless a benchmark failed: a slow machine is no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tests.bench import (
    chain,
    failover,
    gateway,
    growth,
    parts,
    peers,
    pipeline,
    restore,
    scale,
    services,
    smoke,
)
from tests.bench.processes import stop_in_order_when_told
from tests.bench.report import (
    Result,
    console,
    machine,
    print_against_aims,
    print_result,
    read_results,
    write_json,
)

PEERS = "mini-visa kstreams-eos faust-alo"
ALL = ("w1", "authorization", "authorization-hot", "risk", "http", "pipeline", "restore", "failover")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    top.add_argument(
        "--plots", action="store_true", help="draw docs/*.png from what reports/ holds, at the end"
    )
    commands = top.add_subparsers(dest="benchmark", metavar="BENCHMARK")

    every = commands.add_parser("all", help="the default: " + ", ".join(ALL))
    every.add_argument("--reps", type=int, default=3, help="runs of each, where a run is short (default 3)")
    every.add_argument("--only", default=" ".join(ALL), help="names of some, apart by spaces")

    w1 = commands.add_parser("w1", aliases=["peers"], help="W1 in the harness of the peers (MINI_VISA_PEERS)")
    w1.add_argument("--peers", default=PEERS, help=f'apart by spaces (default "{PEERS}")')
    w1.add_argument("--records", type=int, default=300_000, help="requests of a run (default 300000)")
    w1.add_argument("--reps", type=int, default=1, help="runs of each peer, in turns (default 1)")
    w1.add_argument("--out", type=Path, help="append the harness's JSON lines to this file")

    for service, records in (("authorization", 150_000), ("risk", 200_000)):
        one = commands.add_parser(service, help=f"the {service} service, records/s a core")
        one.add_argument("--records", type=int, default=records, help=f"default {records}")
        one.add_argument("--reps", type=int, default=3)
        one.add_argument("--profile", default="", help="a file for cProfile's figures of the worker")
        if service == "authorization":
            one.add_argument(
                "--hot", action="store_true", help="with 20 %% of the traffic on one account, beside without"
            )

    web = commands.add_parser("http", help="latency at fixed rates, and saturation")
    web.add_argument("--rate", type=int, action="append", help="requests/s; several times for several (500)")
    web.add_argument("--seconds", type=float, default=20.0, help="at each rate (default 20)")
    web.add_argument("--reps", type=int, default=3)

    whole = commands.add_parser("pipeline", help="payments from request to cleared, posted and told in SQL")
    whole.add_argument("--payments", type=int, default=20_000, help="of a run (default 20000)")
    whole.add_argument("--reps", type=int, default=2)

    back = commands.add_parser("restore", help="tables from the changelog, with an empty disk")
    back.add_argument("--records", type=int, default=200_000, help="authorizations before it (200000)")
    back.add_argument("--reps", type=int, default=3)

    over = commands.add_parser("failover", help="SIGKILL under load to the first decision")
    over.add_argument("--kills", type=int, default=5)

    steps = commands.add_parser("parts", help="where the microseconds of a record go, without a broker")
    steps.add_argument("service", choices=("w1", "authorization", "risk", "pipeline"))
    steps.add_argument("--records", type=int, default=40_000)
    steps.add_argument("--reps", type=int, default=5)

    large = commands.add_parser("growth", help="a payment's cost as accounts grow, and with a hot account")
    large.add_argument("--accounts-max", type=int, default=2_500_000, help="of one partition (2500000)")
    large.add_argument("--records", type=int, default=40_000)
    large.add_argument(
        "--reps", type=int, default=growth.REPS, help=f"runs of each, in turns (default {growth.REPS})"
    )

    wide = commands.add_parser("scale", help="a record's cost and memory by partitions and workers")
    wide.add_argument("--records", type=int, default=100_000, help="of a run (100000)")
    wide.add_argument("--reps", type=int, default=2)

    guard = commands.add_parser("smoke", help="for CI: against an idiomatic Faust agent, fails under a ratio")
    guard.add_argument("--reps", type=int, default=1)
    guard.add_argument(
        "--ratio-min", type=float, default=smoke.RATIO_MIN, help=f"of records/s ({smoke.RATIO_MIN:g})"
    )
    return top


SIZES = ("records", "reps", "seconds", "payments", "kills", "accounts_max", "ratio_min")
"""Options that make a benchmark less when they are smaller."""


def partial(options: argparse.Namespace) -> str:
    """In what `options` ask for less than the whole benchmark; "" when in nothing."""
    if options.benchmark is None:
        return ""
    chosen = [options.benchmark, *([options.service] if "service" in options else ())]
    usual = parser().parse_args(chosen)
    less = [key for key in SIZES if key in options and getattr(options, key) < getattr(usual, key)]
    if "peers" in options and not set(usual.peers.split()) <= set(options.peers.split()):
        less.append("peers")
    if getattr(options, "rate", None) and gateway.RATE_PER_S not in options.rate:
        less.append("rate")
    reasons = [f"--{key.replace('_', '-')} {getattr(options, key)}" for key in less]
    return ", ".join([*reasons, *(["--profile"] if getattr(options, "profile", "") else ())])


def command_of(arguments: Sequence[str]) -> str:
    """What to type for `arguments`."""
    return f"make bench ARGS={shlex.quote(shlex.join(arguments))}" if arguments else "make bench"


Measurement = Callable[[], Coroutine[Any, Any, Result]]


def measurement(name: str, options: argparse.Namespace) -> Measurement:
    """The benchmark `name` with its options, or their defaults."""
    reps = options.reps if "reps" in options else 3
    command = command_of(sys.argv[1:])

    def option(key: str, default: Any) -> Any:
        return getattr(options, key, None) or default

    if name in ("w1", "peers"):

        async def w1() -> Result:
            return await peers.measure(
                option("peers", PEERS).split(),
                records=option("records", 300_000),
                reps=options.reps if name == options.benchmark else 1,
                out=option("out", None),
            )

        return w1
    if name == "authorization-hot" or (name == "authorization" and option("hot", False)):
        return lambda: services.measure_hot(
            records=option("records", 150_000), reps=reps, command=command, profile=option("profile", "")
        )
    if name in ("authorization", "risk"):
        return lambda: services.measure(
            name,
            records=option("records", 200_000 if name == "risk" else 150_000),
            reps=reps,
            command=command,
            profile=option("profile", ""),
        )
    if name == "http":
        return lambda: gateway.measure(
            rates=option("rate", [gateway.RATE_PER_S]),
            seconds=option("seconds", 20.0),
            reps=reps,
            command=command,
        )
    if name == "pipeline":
        return lambda: pipeline.measure(payments=option("payments", 20_000), reps=reps, command=command)
    if name == "restore":
        return lambda: restore.measure(records=option("records", 200_000), reps=reps, command=command)
    if name == "failover":
        return lambda: failover.measure(kills=option("kills", 5), command=command)
    if name == "parts" and options.service == "pipeline":
        return lambda: chain.measure(records=option("records", 40_000), reps=reps, command=command)
    if name == "parts":
        return lambda: parts.measure(
            options.service, records=option("records", 40_000), reps=reps, command=command
        )
    if name == "growth":
        return lambda: growth.measure(
            accounts_max=options.accounts_max, records=options.records, reps=reps, command=command
        )
    if name == "scale":
        return lambda: scale.measure(records=options.records, reps=reps, command=command)
    if name == "smoke":
        return lambda: smoke.smoke(reps=options.reps, ratio_min=options.ratio_min)
    raise SystemExit(f"no benchmark {name!r}: there are {', '.join(ALL)}")


def run_one(name: str, measure: Measurement, less: str = "") -> Result:
    """Run it, print it, keep it. What it raises becomes its error. `less`: in what it is not whole."""
    console.rule(name, align="left")
    where, began = machine(), time.monotonic()
    try:
        result = asyncio.run(measure())
    except peers.NoHarness as absent:
        result = Result(name, "", notes=[f"left out: {absent}"])
    except Exception as error:
        if not isinstance(error, RuntimeError | TimeoutError | OSError):
            console.print_exception()
        result = Result(name, "", error=f"{type(error).__name__}: {error}")
    result.seconds = time.monotonic() - began
    result.command = result.command or command_of(sys.argv[1:])
    result.partial = less
    print_result(result)
    if result.figures or result.error:
        console.print(f"  {result.seconds:.0f} s, {write_json(result, where)}", style="dim")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if sys.platform != "linux":
        sys.exit("the benchmarks need Linux: they keep processes on cores and read /proc")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # new topics have no leader for a moment
    stop_in_order_when_told()
    less = partial(options)
    name = options.benchmark or "all"
    if name == "all":
        names = getattr(options, "only", " ".join(ALL)).split()
        results = [run_one(one, measurement(one, options), less) for one in names]
        print_against_aims(results)
    else:
        results = [run_one(name, measurement(name, options), less)]
    if options.plots:
        from tests.bench.plots import draw

        for path in draw(read_results()):
            console.print(f"drawn: {path}", style="dim")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
