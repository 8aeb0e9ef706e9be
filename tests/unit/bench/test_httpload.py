"""A request that is not answered, or not with 200, is in the latencies and is an error of the benchmark."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.bench import httpload
from tests.bench.gateway import Run, Way, faults_of
from tests.bench.httpload import Load, closed_loop, open_loop, post

TIMEOUT_S = 0.4
APPROVED = b'{"response_code":"00"}'


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A server that does as a request's body says: answers with that status, or "never"."""
    monkeypatch.setattr(httpload, "ANSWER_TIMEOUT_S", TIMEOUT_S)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            (length,) = (
                int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")
            )
            asked = await reader.readexactly(length)
            if asked == b"never":
                await asyncio.sleep(60)
            writer.write(b"HTTP/1.1 %s X\r\nContent-Length: %d\r\n\r\n%s" % (asked, len(APPROVED), APPROVED))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def _requests(*bodies: bytes) -> Iterator[bytes]:
    return itertools.cycle([post("localhost", "/", body) for body in bodies])


async def _both(port: int, *bodies: bytes) -> list[Load]:
    """Ten requests in an open loop, and some in a closed one of two connections."""
    return [
        await open_loop("127.0.0.1", port, _requests(*bodies), rate=100, seconds=0.1),
        await closed_loop("127.0.0.1", port, _requests(*bodies), connections=2, seconds=0.1),
    ]


async def test_all_answered_is_no_fault(port: int):
    for load in await _both(port, b"200"):
        assert load.requests == load.answered == load.approved == load.statuses[200] > 0
        assert load.percentile_ms(100) < TIMEOUT_S * 1_000
        assert faults_of([_run(load)]) == ""


async def test_a_request_without_an_answer_has_taken_as_long_as_one_may_wait(port: int):
    for load in await _both(port, b"200", b"never"):
        assert load.statuses[0] == load.requests - load.answered > 0
        assert load.percentile_ms(100) >= TIMEOUT_S * 1_000
        assert "were not answered within" in faults_of([_run(load)])
    assert load.connections == 2


async def test_each_request_of_an_open_loop_is_counted_once(port: int):
    load = await open_loop("127.0.0.1", port, _requests(b"200", b"never"), rate=100, seconds=0.1)
    assert load.requests == 10
    assert load.statuses == Counter({200: 5, 0: 5})


async def test_another_status_is_a_fault(port: int):
    for load in await _both(port, b"200", b"503"):
        assert "something else than 200: " in faults_of([_run(load)])


def test_a_declined_payment_is_a_fault():
    assert "1 of 3 were declined" in faults_of([_run(Load(statuses=Counter({200: 3}), approved=2))])


def _run(load: Load) -> Run:
    return Run(load, {}, {})


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(500, "http.p50_ms"), (1_500, "http.1500.p50_ms"), (0, "http.saturation_p50_ms")],
)
def test_figures_are_named_by_the_way_that_requests_are_sent(rate: int, expected: str):
    way: Any = Way(rate)
    assert f"{way.prefix}p50_ms" == expected
    assert ("closed loop" in way.label) == (rate == 0)
