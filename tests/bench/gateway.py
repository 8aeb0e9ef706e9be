"""The whole way over HTTP: gateway, risk, authorization and back, as `mini-visa up` runs it.

Latency at fixed rates is open loop, counted from the moment each request was due. Saturation is 32
connections that send as soon as they are answered. Load generator, broker and services share two
cores, and have no more where there are more.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]

from mini_visa.supervisor.lock import running
from tests.bench.ground import Ground
from tests.bench.httpload import Load, closed_loop, open_loop, post
from tests.bench.processes import Watched, wait_until
from tests.bench.report import Figure, Result, console, number
from tests.bench.workload import pan_of

ACCOUNTS = 10_000
"""So many that no card comes near the rules' ten requests a minute."""
CONNECTIONS = 32
RATE_PER_S = 500
LIMIT = "1000000.00"
START_TIMEOUT_S = 120.0
WARM_S = 25.0
"""The broker's JVM compiles what is hot for about as long; until then half a core is its compiler's."""
APPROVED_SHARE_MIN = 0.9
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9)


def account_requests(host: str, count: int) -> Iterator[bytes]:
    for account in range(count):
        body = {"request_id": f"open-{account}", "pan": pan_of(account), "limit": LIMIT, "currency": "USD"}
        yield post(host, "/accounts", json.dumps(body).encode())


def payment_requests(host: str, accounts: int, run: str) -> Iterator[bytes]:
    """Authorizations without end, the accounts in turn."""
    draw = random.Random(run)
    pans = [pan_of(account) for account in range(accounts)]
    draw.shuffle(pans)
    for i, pan in enumerate(itertools.cycle(pans)):
        amount = f"{draw.randrange(1, 50)}.{draw.randrange(100):02d}"
        merchant = f"merchant-{draw.randrange(1_000):04d}"
        yield post(
            host,
            "/payments/authorize",
            (
                f'{{"request_id":"{run}-{i}","pan":"{pan}","amount":"{amount}","currency":"USD",'
                f'"merchant_id":"{merchant}","mcc":"5411"}}'
            ).encode(),
        )


