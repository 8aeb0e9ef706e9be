"""The HTTP server under the gateway. What aiohttp says about input that is not HTTP quotes that input, in
its answer and in its log: here it is a problem like any other, and neither repeats a byte of it.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web

from mini_visa.gateway.endpoints import problem_response
from mini_visa.gateway.problems import Problem

log = logging.getLogger(__name__)


def server(app: web.Application) -> web.AppRunner:
    """Serves `app` without aiohttp's access log: that one writes whole paths, and a PAN may be in one."""
    return _Runner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Answers an Expect header: aiohttp's own handler repeats one that it does not know."""
    if request.version < (1, 1):
        return None
    if request.headers.get("Expect", "").lower() != "100-continue":
        return problem_response(
            Problem(417, "expectation-failed", "The one expectation there is: Expect: 100-continue.")
        )
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer has not begun
    return None


class _Connection(web.RequestHandler):
    """One client's connection."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never reaches a route; the connection closes after it."""
        self.log_exception("A connection's input cannot be read", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: no other can follow")
        if status == 500:
            problem = Problem(500, "internal-error", "The gateway failed: send the request again.")
        else:
            problem = Problem(status, "not-http", "The request is not well-formed HTTP/1.1, or too long.")
        response = problem_response(problem)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """The kind of the error only: its text may quote the input."""
        log.warning("connection: %s", type(kw.get("exc_info")).__name__)

    def log_debug(self, *args: Any, **kw: Any) -> None:
        """aiohttp's notes on connections that end early quote nothing, but their tracebacks might."""
        log.debug("connection: %s", type(kw.get("exc_info")).__name__)


class _Server(web.Server):
    """Makes a `_Connection` of each connection."""

    def __init__(self, made: web.Server, **options: Any) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory, **options)
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._options)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), **self._kwargs)
