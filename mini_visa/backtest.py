"""A rule that is not in force yet, over a stretch of card.requests: what would have been decided otherwise.

The log is read without a group, so nobody is disturbed, a partition after the other, in small batches. What
is looked at is bounded, and what that may take of memory: it runs beside a gateway, in the same container.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.backtest import BackTest, Comparison
from mini_visa import topics
from mini_visa.domain.risk import DEFAULT_RULES, Rule, RuleConflict, RuleSet
from mini_visa.errors import UserError
from mini_visa.kafka import client_options, committed_records, end_offsets
from mini_visa.settings import Settings
from mini_visa.streams import Record

DAY_MS: Final = 86_400_000
RECORDS_MAX: Final = 500_000
"""Of all partitions together, each the same share and what others leave. A stretch that holds more is cut off
at its end, and the answer says so."""
HELD_BYTES_MAX: Final = 96 << 20
"""Of the rows of the services that are run, in memory. A stretch that makes more of them is cut off too."""
MEMORY_BYTES_MAX: Final = 288 << 20
"""Of the process: what is bounded above, the program itself, and room. Beside a gateway's own 150 MiB that
fits into the 512 MiB of its container."""
BATCH_RECORDS: Final = 1_000
BATCH_BYTES: Final = 1 << 20
DIFFERENCES_SHOWN: Final = 200


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`current`: the rules in force; without them, the defaults."""

    rule: Rule
    current: tuple[Rule, ...] = DEFAULT_RULES
    from_ms: int | None = None
    """Default: a day ago."""
    to_ms: int | None = None


class CannotBackTest(UserError):
    """The question makes no sense."""


def question_of(data: bytes) -> Question:
    """Raises `CannotBackTest`."""
    try:
        return msgspec.json.decode(data, type=Question)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotBackTest(f"that is not a rule to test: {error}") from None


async def run(settings: Settings, question: Question) -> dict[str, Any]:
    """The answer as POST /rules/{rule}/backtest gives it. Raises `CannotBackTest`."""
    now = time.time_ns() // 1_000_000
    since = now - DAY_MS if question.from_ms is None else question.from_ms
    until = now if question.to_ms is None else question.to_ms
    if until <= since:  # a question with one end of its own, and the other's default beyond it
        return {
            "requests": 0, "declined_before": 0, "declined_after": 0, "changed": 0, "complete": True,
            "differences": [],
        }  # fmt: skip
    current = RuleSet(0, question.current)
    before_ms = max(rule.window_s for rule in (*question.current, question.rule)) * 1_000
    ends = await end_offsets(settings, [topics.CARD_REQUESTS.name])
    starts = await _starts(settings, ends, since - before_ms)
    comparison, complete, left = Comparison(), True, RECORDS_MAX
    shortest_first = sorted(ends.items(), key=lambda one: one[1] - starts.get(one[0], one[1]))
    for done, (place, end) in enumerate(shortest_first):
        try:
            test = BackTest(current, question.rule, partitions=len(ends), since=since)
        except RuleConflict as error:
            raise CannotBackTest(str(error)) from None
        if place in starts:
            share = left // (len(ends) - done)
            looked_at, all_of_it = await _feed(settings, test, place, starts[place], end, until, share)
            left -= looked_at
            complete = complete and all_of_it
        comparison.add(test.comparison)
    return {
        "requests": comparison.requests,
        "declined_before": comparison.declined_before,
        "declined_after": comparison.declined_after,
        "changed": comparison.changed,
        "complete": complete,
        "differences": [
            {
                "account_id": one.account,
                "request_id": one.request_id,
                "amount": one.amount,
                "before": one.before.response_code,
                "after": one.after.response_code,
            }
            for one in comparison.differences[:DIFFERENCES_SHOWN]
        ],
    }


async def _starts(
    settings: Settings, ends: Mapping[TopicPartition, int], since: int
) -> dict[TopicPartition, int]:
    """Where the records of that time on begin; a partition that has none is left out."""
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    try:
        await consumer.start()
        consumer.assign(list(ends))
        found = await consumer.offsets_for_times(dict.fromkeys(ends, max(0, since)))
        return {place: at.offset for place, at in found.items() if at is not None}
    finally:
        await consumer.stop()


async def _feed(
    settings: Settings, test: BackTest, place: TopicPartition, start: int, end: int, until: int, most: int
) -> tuple[int, bool]:
    """Feeds the partition's committed records that are before `until`, `most` of them at most. How many these
    were, and whether these are all."""
    batch: list[Record] = []
    count = size = 0
    complete = True
    async with aclosing(committed_records(settings, [place.topic], {place: start}, {place: end})) as records:
        async for record in records:
            if record.timestamp >= until:
                break
            if count >= most or test.held_bytes >= HELD_BYTES_MAX:
                complete = False
                break
            batch.append(Record(record.offset, record.timestamp, record.key, record.value))
            count += 1
            size += len(record.value or b"")
            if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
                test.feed(batch)
                batch, size = [], 0
    if batch:
        test.feed(batch)
    return count, complete


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """For a process of its own: it may not take more than `MEMORY_BYTES_MAX`. Raises `CannotBackTest` where
    it would have to. (RLIMIT_DATA and not RLIMIT_AS: address space is reserved that is never used. macOS
    bounds neither, so there it is left.)"""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MEMORY_BYTES_MAX if hard == resource.RLIM_INFINITY else min(hard, MEMORY_BYTES_MAX)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    except MemoryError:
        raise CannotBackTest(
            f"the stretch needs more than {MEMORY_BYTES_MAX >> 20} MiB of memory: choose a shorter one"
        ) from None
