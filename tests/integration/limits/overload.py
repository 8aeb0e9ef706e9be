"""More than the system can take: how much it sheds, how, and what becomes of the rest.

    python -m tests.integration.limits.overload --seconds 20

First as many requests as some clients can get answered: the sustainable rate. Then five times as many, sent
at their time whatever becomes of those before. Then again as few as in the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

from mini_visa.demo.cards import card_numbers
from mini_visa.supervisor.system import System
from tests.bench.httpload import Connection, post
from tests.integration.limits.ground import a_system, memory_mb

TIMES: Final = 5
CLIENTS: Final = 8
"""Of a calm hour."""
SATURATING: Final = 48
"""Clients whose answers a second are called the sustainable rate."""
CARDS: Final = 2_000
CONNECTIONS_MAX: Final = 1_000
REFUSED_S: Final = 0.25
"""What a client that waits for its answers rests after a refusal."""
SETTLING_S: Final = 2.0
TICK_S: Final = 0.002
ANSWERS_S: Final = 30.0
"""Within which what is under way at the end is answered."""


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values) or [0.0]
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 1)


@dataclass
class Phase:
    """What became of the requests of one part of the run."""

    began: float = field(default_factory=time.perf_counter)
    sent: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    settled_ms: list[float] = field(default_factory=list)
    """Of those, the ones that were sent after the first `SETTLING_S`: the bound has found its place."""
    refused_ms: list[float] = field(default_factory=list)
    not_sent: int = 0
    """For want of a connection: all of them waited for an answer."""
    without_retry_after: int = 0
    """Answers 503 that do not say when to come again."""

    @property
    def accepted_per_s(self) -> float:
        return len(self.accepted_ms) / self.seconds

    def document(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "sent_per_s": round(self.sent / self.seconds, 1),
            "accepted_per_s": round(self.accepted_per_s, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "accepted_p50_ms": percentile(self.accepted_ms, 50),
            "accepted_p99_ms": percentile(self.accepted_ms, 99),
            "settled_p50_ms": percentile(self.settled_ms, 50),
            "settled_p99_ms": percentile(self.settled_ms, 99),
            "refused_p50_ms": round(statistics.median(self.refused_ms), 1) if self.refused_ms else None,
            "not_sent": self.not_sent,
            "without_retry_after": self.without_retry_after,
        }


@dataclass
class Overload:
    calm: dict[str, Any]
    sustainable: dict[str, Any]
    overload: dict[str, Any]
    after: dict[str, Any]
    memory_before_mb: dict[str, float]
    memory_peak_mb: dict[str, float]


class Shoppers:
    """Authorizations on many cards, and where their answers go."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.host, self.port = host, port
        pans = card_numbers(random.Random(seed))
        self._pans = [next(pans) for _ in range(CARDS)]
        self._number = 0
        self._idle: deque[Connection] = deque()
        self._made = 0

    async def open_cards(self) -> None:
        waiting = deque(self._pans)

        async def open_some() -> None:
            phase = Phase()
            while waiting:
                pan = waiting.popleft()
                body = {"request_id": f"open-{pan[-9:]}", "pan": pan, "limit": "100000.00"}
                request = post("gateway", "/accounts", orjson.dumps(body))
                while await self._send(request, phase) != 200:  # noqa: ASYNC110 - only trying again tells
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(open_some() for _ in range(CLIENTS)))

    def _request(self) -> bytes:
        self._number += 1
        pan = self._pans[self._number % CARDS]
        body = {"request_id": f"over-{self._number}", "pan": pan, "amount": "1.00"}
        return post("gateway", "/payments/authorize", orjson.dumps(body))

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._made -= 1
        return None

    async def _connect(self) -> Connection:
        self._made += 1
        try:
            _, made = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
        except OSError:
            self._made -= 1
            raise
        return made

    def _dispatch(
        self, connection: Connection, phase: Phase, request: bytes, then: Callable[[int], None]
    ) -> None:
        """Latency counts from here, where the request is in the hands of the kernel: how far this generator
        is behind its own plan says nothing about the gateway."""
        began = time.perf_counter()

        def answered(status: int, _: bytes) -> None:
            took_ms = (time.perf_counter() - began) * 1_000
            phase.sent += 1
            phase.statuses[status] += 1
            if status == 200:
                phase.accepted_ms.append(took_ms)
                if began - phase.began > SETTLING_S:
                    phase.settled_ms.append(took_ms)
            else:
                phase.refused_ms.append(took_ms)
                if status == 503 and b"retry-after:" not in connection.head.lower():
                    phase.without_retry_after += 1
            if connection.is_open:
                self._idle.append(connection)
            else:
                self._made -= 1
            then(status)

        connection.send(request, answered)

    async def _send(self, request: bytes, phase: Phase) -> int:
        connection = self._idle_connection() or await self._connect()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._dispatch(connection, phase, request, done.set_result)
        return await done

    async def closed(self, clients: int, seconds: float) -> Phase:
        """`clients` that send the next request once the last is answered."""
        phase, ends = Phase(), time.perf_counter() + seconds

        async def shop() -> None:
            while time.perf_counter() < ends:
                if await self._send(self._request(), phase) != 200:
                    await asyncio.sleep(REFUSED_S)

        began = time.perf_counter()
        await asyncio.gather(*(shop() for _ in range(clients)))
        phase.seconds = time.perf_counter() - began
        return phase

    async def at_rate(self, per_s: float, seconds: float) -> Phase:
        """Each at its time, whatever became of those before; what finds no connection is not sent."""
        phase, began, due = Phase(), time.perf_counter(), 0
        under_way, opening = 0, set[asyncio.Task[None]]()

        def ended(_: int) -> None:
            nonlocal under_way
            under_way -= 1

        async def with_a_new_one(request: bytes) -> None:
            self._dispatch(await self._connect(), phase, request, ended)

        while (now := time.perf_counter() - began) < seconds:
            while due < now * per_s:
                due += 1
                connection = self._idle_connection()
                if connection is not None:
                    self._dispatch(connection, phase, self._request(), ended)
                elif self._made + len(opening) < CONNECTIONS_MAX:
                    task = asyncio.create_task(with_a_new_one(self._request()))
                    opening.add(task)
                    task.add_done_callback(opening.discard)
                else:
                    phase.not_sent += 1
                    continue
                under_way += 1
            await asyncio.sleep(TICK_S)
        phase.seconds = time.perf_counter() - began
        async with asyncio.timeout(ANSWERS_S):
            while under_way:  # noqa: ASYNC110 - a plain count
                await asyncio.sleep(TICK_S)
        return phase


