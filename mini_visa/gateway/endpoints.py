"""The way of every request: admit, authenticate, read, validate, do, answer, measure, log.

A route is data (`Route`); `Endpoint` runs it. Commands go to Kafka and come back as an answer; queries
go to the read model; operations touch neither.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from time import perf_counter
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from mini_visa.domain.commands import Command
from mini_visa.gateway import problems
from mini_visa.gateway.access import Client
from mini_visa.gateway.fields import REQUEST_ID, Body, Invalid
from mini_visa.gateway.problems import FieldError, Problem, bad_input, busy
from mini_visa.gateway.service import Gateway
from mini_visa.gateway.strict_json import BODY, parse_object
from mini_visa.gateway.views import outcome_bytes, refusal_problem
from mini_visa.streams.topic import Topic

log = logging.getLogger(__name__)
access_log = logging.getLogger("mini_visa.access")

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
IDEMPOTENCY_REPLAYED: Final = "Idempotency-Replayed"
CONSISTENCY_TOKEN: Final = "Consistency-Token"  # noqa: S105
WORKED_ON: Final = frozenset({200, 409, 503, 504})
"""Statuses of a command whose time says how busy the system is. A 400 says nothing, nor does a query, which
may wait until the read model has what was answered."""
STALLED_S: Final = 15.0
"""A client of a stream that takes nothing for so long has lost it."""
SEND_BUFFER_BYTES: Final = 32 << 10
FINGERPRINT_CHARACTERS: Final = 32
"""128 bits of SHA-256: two requests of one request_id never share one by chance."""


class Call:
    """One request as handlers see it: nothing of HTTP is left."""

    __slots__ = ("attempt", "client", "gateway", "headers", "own", "path", "route", "values")

    def __init__(
        self,
        gateway: Gateway,
        route: Route,
        client: Client,
        path: Mapping[str, str],
        values: dict[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        self.gateway = gateway
        self.route = route
        self.client = client.name
        self.own = client.own
        self.path = path
        self.values = values
        self.headers = headers
        self.attempt = gateway.new_attempt() if route.topic is not None else ""

    def envelope(self, account: str) -> dict[str, Any]:
        """What every command carries. Call it when `values` no longer has the PAN."""
        assert "pan" not in self.values, "the fingerprint must not be made from a PAN"
        return {
            "account": account,
            "request_id": self.values["request_id"],
            "client": self.client,
            "fingerprint": fingerprint(self.route.name, account, self.path, self.values),
            "attempt": self.attempt,
            "reply_partition": self.gateway.exchange.reply_partition,
            "own": self.own,
        }

    def sees(self, client: str) -> bool:
        """Whether what `client` has made is there for the one who asks."""
        return not self.own or client == self.client


class Reply(NamedTuple):
    """A query's answer, whole or in parts."""

    body: bytes | AsyncGenerator[bytes, None]
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    status: int = 200


