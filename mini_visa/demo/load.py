"""`mini-visa load`: authorizations at a steady rate, from one process or from many pods beside one another.

An open loop: requests begin when their time has come, whatever became of those before, as cardholders do.
What gets no answer is asked for again under the same request id, so that it takes effect once, however
often it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import aiohttp
import orjson

from mini_visa.demo.cards import card_numbers

TRIES_MAX: Final = 20
PAUSE_S: Final = 0.5
"""Between two tries of the same request; longer each time, up to `PAUSE_S_MAX`."""
PAUSE_S_MAX: Final = 5.0
TIMEOUT_S: Final = 30.0
IN_FLIGHT_MAX: Final = 1_000
"""What would be more at once is not sent, and counted."""
REPORT_S: Final = 5.0
LIMIT: Final = "1000000.00"
NO_ANSWER: Final = frozenset({429, 500, 502, 503, 504})
"""Statuses that say nothing about the request's outcome, or that it was not looked at: ask again."""


@dataclass
class Load:
    """What was sent and what came back."""

    answers: Counter[str] = field(default_factory=Counter)
    """By the payment's status, or by the HTTP status of a refusal."""
    tries: int = 0
    sent: int = 0
    skipped: int = 0
    """Not sent: too many were waiting already."""
    unanswered: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    """First try to answer, of a bounded sample."""
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """For people and programs."""
        ordered = sorted(self.latencies_ms)
        answered = sum(self.answers.values())
        return {
            "sent": self.sent,
            "answered": answered,
            "unanswered": self.unanswered,
            "skipped": self.skipped,
            "tries": self.tries,
            "seconds": round(self.seconds, 1),
            "per_s": round(answered / self.seconds, 1) if self.seconds else 0.0,
            "answers": dict(self.answers),
            "latency_ms": {
                f"p{share}": round(ordered[len(ordered) * share // 100], 1)
                for share in (50, 95, 99)
                if ordered
            },
        }


class Generator:
    """Sends to the gateway at `url`. `run` returns after `seconds`, or when it is told to `stop`."""

    def __init__(self, url: str, *, rate: float, seconds: float, cards: int, api_key: str = "") -> None:
        """`rate` requests a second; `seconds` of 0: until stopped; `cards` accounts, opened at the start."""
        self._url, self._rate, self._seconds, self._cards = url.rstrip("/"), rate, seconds, cards
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._choose = random.Random(secrets.randbits(64))  # noqa: S311 - load, not secrets
        self._run = secrets.token_hex(6)
        self._stop = asyncio.Event()
        self._pans: list[str] = []
        self.load = Load()

    def stop(self) -> None:
        self._stop.set()

    async def run(self, show: Callable[[Load], None]) -> Load:
        """`show` is called every few seconds."""
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT_MAX)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as http:
            self._pans = list(islice(card_numbers(self._choose), self._cards))
            await asyncio.gather(*(self._open(http, number) for number in range(self._cards)))
            began = time.perf_counter()
            showing = asyncio.create_task(self._show(show, began))
            waiting: set[asyncio.Task[None]] = set()
            try:
                while not self._stop.is_set():
                    due = began + (self.load.sent + self.load.skipped) / self._rate
                    if self._seconds and due >= began + self._seconds:
                        break
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), max(0.0, due - time.perf_counter()))
                    if self._stop.is_set():
                        break
                    if len(waiting) >= IN_FLIGHT_MAX:
                        self.load.skipped += 1
                        continue
                    self.load.sent += 1
                    task = asyncio.create_task(self._authorize(http, self.load.sent))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                await asyncio.gather(*waiting)
            finally:
                showing.cancel()
            self.load.seconds = time.perf_counter() - began
        return self.load

    async def _show(self, show: Callable[[Load], None], began: float) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self.load.seconds = time.perf_counter() - began
            show(self.load)

    async def _open(self, http: aiohttp.ClientSession, number: int) -> None:
        body = {"request_id": f"load-{self._run}-open-{number}", "pan": self._pans[number], "limit": LIMIT}
        await self._post(http, "/accounts", body)

    async def _authorize(self, http: aiohttp.ClientSession, number: int) -> None:
        began = time.perf_counter()
        answer = await self._post(
            http,
            "/payments/authorize",
            {
                "request_id": f"load-{self._run}-{number}",
                "pan": self._choose.choice(self._pans),
                "amount": f"{self._choose.randint(100, 9_999) / 100:.2f}",
                "merchant_id": f"merchant-{self._choose.randint(1, 50)}",
            },
        )
        if answer is None:
            self.load.unanswered += 1
            return
        status, document = answer
        self.load.answers[str(document.get("status", status)) if status < 300 else str(status)] += 1
        if len(self.load.latencies_ms) < 100_000:
            self.load.latencies_ms.append((time.perf_counter() - began) * 1000)

    async def _post(
        self, http: aiohttp.ClientSession, path: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]] | None:
        """(status, body) of the one answer; None when there was none after all tries."""
        data = orjson.dumps(body)
        for number in range(TRIES_MAX):
            self.load.tries += 1
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
                async with http.post(self._url + path, data=data) as response:
                    read = await response.read()
                    if response.status not in NO_ANSWER:
                        return response.status, orjson.loads(read)
            await asyncio.sleep(min(PAUSE_S_MAX, PAUSE_S * (number + 1)))
        return None


async def run(
    url: str, *, rate: float, seconds: float, cards: int, api_key: str, show: Callable[[Load], None]
) -> Load:
    """A whole run; SIGTERM and SIGINT end it after what is under way."""
    generator = Generator(url, rate=rate, seconds=seconds, cards=cards, api_key=api_key)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, generator.stop)
    return await generator.run(show)