async def measure(system: System, seconds: float, seed: int) -> Overload:
    shoppers = Shoppers(system.settings.gateway_host, system.settings.gateway_port, seed)
    await shoppers.open_cards()
    await shoppers.closed(CLIENTS, 2.0)  # warm
    calm = await shoppers.closed(CLIENTS, seconds / 3)
    most = await shoppers.closed(SATURATING, seconds / 3)
    before, peak = memory_mb(system), Counter[str]()

    async def watch() -> None:
        while True:
            for name, mb in memory_mb(system).items():
                peak[name] = max(peak[name], round(mb))
            await asyncio.sleep(0.25)

    watching = asyncio.create_task(watch())
    overload = await shoppers.at_rate(TIMES * most.accepted_per_s, seconds)
    watching.cancel()
    after = await shoppers.closed(CLIENTS, seconds / 3)
    return Overload(
        calm.document(), most.document(), overload.document(), after.document(),
        {name: round(mb) for name, mb in before.items()}, dict(peak),
    )  # fmt: skip


async def run(seconds: float, seed: int, home: Path, **settings: Any) -> Overload:
    async with a_system(home, **settings) as system:
        return await measure(system, seconds, seed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of overload (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fixed", type=int, help="a bound that does not follow latency, to compare")
    parser.add_argument("--target", type=float, help="gateway_answer_target_s, to compare")
    given = parser.parse_args()
    settings: dict[str, Any] = {}
    if given.target is not None:
        settings = {"gateway_answer_target_s": given.target}
    if given.fixed:
        settings = {"gateway_in_flight_max": given.fixed, "gateway_answer_target_s": 0}
    with tempfile.TemporaryDirectory(prefix="mini-visa-overload-") as home:
        print(
            json.dumps(asdict(uvloop.run(run(given.seconds, given.seed, Path(home), **settings))), indent=2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
