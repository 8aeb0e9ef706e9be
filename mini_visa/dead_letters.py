"""Dead letters: what a service could not process, why, and, once the cause is mended, its way back.

A letter is the record's own bytes with the reason and the place it came from in its headers. That a letter
was sent back is a record of the same topic, written in the transaction that sends it: so it is sent once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from mini_visa import topics
from mini_visa.domain.messages import Undecodable
from mini_visa.errors import UserError
from mini_visa.kafka import client_options, committed_records, list_topics
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic

SENT_BACK: Final = "sent-back"
"""Header of the note that a letter went back; its value is the letter's offset."""
TAKES_BACK: Final[dict[str, AnyTopic]] = {
    topic.name: topic
    for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS, topics.CLEARING_SUBMISSIONS)
}
"""Inputs. The others are facts with one writer: what could not be read of them is read again by mending the
program and rebuilding, not by writing it a second time."""


class CannotSendBack(UserError):
    """The letter stays where it is."""


@dataclass(frozen=True)
class Letter:
    """One record that a service could not process."""

    service: str
    partition: int
    offset: int
    at: int
    """When it was given up, ms."""
    source: str
    """TOPIC/PARTITION/OFFSET that it came from."""
    reason: str
    size_bytes: int
    sent_back: bool


async def letters(settings: Settings, services: Iterable[str] = topics.SERVICES) -> list[Letter]:
    """Every dead letter of `services` that the cluster still holds, oldest first. Their contents are not
    shown: what no program could read may be anything."""
    found: list[Letter] = []
    existing = {topic.name for topic in await list_topics(settings) if topic.records}
    for service in services:
        if topics.dead_letters(service) in existing:
            async with aclosing(_records(settings, service)) as records:
                found += _letters(service, [record async for record in records])
    return sorted(found, key=lambda letter: (letter.at, letter.service, letter.partition, letter.offset))


async def send_back(
    settings: Settings, service: str, *, partition: int | None = None, offset: int | None = None
) -> list[Letter]:
    """Send letters of `service` (all that have not gone back, or the one at `partition` and `offset`) to the
    partition they came from, with the time of now. Returns what went back.

    Nothing is sent unless all of them can be read by now: raises `CannotSendBack` with the first that
    cannot."""
    async with aclosing(_records(settings, service)) as found:
        records = {(record.partition, record.offset): record async for record in found}
    chosen = [
        letter
        for letter in _letters(service, list(records.values()))
        if not letter.sent_back
        and (partition is None or letter.partition == partition)
        and (offset is None or letter.offset == offset)
    ]
    if offset is not None and not chosen:
        raise CannotSendBack(f"{service} has no letter at {partition}/{offset} that has not gone back")
    for letter in chosen:
        _check(letter, records[letter.partition, letter.offset].value)
    producer = AIOKafkaProducer(
        **client_options(settings), transactional_id=f"{settings.environment}.dead-letters.{service}"
    )
    await producer.start()
    try:
        for letter in chosen:
            record = records[letter.partition, letter.offset]
            topic, number, _ = letter.source.rsplit("/", 2)
            async with producer.transaction():
                await producer.send_and_wait(topic, record.value, record.key, int(number), _now_ms())
                await producer.send_and_wait(
                    topics.dead_letters(service),
                    None,
                    b"",
                    letter.partition,
                    _now_ms(),
                    headers=[(SENT_BACK, str(letter.offset).encode())],
                )
    finally:
        await producer.stop()
    return chosen


def _check(letter: Letter, value: bytes | None) -> None:
    topic = TAKES_BACK.get(letter.source.partition("/")[0])
    where = f"{letter.service} {letter.partition}/{letter.offset}"
    if topic is None:
        raise CannotSendBack(
            f"{where} came from {letter.source}: that topic has one writer and takes nothing back. Mend the "
            "program that could not read it; for the projection then run `mini-visa readmodel rebuild`"
        )
    try:
        topic.decode(value)
    except Undecodable as error:
        raise CannotSendBack(
            f"{where} still cannot be read by this version of the program: {error}"
        ) from None


def _letters(service: str, records: list[Any]) -> list[Letter]:
    gone: set[tuple[int, int]] = set()
    found: list[tuple[Any, dict[str, bytes]]] = []
    for record in records:
        headers = dict(record.headers)
        if SENT_BACK in headers:
            gone.add((record.partition, int(headers[SENT_BACK])))
        else:
            found.append((record, headers))
    return [
        Letter(
            service,
            record.partition,
            record.offset,
            record.timestamp,
            headers.get("source", b"").decode(errors="replace"),
            headers.get("reason", b"").decode(errors="replace"),
            len(record.value or b""),
            (record.partition, record.offset) in gone,
        )
        for record, headers in found
    ]


async def _records(settings: Settings, service: str) -> AsyncGenerator[Any, None]:
    if service not in topics.SERVICES:
        raise UserError(f"no service {service!r}: one of {', '.join(topics.SERVICES)}")
    async with aclosing(committed_records(settings, [topics.dead_letters(service)], {})) as records:
        async for record in records:
            yield record


def _now_ms() -> int:
    return int(time.time() * 1000)
