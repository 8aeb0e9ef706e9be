"""For those who run the gateway: is it alive, can it serve, what did it count, what does it offer."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mini_visa.gateway.endpoints import Call, Reply
from mini_visa.gateway.problems import busy

DOCS: Final = files("mini_visa.gateway").joinpath("docs.html").read_bytes()
"""One file without anything from elsewhere; it reads /openapi.json."""
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def healthz(call: Call) -> Reply:
    """The process runs and its event loop turns."""
    return Reply(orjson.dumps({"status": "ok"}))


async def readyz(call: Call) -> Reply:
    """Can authorizations be answered now? One that some partition would not answer is named, see `Vigil`."""
    gateway = call.gateway
    if gateway.draining:
        raise busy("shutting-down", "Shutting down.")
    if not await gateway.exchange.reachable(timeout_s=1.0):
        raise busy("not-ready", "No working connection to Kafka.")
    if reason := gateway.vigil.unable():
        raise busy("not-ready", reason)
    return Reply(orjson.dumps({"status": "ready", "silent": gateway.vigil.silent()}))


async def metrics(call: Call) -> Reply:
    """Prometheus text format."""
    return Reply(generate_latest(call.gateway.metrics.registry), CONTENT_TYPE_LATEST)


async def openapi(call: Call) -> Reply:
    """The OpenAPI document."""
    return Reply(call.gateway.openapi)


async def docs(call: Call) -> Reply:
    """A page to read the OpenAPI document with."""
    return Reply(
        DOCS, "text/html; charset=utf-8", headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    )
