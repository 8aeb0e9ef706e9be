"""The gateway's entry: wires the parts, serves, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from zlib import crc32

import orjson
import uvloop
from aiohttp import web

from mini_visa.gateway.access import Access
from mini_visa.gateway.endpoints import Endpoint, Fallback
from mini_visa.gateway.exchange import Exchange
from mini_visa.gateway.metrics import Metrics
from mini_visa.gateway.openapi import document
from mini_visa.gateway.routes import ROUTES
from mini_visa.gateway.server import expect, server
from mini_visa.gateway.service import Gateway
from mini_visa.gateway.token_keys import load_tokenizer, token_keys_file
from mini_visa.kafka import await_broker, client_options
from mini_visa.settings import Settings

log = logging.getLogger(__name__)

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)


def create(settings: Settings) -> web.Application:
    """The application; it connects when it starts and disconnects when it is cleaned up.

    Raises `AccessError`, `InvalidTokenKey` or `NoBroker` for settings it cannot run with.
    """
    metrics = Metrics()
    gateway = Gateway(
        settings,
        tokenizer=load_tokenizer(token_keys_file(settings)),
        exchange=Exchange(
            client_options(settings), gateway_id=gateway_id(settings), produce_seconds=metrics.produce_seconds
        ),
        access=Access(settings),
        metrics=metrics,
        openapi=orjson.dumps(document(ROUTES)),
    )
    app = web.Application()
    app[GATEWAY] = gateway
    for route in ROUTES:
        # An id has its own form, so that /payments/authorize is never taken for a payment.
        path = route.path.replace("{payment_id}", "{payment_id:pay_[^{}/]+}")
        app.router.add_route(route.method, path, Endpoint(gateway, route).handle, expect_handler=expect)
    app.router.add_route("*", "/{tail:.*}", Fallback(gateway, app).handle, expect_handler=expect)
    app.cleanup_ctx.append(_connected)
    return app


def gateway_id(settings: Settings) -> int:
    """The setting, or a number that a pod's name always gives."""
    if settings.gateway_id is not None:
        return settings.gateway_id
    return crc32(settings.instance.encode())


async def _connected(app: web.Application) -> AsyncIterator[None]:
    gateway = app[GATEWAY]
    opening = asyncio.create_task(gateway.open_read_model())
    try:
        await await_broker(gateway.settings)
        await gateway.exchange.start()
        gateway.vigil.start(gateway.exchange.partitions)
        yield
    finally:
        await gateway.vigil.stop()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await gateway.exchange.stop()
        if gateway.read_model is not None:
            await gateway.read_model.close()


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Blocks."""
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = create(settings)
    runner = server(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.gateway_host, settings.gateway_port, backlog=1024)
        await site.start()
        log.info("listening on %s", ", ".join(f"http://{a[0]}:{a[1]}" for a in runner.addresses))
        await stop.wait()
        await drain(app[GATEWAY])
    finally:
        await runner.cleanup()


async def drain(gateway: Gateway) -> None:
    """Takes no new requests and waits (bounded) for those that are being worked on."""
    gateway.draining = True
    try:
        async with asyncio.timeout(gateway.settings.gateway_drain_s):
            await gateway.idle.wait()
    except TimeoutError:
        pass
    log.info("drained, %d requests unanswered", gateway.in_flight)
