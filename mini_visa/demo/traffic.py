"""Sends a script over HTTP: in order within a card, many cards at once, connections kept alive."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from mini_visa.demo.script import Lane, Script, Step

REQUEST_TIMEOUT_S: Final = 90.0
"""Above every deadline of the gateway, a look-up's wait for the read model included: it answers first."""
CONNECTIONS: Final = 32
WAIT_S: Final = 0.02
"""Until a card that has to wait is looked at again."""


@dataclass(slots=True)
class Answer:
    """What came back. `status` of 0: nothing did, and `code` says why."""

    step: Step
    status: int
    code: str
    payment_status: str
    replayed: bool
    latency_ms: float
    body: bytes = b""
    payment_id: str = ""
    wrong: str = ""
    """What differs from the expected answer; "" when nothing does."""


@dataclass
class Traffic:
    """All answers, and how long they took."""

    answers: dict[int, list[Answer]] = field(default_factory=dict)
    """By lane, in the order of its steps."""
    seconds: float = 0.0

    def payment_ids(self, number: int) -> dict[str, str]:
        """Request id -> payment id of each authorization of a lane."""
        return {
            answer.step.request_id: answer.payment_id
            for answer in self.answers[number]
            if answer.step.kind == "authorize" and answer.payment_id
        }

    def all(self) -> list[Answer]:
        return [answer for lane in self.answers.values() for answer in lane]


class Sender:
    """A client of the gateway at `url`. `async with` it."""

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        self._url = url
        self._connections = connections
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Sender:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._http is not None
        await self._http.close()

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body). Raises what aiohttp raises."""
        assert self._http is not None
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if data is not None else None
        async with self._http.request(method, self._url + path, data=data, headers=headers) as response:
            return response.status, dict(response.headers), await response.read()

    # -- accounts -------------------------------------------------------------------------------------

    async def open_accounts(self, lanes: list[Lane], done: Callable[[int], None]) -> list[str]:
        """Open every lane's account. Returns what went wrong, a line each."""
        wrong: list[str] = []
        waiting = deque(lane for lane in lanes if lane.opening is not None)

        async def work() -> None:
            while waiting:
                lane = waiting.popleft()
                assert lane.opening is not None
                status, _, body = await self.call("POST", "/accounts", lane.opening)
                document = orjson.loads(body)
                if status == 200:
                    lane.account_id = document["account_id"]
                else:
                    wrong.append(f"account {lane.opening['request_id']}: {status} {document.get('detail')}")
                done(1)

        await asyncio.gather(*(work() for _ in range(self._connections)))
        return wrong

    # -- payments -------------------------------------------------------------------------------------

    async def send(self, script: Script, done: Callable[[int], None]) -> Traffic:
        """Send everything. A lane has one request in flight at a time; `burst` lanes go straight through,
        the others take turns, so that every card is busy during the whole run."""
        traffic = Traffic({number: [] for number in range(len(script.lanes))})
        await self.go_on(script, traffic, done)
        return traffic

    async def go_on(self, script: Script, traffic: Traffic, done: Callable[[int], None]) -> None:
        """Send what has been added to the script."""
        turns: deque[int] = deque(range(len(script.lanes)))
        answered_at = dict.fromkeys(turns, -math.inf)

        async def work() -> None:
            while turns:
                number = turns.popleft()
                lane, answers = script.lanes[number], traffic.answers[number]
                while len(answers) < len(lane.steps):
                    if time.perf_counter() < answered_at[number] + lane.steps[len(answers)].wait_s:
                        await asyncio.sleep(WAIT_S)
                        break
                    answers.append(await self._step(lane, answers))
                    answered_at[number] = time.perf_counter()
                    done(1)
                    if not lane.burst:
                        break
                if len(answers) < len(lane.steps):
                    turns.append(number)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(self._connections)))
        traffic.seconds += time.perf_counter() - began

    async def _step(self, lane: Lane, before: list[Answer]) -> Answer:
        step = lane.steps[len(before)]
        path = step.path.replace("{account}", lane.account_id)
        if "{payment}" in path:
            path = path.replace("{payment}", _payment_of(step.about, before))
        began = time.perf_counter()
        try:
            status, headers, body = await self.call(step.method, path, step.body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            latency_ms = (time.perf_counter() - began) * 1000
            answer = Answer(step, 0, type(error).__name__, "", False, latency_ms)
        else:
            latency_ms = (time.perf_counter() - began) * 1000
            answer = _answer(step, status, headers, body, latency_ms)
        answer.wrong = _difference(step, answer, before)
        return answer


def _payment_of(request_id: str, before: list[Answer]) -> str:
    for answer in before:
        if answer.step.request_id == request_id and answer.payment_id:
            return answer.payment_id
    return "pay_unknown"


def _answer(step: Step, status: int, headers: dict[str, str], body: bytes, latency_ms: float) -> Answer:
    document = orjson.loads(body) if body else {}
    replayed = headers.get("Idempotency-Replayed") == "true"
    if status != 200 or "operation" not in document:
        return Answer(step, status, "", "", replayed, latency_ms, body)
    return Answer(
        step,
        status,
        document["operation"]["response_code"],
        document["status"],
        replayed,
        latency_ms,
        body,
        document["payment_id"] or "",
    )


def _difference(step: Step, answer: Answer, before: list[Answer]) -> str:
    """How `answer` differs from what `step` expects; "" when it does not."""
    if answer.status == 0:
        return f"no answer ({answer.code})"
    if answer.status != step.status:
        return f"status {answer.status}, expected {step.status}: {_detail(answer.body)}"
    if answer.code != step.code:
        return f"code {answer.code or 'none'}, expected {step.code or 'none'}"
    if answer.payment_status != step.payment_status:
        return f"payment {answer.payment_status}, expected {step.payment_status}"
    if step.left and (left := orjson.loads(answer.body).get("left")) != step.left:
        return f"{left} is left, expected {step.left}"
    if answer.replayed != (step.replays is not None):
        return "marked as replayed" if answer.replayed else "not marked as replayed"
    if step.replays is not None and answer.body != before[step.replays].body:
        return "a replay with another body than the first answer"
    return ""


def _detail(body: bytes) -> str:
    try:
        return str(orjson.loads(body).get("detail", ""))[:200]
    except ValueError:
        return f"{len(body)} bytes that are not JSON"
