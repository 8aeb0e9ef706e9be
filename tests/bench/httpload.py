"""A cheap HTTP/1.1 load generator: keep-alive connections as bare protocols, bytes made beforehand.

Open loop: request i is due at start + i/rate whatever became of those before it, and its latency
counts from that moment, so a server that stalls is charged for all it kept waiting (no coordinated
omission). Closed loop: a fixed number of connections, each sending as soon as it is answered; latency
counts from sending. A request that is not answered has taken as long as one may wait for an answer.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

CONNECTIONS_MAX = 1_024
ANSWER_TIMEOUT_S = 30.0

Answered = Callable[[int, bytes], None]
"""Called with the HTTP status (0: the connection was lost) and the body."""


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.head = b""
        """Status line and headers of the last answer."""
        self._buffer = b""
        self._answered: Answered | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, answered: Answered) -> None:
        assert self._answered is None, "a request is under way"
        assert self._transport is not None
        self._answered = answered
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            length = _content_length(data[:head])
            if len(data) >= head + 4 + length:
                self._buffer, self.head = b"", data[:head]
                self._finish(int(data[9:12]), data[head + 4 : head + 4 + length])
                return
        self._buffer = data

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(0, b"")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection, whatever is under way on it."""
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, status: int, body: bytes) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(status, body)


def _content_length(head: bytes) -> int:
    start = head.lower().find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    end = head.find(b"\r\n", start + 2)
    return int(head[start + 17 : end if end >= 0 else None])


def post(host: str, path: str, body: bytes) -> bytes:
    """The bytes of a POST with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Load:
    """What became of a load."""

    seconds: float = 0.0
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    """Of every request, in the order of the answers."""
    due_s: array[float] = field(default_factory=lambda: array("d"))
    """When each of them was due, from the start."""
    statuses: Counter[int] = field(default_factory=Counter)
    """HTTP status -> requests; 0: not answered."""
    approved: int = 0
    connections: int = 0

    @property
    def requests(self) -> int:
        return len(self.latencies_ms)

    @property
    def answered(self) -> int:
        return self.requests - self.statuses[0]

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def approved_share(self) -> float:
        return self.approved / self.answered if self.answered else 0.0

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")

    def note(self, due: float, since_start: float, status: int, body: bytes, now: float) -> None:
        self.latencies_ms.append(max(now - due, 0 if status else ANSWER_TIMEOUT_S) * 1_000)
        self.due_s.append(since_start)
        self.statuses[status] += 1
        if status == 200 and b'"response_code":"00"' in body.replace(b" ", b""):
            self.approved += 1


async def open_loop(host: str, port: int, requests: Iterator[bytes], *, rate: float, seconds: float) -> Load:
    """Send `rate` requests/s for `seconds`, evenly spaced, on as many connections as that takes.

    Beyond `CONNECTIONS_MAX` requests wait for a connection, and their waiting counts.
    """
    loop, load = asyncio.get_running_loop(), Load()
    idle: deque[Connection] = deque()
    waiting: deque[tuple[float, bytes]] = deque()
    busy: set[Connection] = set()
    opening: set[asyncio.Task[None]] = set()
    total = int(rate * seconds)
    done = asyncio.Event()

    def dispatch(connection: Connection, due: float, request: bytes) -> None:
        def answered(status: int, body: bytes) -> None:
            busy.discard(connection)
            load.note(due, due - start, status, body, time.perf_counter())
            if load.requests == total:
                done.set()
            if not connection.is_open:
                load.connections -= 1
            elif waiting:
                dispatch(connection, *take())
            else:
                idle.append(connection)

        busy.add(connection)
        connection.send(request, answered)

    def take() -> tuple[float, bytes]:
        return waiting.popleft()

    async def connect() -> None:
        _, connection = await loop.create_connection(Connection, host, port)
        if waiting:
            dispatch(connection, *take())
        else:
            idle.append(connection)

    def give_up() -> None:
        for task in opening:
            task.cancel()
        for due, _ in waiting:
            load.note(due, due - start, 0, b"", time.perf_counter())
        waiting.clear()
        if load.requests == total:
            done.set()
        for connection in list(busy):
            connection.abort()  # which is noted as no answer

    start = time.perf_counter() + 0.05
    sent = 0
    while sent < total:
        now = time.perf_counter()
        while sent < total and start + sent / rate <= now:
            due, request = start + sent / rate, next(requests)
            sent += 1
            while idle and not idle[-1].is_open:
                idle.pop()
                load.connections -= 1
            if idle:
                dispatch(idle.pop(), due, request)
                continue
            waiting.append((due, request))
            if load.connections < CONNECTIONS_MAX:
                load.connections += 1
                task = loop.create_task(connect())
                opening.add(task)
                task.add_done_callback(opening.discard)
        await asyncio.sleep(max(0.0, start + sent / rate - time.perf_counter()))
    try:
        await asyncio.wait_for(done.wait(), ANSWER_TIMEOUT_S)
    except TimeoutError:
        give_up()
        await done.wait()
    load.seconds = time.perf_counter() - start
    for connection in idle:
        connection.close()
    return load


async def closed_loop(
    host: str, port: int, requests: Iterator[bytes], *, connections: int, seconds: float, total: int = 0
) -> Load:
    """`connections` clients that send the next request once the last is answered, for `seconds` or
    until `total` requests (if given) are answered."""
    loop, load = asyncio.get_running_loop(), Load(connections=connections)
    start = time.perf_counter()
    finished: dict[asyncio.Future[None], Connection] = {}

    def go(connection: Connection, end: asyncio.Future[None]) -> None:
        due = time.perf_counter()
        request = None if due - start >= seconds else next(requests, None)
        if request is None or not connection.is_open:
            connection.close()
            end.set_result(None)
            return

        def answered(status: int, body: bytes) -> None:
            load.note(due, due - start, status, body, time.perf_counter())
            loop.call_soon(go, connection, end)

        connection.send(request, answered)

    for _ in range(connections):
        _, connection = await loop.create_connection(Connection, host, port)
        end = loop.create_future()
        finished[end] = connection
        go(connection, end)
    _, unfinished = await asyncio.wait(finished, timeout=seconds + ANSWER_TIMEOUT_S)
    for end in unfinished:
        finished[end].abort()  # which is noted as no answer
    await asyncio.gather(*unfinished)
    load.seconds = time.perf_counter() - start
    return load
