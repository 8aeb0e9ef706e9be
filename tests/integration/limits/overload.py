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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from mini_visa.demo.cards import card_numbers
from mini_visa.supervisor.system import System
from tests.bench.httpload import Connection, post
from tests.integration.limits.ground import a_system, memory_mb

TIMES: Final = 5
CLIENTS: Final = 8
"""Of the sustainable rate."""
IN_FLIGHT_MAX: Final = 64
CARDS: Final = 2_000
CONNECTIONS_MAX: Final = 2_000


@dataclass
class Phase:
    """What became of the requests of one part of the run."""

    sent: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    """Answers 503 that do not say when to come again."""

    @property
    def accepted_per_s(self) -> float:
        return len(self.accepted_ms) / self.seconds

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.accepted_ms) or [float("nan")]
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def document(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "sent_per_s": round(self.sent / self.seconds, 1),
            "accepted_per_s": round(self.accepted_per_s, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "accepted_p50_ms": round(self.percentile(50), 1),
            "accepted_p99_ms": round(self.percentile(99), 1),
            "refused_p50_ms": round(statistics.median(self.refused_ms), 1) if self.refused_ms else None,
            "without_retry_after": self.without_retry_after,
        }


@dataclass
class Overload:
    calm: dict[str, Any]
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

    async def _send(self, request: bytes, phase: Phase) -> int:
        while self._idle and not self._idle[-1].is_open:
            self._idle.pop()
            self._made -= 1
        if self._idle:
            connection = self._idle.pop()
        else:
            self._made += 1
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, self.host, self.port
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        connection.send(request, lambda status, _: done.done() or done.set_result(status))
        status = await done
        took_ms = (time.perf_counter() - began) * 1_000
        phase.sent += 1
        phase.statuses[status] += 1
        if status == 200:
            phase.accepted_ms.append(took_ms)
        else:
            phase.refused_ms.append(took_ms)
            if status == 503 and b"retry-after:" not in connection.head.lower():
                phase.without_retry_after += 1
        if connection.is_open:
            self._idle.append(connection)
        return status

    async def closed(self, clients: int, seconds: float) -> Phase:
        """`clients` that send the next request once the last is answered."""
        phase, ends = Phase(), time.perf_counter() + seconds

        async def shop() -> None:
            while time.perf_counter() < ends:
                await self._send(self._request(), phase)

        began = time.perf_counter()
        await asyncio.gather(*(shop() for _ in range(clients)))
        phase.seconds = time.perf_counter() - began
        return phase

    async def at_rate(self, per_s: float, seconds: float) -> Phase:
        """Each at its time, whatever became of those before."""
        phase, tasks, began = Phase(), set[asyncio.Task[int]](), time.perf_counter()
        for number in range(int(per_s * seconds)):
            wait_s = began + number / per_s - time.perf_counter()
            if wait_s > 0.001:
                await asyncio.sleep(wait_s)
            elif number % 20 == 0:
                await asyncio.sleep(0)
            if len(tasks) < CONNECTIONS_MAX:
                task = asyncio.create_task(self._send(self._request(), phase))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        phase.seconds = time.perf_counter() - began
        return phase


async def measure(system: System, seconds: float, seed: int) -> Overload:
    shoppers = Shoppers(system.settings.gateway_host, system.settings.gateway_port, seed)
    await shoppers.open_cards()
    await shoppers.closed(CLIENTS, 2.0)  # warm
    calm = await shoppers.closed(CLIENTS, seconds / 3)
    most = await shoppers.closed(IN_FLIGHT_MAX, seconds / 3)
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
        calm.document(), overload.document(), after.document(),
        {name: round(mb) for name, mb in before.items()}, dict(peak),
    )  # fmt: skip


async def run(seconds: float, seed: int, home: Path) -> Overload:
    async with a_system(home, gateway_in_flight_max=IN_FLIGHT_MAX) as system:
        return await measure(system, seconds, seed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of overload (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mini-visa-overload-") as home:
        print(json.dumps(asdict(asyncio.run(run(given.seconds, given.seed, Path(home)))), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
