"""The clearing house over HTTP.

    POST /presentments/KEY          present; the key is the idempotency key
    GET  /presentments/KEY          ask again
    POST /presentments/KEY/cancel   call back: the answer is final
    GET  /totals                    what was decided, by status and currency
    GET  /conduct, PUT /conduct     rejections, lost answers, delay
    GET  /healthz

200: decided. 202: pending. 404: never seen. 409: the key belongs to another presentment.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Final

import msgspec
import uvloop
from aiohttp import web

from mini_visa.clearing_house.book import PENDING, Answer, Book, Conduct, OtherBody, Presented
from mini_visa.settings import Settings

BODY_BYTES_MAX: Final = 16 << 10
DRAIN_S: Final = 3.0

log = logging.getLogger(__name__)

BOOK: web.AppKey[Book] = web.AppKey("book", Book)
_ASKS: web.AppKey[Counter[str]] = web.AppKey("asks", Counter)

_KEY: Final = "{key:[A-Za-z0-9_-]{1,128}}"


def create(book: Book) -> web.Application:
    """The application on `book`, which is closed with it."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[BOOK] = book
    app[_ASKS] = Counter()
    app.add_routes(
        [
            web.post(f"/presentments/{_KEY}", _present),
            web.get(f"/presentments/{_KEY}", _find),
            web.post(f"/presentments/{_KEY}/cancel", _cancel),
            web.get("/totals", _totals),
            web.get("/conduct", _conduct),
            web.put("/conduct", _set_conduct),
            web.get("/healthz", _healthz),
        ]
    )
    app.cleanup_ctx.append(_closed_at_the_end)
    return app


async def _closed_at_the_end(app: web.Application) -> AsyncIterator[None]:
    yield
    app[BOOK].close()


async def _present(request: web.Request) -> web.Response:
    presented = await _body(request, Presented)
    try:
        answer = request.app[BOOK].present(request.match_info["key"], presented)
    except OtherBody as error:
        return _problem(409, str(error))
    return _say(request, answer)


async def _find(request: web.Request) -> web.Response:
    answer = request.app[BOOK].find(request.match_info["key"])
    return _problem(404, "never seen") if answer is None else _say(request, answer)


async def _cancel(request: web.Request) -> web.Response:
    return _say(request, request.app[BOOK].cancel(request.match_info["key"]))


async def _totals(request: web.Request) -> web.Response:
    return _json(200, [asdict(totals) for totals in request.app[BOOK].totals()])


async def _conduct(request: web.Request) -> web.Response:
    return _json(200, request.app[BOOK].conduct)


async def _set_conduct(request: web.Request) -> web.Response:
    request.app[BOOK].conduct = await _body(request, Conduct)
    return _json(200, request.app[BOOK].conduct)


async def _healthz(request: web.Request) -> web.Response:
    return _json(200, {"status": "ok"})


def _say(request: web.Request, answer: Answer) -> web.Response:
    """The answer, unless it is one of those that get lost: the connection ends instead."""
    asks = request.app[_ASKS]
    asks[answer.key] += 1
    if request.app[BOOK].loses(answer.key, asks[answer.key]):
        assert request.transport is not None
        request.transport.abort()
    elif answer.status != PENDING:
        del asks[answer.key]
    return _json(202 if answer.status == PENDING else 200, answer)


async def _body(request: web.Request, kind: type[Any]) -> Any:
    """Raises 400 with the field and the reason, 413 for what is too long."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise web.HTTPBadRequest(
            text=msgspec.json.encode({"detail": str(error)}).decode(), content_type="application/json"
        ) from None


def _problem(status: int, detail: str) -> web.Response:
    return _json(status, {"detail": detail})


def _json(status: int, document: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/json")


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Blocks."""
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    book = Book(settings.home / "clearing-house.sqlite")
    book.conduct = Conduct(
        rejections=settings.clearing_rejections,
        lost_answers=settings.clearing_lost_answers,
        delay_s=settings.clearing_delay_s,
    )
    runner = web.AppRunner(create(book), access_log=None, shutdown_timeout=DRAIN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.clearing_house_host, settings.clearing_house_port)
        await site.start()
        log.info("clearing house at %s", site.name)
        await stop.wait()
    finally:
        await runner.cleanup()
