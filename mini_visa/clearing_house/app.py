"""The clearing house over HTTP.

    POST /presentments              present and call back, many at once: one answer for each key
    GET  /presentments/KEY          what was decided; 404: never seen
    GET  /totals                    what was decided so far, by status and currency
    GET  /conduct, PUT /conduct     rejections, lost answers, delays
    GET  /healthz, GET /readyz

The same key again is the same question. An answer that gets lost is missing in the list, or the connection
ends without any.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Final

import msgspec
import uvloop
from aiohttp import web

from mini_visa.clearing_house.book import PENDING, Answer, Book, Conduct, Key, Presented
from mini_visa.settings import Settings

BATCH_MAX: Final = 500
BODY_BYTES_MAX: Final = 1 << 20
DRAIN_S: Final = 3.0

log = logging.getLogger(__name__)

BOOK: web.AppKey[Book] = web.AppKey("book", Book)
_ASKS: web.AppKey[Counter[str]] = web.AppKey("asks", Counter)


class Submitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /presentments. Those to call back come after those to present."""

    present: Annotated[tuple[Presented, ...], msgspec.Meta(max_length=BATCH_MAX)] = ()
    cancel: Annotated[tuple[Key, ...], msgspec.Meta(max_length=BATCH_MAX)] = ()


class Answers(msgspec.Struct, frozen=True):
    answers: tuple[Answer, ...]


def create(book: Book) -> web.Application:
    """The application on `book`, which is closed with it."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[BOOK] = book
    app[_ASKS] = Counter()
    app.add_routes(
        [
            web.post("/presentments", _present),
            web.get("/presentments/{key}", _find),
            web.get("/totals", _totals),
            web.get("/conduct", _conduct),
            web.put("/conduct", _set_conduct),
            web.get("/healthz", _healthz),
            web.get("/readyz", _healthz),
        ]
    )
    app.cleanup_ctx.append(_closed_at_the_end)
    return app


async def _closed_at_the_end(app: web.Application) -> AsyncIterator[None]:
    yield
    app[BOOK].close()


async def _present(request: web.Request) -> web.Response:
    submitted: Submitted = await _body(request, Submitted)
    book, asks = request.app[BOOK], request.app[_ASKS]
    with book.batch():
        answers = [book.present(presented) for presented in submitted.present]
        answers += [book.cancel(key) for key in submitted.cancel]
    arriving = []
    for answer in answers:
        asks[answer.key] += 1
        if not book.loses(answer.key, asks[answer.key]):
            arriving.append(answer)
            if answer.status != PENDING:
                del asks[answer.key]
    if answers and not arriving:
        assert request.transport is not None
        request.transport.abort()
    return _json(200, Answers(tuple(arriving)))


async def _find(request: web.Request) -> web.Response:
    answer = request.app[BOOK].find(request.match_info["key"])
    return _json(404, {"detail": "never seen"}) if answer is None else _json(200, answer)


async def _totals(request: web.Request) -> web.Response:
    return _json(200, [asdict(totals) for totals in request.app[BOOK].totals()])


async def _conduct(request: web.Request) -> web.Response:
    return _json(200, request.app[BOOK].conduct)


async def _set_conduct(request: web.Request) -> web.Response:
    request.app[BOOK].conduct = await _body(request, Conduct)
    return _json(200, request.app[BOOK].conduct)


async def _healthz(request: web.Request) -> web.Response:
    return _json(200, {"status": "ok"})


async def _body(request: web.Request, kind: type[Any]) -> Any:
    """Raises 400 with the field and the reason, 413 for what is too long."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise web.HTTPBadRequest(
            text=msgspec.json.encode({"detail": str(error)}).decode(), content_type="application/json"
        ) from None


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
        late=settings.clearing_late,
        late_s=settings.clearing_late_s,
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
