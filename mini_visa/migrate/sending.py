"""Commands into the log, many at once, each asked until it has its one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from secrets import token_hex
from typing import Any, Final, TypeVar

import msgspec
import orjson
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Histogram

from mini_visa.domain.answers import Answer
from mini_visa.domain.commands import Command
from mini_visa.errors import UserError
from mini_visa.gateway.exchange import Exchange, NoAnswer, NotSent
from mini_visa.kafka import client_options
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic

T = TypeVar("T")

TOGETHER: Final = 128
"""Commands that are under way at once."""
ANSWER_S: Final = 10.0
TRIES: Final = 6
"""A worker that restarts is waited for: a minute in all."""


class NoAnswerAtAll(UserError):
    """The services do not answer. What was sent stands; running the same again goes on from there."""


class Sender:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def ask(self, topic: AnyTopic, command: Command) -> Answer:
        """The answer to `command`, whose request id makes it safe to ask again."""
        for _ in range(TRIES):
            asked: Any = replace(
                command, attempt=token_hex(16), reply_partition=self._exchange.reply_partition
            )
            try:
                deadline = asyncio.get_running_loop().time() + ANSWER_S
                return await self._exchange.ask(topic, asked, deadline=deadline)
            except (NotSent, NoAnswer):
                await asyncio.sleep(0.2)
        raise NoAnswerAtAll(
            f"no answer for {TRIES * ANSWER_S:.0f} s: do risk and authorization run (`mini-visa doctor`)? "
            "What was sent stands; the same command again goes on from there"
        )


@asynccontextmanager
async def sender(settings: Settings) -> AsyncIterator[Sender]:
    """Connected. Raises BrokerError, or `TopicsMissing`."""
    seconds = Histogram("produce_seconds", "Of a command", ["topic"], registry=CollectorRegistry())
    exchange = Exchange(
        client_options(settings), gateway_id=settings.gateway_id or 0, produce_seconds=seconds
    )
    await exchange.start()
    try:
        yield Sender(exchange)
    finally:
        await exchange.stop()


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on every item, `TOGETHER` at a time, begun in order. The first error ends it."""
    source = iter(items)
    ended = False

    async def run() -> None:
        nonlocal ended
        while not ended:
            try:
                item = next(source)
            except StopIteration:
                ended = True
                return
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(run())


def fingerprint(command: msgspec.Struct) -> str:
    """Of what it means: another row under the same id is refused, not taken for a repetition."""
    return sha256(orjson.dumps(msgspec.to_builtins(command), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
