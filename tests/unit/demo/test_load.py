"""`mini-visa load` against an HTTP server that fails in every way a gateway may."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web

from mini_visa.demo import load
from mini_visa.demo.load import Generator


class Fickle:
    """Answers a request id at its third asking; before, it sheds it once and breaks the connection once."""

    def __init__(self, *, answers: bool = True) -> None:
        self.asked: Counter[str] = Counter()
        self.decided: Counter[str] = Counter()
        self.bearers: set[str | None] = set()
        self._answers = answers

    async def post(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        self.bearers.add(request.headers.get("Authorization"))
        self.asked[body["request_id"]] += 1
        if not self._answers or self.asked[body["request_id"]] == 1:
            return web.json_response({"title": "busy"}, status=503)
        if self.asked[body["request_id"]] == 2:
            assert request.transport is not None
            request.transport.abort()
        self.decided[body["request_id"]] += 1
        return web.json_response({"status": "approved"})


@asynccontextmanager
async def serving(fickle: Fickle) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.post("/accounts", fickle.post), web.post("/payments/authorize", fickle.post)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name
    finally:
        await runner.cleanup()


async def test_every_request_is_answered_however_often_it_has_to_be_asked(monkeypatch):
    monkeypatch.setattr(load, "PAUSE_S", 0.001)
    fickle = Fickle()
    async with serving(fickle) as url:
        generator = Generator(url, rate=200, seconds=0.5, cards=3, api_key="mvk_secret")
        done = await generator.run(lambda _: None)
    assert done.sent == 100 and done.answers == {"approved": 100} and not done.unanswered
    assert len(fickle.asked) == 103 and set(fickle.asked.values()) == {3}
    assert done.tries == 3 * 103
    assert fickle.bearers == {"Bearer mvk_secret"}


async def test_what_never_gets_an_answer_is_counted(monkeypatch):
    monkeypatch.setattr(load, "PAUSE_S", 0.0)
    monkeypatch.setattr(load, "TRIES_MAX", 2)
    async with serving(Fickle(answers=False)) as url:
        done = await Generator(url, rate=100, seconds=0.1, cards=1).run(lambda _: None)
    assert (done.sent, done.unanswered, dict(done.answers)) == (10, 10, {})


async def test_without_an_end_it_goes_on_until_it_is_stopped_and_awaits_what_is_under_way(monkeypatch):
    monkeypatch.setattr(load, "PAUSE_S", 0.001)
    async with serving(Fickle()) as url:
        generator = Generator(url, rate=100, seconds=0, cards=1)
        running = asyncio.create_task(generator.run(lambda _: None))
        while not generator.load.answers:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        generator.stop()
        done = await asyncio.wait_for(running, 10)
    assert done.sent == sum(done.answers.values()) > 0