CommandOf = Callable[[Call], Awaitable[Command]]
ReplyOf = Callable[[Call], Awaitable[Reply]]
StreamOf = Callable[[Call], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One line of the table in `routes.py`; the OpenAPI document is made from the same."""

    method: str
    path: str
    name: str
    """The operation's id in the OpenAPI document and in fingerprints: never renamed."""
    summary: str
    tag: str
    scope: str | None
    """What a key must be allowed; None: open to all."""
    answers: str = ""
    """Schema of the 200 in the OpenAPI document; "" for what is not JSON."""
    body: Body | None = None
    query: Body | None = None
    topic: Topic[Any] | None = None
    """Where the command goes; None: a query."""
    command: CommandOf | None = None
    reply: ReplyOf | None = None
    stream: StreamOf | None = None
    """Of a response without an end (server-sent events)."""
    csv: bool = False
    """Also as text/csv, by the header Accept."""
    bounded: bool = True
    """Counts as a request in flight, and is refused while the gateway drains."""

    def __post_init__(self) -> None:
        assert (self.command is None) == (self.topic is None), f"{self.name}: a command needs a topic"
        ways = [way for way in (self.command, self.reply, self.stream) if way is not None]
        assert len(ways) == 1, f"{self.name}: one of command, reply and stream"


def fingerprint(name: str, account: str, path: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Digest of what a request means: the same for a retry, another for another request. Defaults are
    filled in, so leaving a field out equals giving its default. The PAN is in it only as its token."""
    meaning = {key: value for key, value in values.items() if key != "request_id"}
    data = orjson.dumps([name, account, dict(path), meaning], option=orjson.OPT_SORT_KEYS)
    return sha256(data).hexdigest()[:FINGERPRINT_CHARACTERS]


class Endpoint:
    """A route, bound to a gateway."""

    def __init__(self, gateway: Gateway, route: Route) -> None:
        self._gateway = gateway
        self._route = route
        self._limit = gateway.reads if route.topic is None else gateway.limit
        self._requests: dict[int, Any] = {}
        self._seconds = gateway.metrics.request_seconds.labels(route.method, route.path)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """aiohttp's handler."""
        started = perf_counter()
        gateway, bounded, admitted = self._gateway, self._route.bounded, False
        if bounded:
            gateway.enter(self._limit)
        try:
            if bounded:
                self._admit()
                admitted = True
            response = await self._answer(request)
        except Problem as problem:
            response = problem_response(problem)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            response = problem_response(_bug(error))
        finally:
            if bounded:
                gateway.leave(self._limit)
        seconds = perf_counter() - started
        if admitted and response.status in WORKED_ON:
            self._limit.answered(seconds)
        self._account_for(response.status, seconds, logged=admitted)
        return response

    def _admit(self) -> None:
        gateway = self._gateway
        if gateway.draining:
            gateway.metrics.refused.labels("draining").inc()
            problem = busy("shutting-down", "This gateway is shutting down: send the request again.")
            problem.headers["Connection"] = "close"
            raise problem
        try:
            self._limit.admit()
        except Problem:
            gateway.metrics.refused.labels("in_flight").inc()
            raise

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        gateway, route = self._gateway, self._route
        client = gateway.access.client(request.headers.get("Authorization"), route.scope)
        if route.bounded:
            gateway.rate_limit.admit(client.name if gateway.access.required else request.remote or "")
        started = asyncio.get_running_loop().time()
        if route.body is not None:
            values = await self._read(request, route.body, started)
        else:
            values = _query(request, route.query)
        call = Call(gateway, route, client, request.match_info, values, request.headers)
        del values
        if route.stream is not None:
            return await _streamed(request, route.stream(call), EVENT_STREAM)
        if route.reply is not None:
            reply = await route.reply(call)
            if not isinstance(reply.body, bytes):
                return await _streamed(request, reply.body, reply.content_type)
            return web.Response(
                body=reply.body,
                status=reply.status,
                headers={**reply.headers, "Content-Type": reply.content_type},
            )
        assert route.command is not None and route.topic is not None
        command = await route.command(call)
        answer = await gateway.ask(route.topic, command, route=route.path, started=started)
        headers = {CONSISTENCY_TOKEN: f"{answer.partition}:{answer.position}"}
        if answer.replayed:
            headers[IDEMPOTENCY_REPLAYED] = "true"
        if answer.outcome.status != 200:
            problem = refusal_problem(answer.outcome)
            problem.headers.update(headers)
            raise problem
        headers["Content-Type"] = JSON
        return web.Response(body=outcome_bytes(answer.outcome), headers=headers)

    async def _read(self, request: web.Request, body: Body, started: float) -> dict[str, Any]:
        settings = self._gateway.settings
        deadline = started + settings.gateway_deadline_s
        if request.content.is_eof():  # as a rule it came with the head
            data = await read_body(request, settings.gateway_body_bytes_max, deadline)
        else:
            self._gateway.leave(self._limit)  # who is slow to send has no place that others wait for
            try:
                data = await read_body(request, settings.gateway_body_bytes_max, deadline)
            finally:
                self._gateway.enter(self._limit)
            self._admit()
        if data and request.content_type != JSON:
            raise Problem(415, "unsupported-media-type", f"Send the body as Content-Type: {JSON}.")
        members = parse_object(data)
        take_idempotency_key(request.headers.getall(IDEMPOTENCY_KEY, ()), members)
        values = body.read(members)
        pan = values.get("pan")
        if pan is not None:
            _no_other_place_has(pan, values)
        return values

    def _account_for(self, status: int, seconds: float, *, logged: bool) -> None:
        """What was not even admitted is counted, not logged: a flood must not be one of lines too."""
        route = self._route
        counter = self._requests.get(status)
        if counter is None:
            counter = self._gateway.metrics.requests.labels(route.method, route.path, str(status))
            self._requests[status] = counter
        counter.inc()
        self._seconds.observe(seconds)
        if logged:
            access_log.info("%s %s %d %.1f ms", route.method, route.path, status, seconds * 1000)


async def _streamed(
    request: web.Request, parts: AsyncGenerator[bytes, None], content_type: str
) -> web.StreamResponse:
    """Sends parts until there are no more, or the client is gone or takes nothing for `STALLED_S`. What goes
    wrong before the first part is a problem like any other; after it, the connection ends."""
    async with aclosing(parts):
        first = await anext(parts)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        # What the kernel keeps for a client that does not read is bounded: beyond it the client is stalled.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-store"})
        try:
            await response.prepare(request)
            await _written(response, transport, first)
            async for part in parts:
                await _written(response, transport, part)
            await response.write_eof()
        except (ConnectionError, TimeoutError, Problem) as end:
            log.info("a stream ended: %s", type(end).__name__)
            transport.abort()
    return response


async def _written(response: web.StreamResponse, transport: asyncio.Transport, part: bytes) -> None:
    """The kernel has it. Raises TimeoutError."""
    async with asyncio.timeout(STALLED_S):
        await response.write(part)
        while transport.get_write_buffer_size():  # noqa: ASYNC110 - aiohttp itself waits only beyond 64 KiB
            await asyncio.sleep(0.05)


CATCH_ALL: Final = "/{tail}"
"""aiohttp's canonical form of the path "/{tail:.*}"."""


class Fallback:
    """What no route takes: 404 for the path, 405 for the method."""

    def __init__(self, gateway: Gateway, app: web.Application) -> None:
        self._gateway = gateway
        self._app = app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        methods = await self._methods(request)
        if methods:
            allowed = ", ".join(sorted(methods))
            problem = Problem(
                405, "method-not-allowed", f"This path takes {allowed}.", headers={"Allow": allowed}
            )
        else:
            problem = Problem(404, "not-found", "There is no such path: see /docs.")
        self._gateway.metrics.requests.labels("other", "none", str(problem.status)).inc()
        access_log.info("%s (no route) %d", "other", problem.status)
        return problem_response(problem)

    async def _methods(self, request: web.Request) -> set[str]:
        methods: set[str] = set()
        for resource in self._app.router.resources():
            if resource.canonical != CATCH_ALL:
                _match, allowed = await resource.resolve(request)
                methods |= allowed
        return methods


async def read_body(request: web.Request, most: int, deadline: float) -> bytes:
    """The whole body. Raises `Problem` 413 (more than `most` bytes) or 408 (not there by `deadline`,
    loop time) or 400 (not in the encoding that its headers name)."""
    too_large = Problem(413, "too-large", f"A request body may have {most} bytes at most.")
    if (request.content_length or 0) > most:
        raise too_large
    content: StreamReader = request.content
    if content.is_eof() and content.total_bytes <= most:
        return content.read_nowait()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(deadline):
            while chunk := await content.readany():
                size += len(chunk)
                if size > most:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            408, "too-slow", "The body did not arrive in time.", headers={"Connection": "close"}
        ) from None
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
        raise bad_input(FieldError(BODY, "is not encoded as its headers say, or is cut off")) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def problem_response(problem: Problem) -> web.Response:
    return web.Response(
        body=problem.body(),
        status=problem.status,
        headers={**problem.headers, "Content-Type": problems.CONTENT_TYPE},
    )


def take_idempotency_key(given: tuple[str, ...] | list[str], members: dict[str, Any]) -> None:
    """The header carries the request_id where the body does not; where both do, they agree."""
    if not given:
        return
    key = given[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':  # a structured-field string, as the IETF draft has it
        key = key[1:-1]
    if len(given) > 1:
        raise bad_input(FieldError(IDEMPOTENCY_KEY, "is there more than once"))
    try:
        REQUEST_ID.check(key)
    except Invalid as error:
        raise bad_input(FieldError(IDEMPOTENCY_KEY, str(error))) from None
    if members.setdefault("request_id", key) != key:
        raise bad_input(FieldError(IDEMPOTENCY_KEY, "is not the body's request_id"))


def _no_other_place_has(pan: str, values: Mapping[str, Any]) -> None:
    """Other fields are stored and shown: the card number must not come along in one of them."""
    for name, value in values.items():
        if name == "pan" or not value:
            continue
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        if any(isinstance(text, str) and pan in text for text in texts):
            raise bad_input(FieldError(name, "must not contain the card number"))


def _query(request: web.Request, query: Body | None) -> dict[str, Any]:
    if query is None and not request.query_string:
        return {}
    members: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in members:
            raise bad_input(FieldError("query", "names a parameter more than once"))
        members[name] = value
    return (query or NO_QUERY).read(members)


NO_QUERY: Final = Body("NoQuery", ())


def _bug(error: Exception) -> Problem:
    """500. The log gets the place and the kind of the error, not its text: that may quote the input."""
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s in a request (a bug: please report it)\n%s", type(error).__name__, place)
    return Problem(
        500,
        "internal-error",
        "The gateway failed. The outcome is unknown: send the request again with the same request_id.",
    )
