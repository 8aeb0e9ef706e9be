"""A rule that is not in force yet, over a stretch of card.requests: what would have been decided otherwise.

The log is read without a group, so nobody is disturbed, and what is read is bounded.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.backtest import Comparison, back_test
from mini_visa import topics
from mini_visa.domain.risk import DEFAULT_RULES, Rule, RuleConflict, RuleSet
from mini_visa.errors import UserError
from mini_visa.kafka import client_options, end_offsets
from mini_visa.settings import Settings
from mini_visa.streams import Record

DAY_MS: Final = 86_400_000
RECORDS_MAX: Final = 500_000
"""Of all partitions together; a stretch that holds more is cut off at its end, and the answer says so."""
POLL_MS: Final = 200
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
    found, complete = await _records(settings, since - before_ms, until)
    comparison = Comparison()
    try:
        for records in found.values():
            comparison.add(back_test(records, current, question.rule, since=since))
    except RuleConflict as error:
        raise CannotBackTest(str(error)) from None
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


async def _records(settings: Settings, since: int, until: int) -> tuple[dict[int, list[Record]], bool]:
    """Committed records of each partition between the two times, and whether these are all."""
    name = topics.CARD_REQUESTS.name
    ends = await end_offsets(settings, [name])
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    found: dict[int, list[Record]] = {place.partition: [] for place in ends}
    await consumer.start()
    try:
        consumer.assign(list(ends))
        starts = await consumer.offsets_for_times(dict.fromkeys(ends, max(0, since)))
        for place, end in ends.items():
            consumer.seek(place, end if starts[place] is None else starts[place].offset)
        left, open_ = RECORDS_MAX, dict(ends)
        while open_ and left > 0:
            for place in [place for place in open_ if await consumer.position(place) >= open_[place]]:
                del open_[place]
            if not open_:
                break
            fetched: dict[TopicPartition, list[Any]] = await consumer.getmany(*open_, timeout_ms=POLL_MS)
            for place, records in fetched.items():
                for record in records:
                    if record.timestamp >= until or left <= 0:
                        open_.pop(place, None)
                        break
                    found[place.partition].append(
                        Record(record.offset, record.timestamp, record.key, record.value)
                    )
                    left -= 1
        return found, left > 0
    finally:
        await consumer.stop()