async def measure(*, rates: Sequence[int], seconds: float, reps: int, command: str) -> Result:
    """Latency at each of `rates` and the saturation point, `reps` times each, in turns."""
    result = Result("http", command)
    fixed: dict[int, list[Load]] = {rate: [] for rate in rates}
    saturated: list[Load] = []
    costs: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    async with Ground(pinned=False) as ground:
        await ground.apply_topics()
        program = str(Path(sys.executable).with_name("mini-visa"))
        home = ground.home / "home"
        environment = ground.environment(MINI_VISA_GATEWAY_PORT="0", MINI_VISA_LOG_LEVEL="warning")
        with ground.watched(
            "services", [program, "up"], log=ground.home / "up.log", env=environment
        ) as system:
            wait_until(
                "the system is up",
                lambda: (found := running(home)) is not None and found.gateway_url,
                timeout_s=START_TIMEOUT_S,
                worker=system,
            )
            found = running(home)
            assert found is not None
            url = urlsplit(found.gateway_url)
            host, port = url.hostname or "127.0.0.1", url.port or 80
            await _ready(host, port, system)
            name = f"{host}:{port}"
            opened = await closed_loop(
                host, port, account_requests(name, ACCOUNTS), connections=CONNECTIONS, seconds=120
            )
            if opened.statuses[200] != ACCOUNTS:
                raise RuntimeError(f"{ACCOUNTS} accounts were to be opened: {dict(opened.statuses)}")
            await open_loop(
                host, port, payment_requests(name, ACCOUNTS, "warm"), rate=rates[0], seconds=WARM_S
            )
            found = running(home)
            assert found is not None
            meter = Meter({**found.pids, "broker": ground.broker_pid, "load generator": os.getpid()})
            for turn in range(reps):
                for rate in rates:
                    requests = payment_requests(name, ACCOUNTS, f"at{rate}-{turn}")
                    meter.begin()
                    load = await open_loop(host, port, requests, rate=rate, seconds=seconds)
                    fixed[rate].append(load)
                    costs[f"{rate}/s"].append(meter.us_each(load.answered))
                    _tell(f"{rate}/s {turn + 1}/{reps}", load, costs[f"{rate}/s"][-1])
                requests = payment_requests(name, ACCOUNTS, f"full-{turn}")
                meter.begin()
                load = await closed_loop(
                    host, port, requests, connections=CONNECTIONS, seconds=min(seconds, 10.0)
                )
                saturated.append(load)
                costs["saturated"].append(meter.us_each(load.answered))
                _tell(f"{CONNECTIONS} connections {turn + 1}/{reps}", load, costs["saturated"][-1])
            rss = system.rss_peak_mib
        result.cores = ground.placed()
    for rate, loads in fixed.items():
        prefix = "http" if rate == RATE_PER_S else f"http.{rate}"
        result.figures += [
            Figure(f"{prefix}.p50_ms", "ms", tuple(load.percentile_ms(50) for load in loads)),
            Figure(f"{prefix}.p99_ms", "ms", tuple(load.percentile_ms(99) for load in loads)),
            Figure(f"{prefix}.max_ms", "ms", tuple(load.percentile_ms(100) for load in loads)),
        ]
        result.series[f"{rate}/s"] = [(p, loads[-1].percentile_ms(p)) for p in PERCENTILES]
    result.figures += [
        Figure("http.saturation_per_s", "requests/s", tuple(load.per_s for load in saturated)),
        Figure("http.saturation_p50_ms", "ms", tuple(load.percentile_ms(50) for load in saturated)),
        Figure("http.saturation_p99_ms", "ms", tuple(load.percentile_ms(99) for load in saturated)),
        Figure("http.rss", "MiB, all processes but the broker", (rss,)),
    ]
    result.series[f"saturated, {CONNECTIONS} connections"] = [
        (p, saturated[-1].percentile_ms(p)) for p in PERCENTILES
    ]
    for at, runs in costs.items():
        result.figures += [
            Figure(f"http.cpu.{at}.{process}", "CPU us a request", tuple(run[process] for run in runs))
            for process in runs[0]
        ]
    loads = [*itertools.chain.from_iterable(fixed.values()), *saturated]
    result.runs = [
        {
            "answered": load.answered,
            "per_s": load.per_s,
            "statuses": dict(load.statuses),
            "approved": load.approved,
        }
        for load in loads
    ]
    share = sum(load.approved for load in loads) / max(1, sum(load.answered for load in loads))
    result.notes.append(
        f"{seconds:g} s at each rate, latency from when a request was due; {ACCOUNTS:,} accounts; "
        f"{share:.1%} approved"
    )
    bad = sum(count for load in loads for status, count in load.statuses.items() if status != 200)
    if bad:
        result.notes.append(f"{bad} requests were not answered with 200")
    if share < APPROVED_SHARE_MIN:
        result.error = f"{share:.0%} approved, less than {APPROVED_SHARE_MIN:.0%}"
    return result


async def _ready(host: str, port: int, system: Watched) -> None:
    """Until the gateway says that it can answer an authorization."""
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        system.check()
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        except OSError:
            pass
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"the gateway is not ready after {START_TIMEOUT_S:g} s: {system.tail()}")
        await asyncio.sleep(0.1)


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


def _tell(what: str, load: Load, cpu: Mapping[str, float]) -> None:
    console.print(
        f"  CPU us a request: {', '.join(f'{name} {us:.0f}' for name, us in cpu.items())}", style="dim"
    )
    console.print(
        f"  http {what}: {number(load.per_s)}/s, p50 {load.percentile_ms(50):.1f} ms, "
        f"p99 {load.percentile_ms(99):.1f} ms, max {load.percentile_ms(100):.0f} ms, "
        f"{load.approved_share:.0%} approved, {dict(load.statuses)}",
        style="dim",
    )
