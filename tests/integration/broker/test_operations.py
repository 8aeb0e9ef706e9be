"""What an operator asks and does: lag with its age, dead letters and their way back, open transactions."""

from __future__ import annotations

import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from agents.backtest import BackTest
from mini_visa import backtest, kafka, topics
from mini_visa.dead_letters import CannotSendBack, letters, send_back
from mini_visa.domain.commands import Authorize, ChangeAccount, PutRule
from mini_visa.domain.payment import Card
from mini_visa.domain.risk import DEFAULT_RULE_SET, rule_of
from mini_visa.kafka import Stalled, TopicPlan, apply_topics, committed_records, lag

pytestmark = pytest.mark.broker

COMMAND = topics.ACCOUNT_COMMANDS.encode(ChangeAccount(account="tok_a", request_id="r-1", limit=5))


@pytest.fixture
async def settings(fresh_broker, settings_for):
    made = settings_for(fresh_broker.address, partitions=2)
    await apply_topics(made)
    return made


@pytest.fixture
async def producer(fresh_broker):
    async with AIOKafkaProducer(bootstrap_servers=fresh_broker.address) as made:
        yield made


async def bury(producer, service: str, value: bytes, source: str, reason: str = "unreadable") -> int:
    headers = [("reason", reason.encode()), ("source", source.encode())]
    sent = await producer.send_and_wait(
        topics.dead_letters(service), value, b"tok_a", int(source.split("/")[1]), headers=headers
    )
    return int(sent.offset)


async def test_letters_are_listed_and_go_back_once(settings, producer):
    first = await bury(producer, "authorization", COMMAND, "account.commands/1/7")
    await bury(producer, "authorization", COMMAND, "account.commands/0/9", "no such field")
    found = await letters(settings)
    assert [(one.service, one.source, one.reason, one.sent_back) for one in found] == [
        ("authorization", "account.commands/1/7", "unreadable", False),
        ("authorization", "account.commands/0/9", "no such field", False),
    ]
    assert "limit" not in repr(found), "contents are not shown"

    sent = await send_back(settings, "authorization", partition=1, offset=first)
    assert [one.source for one in sent] == ["account.commands/1/7"]
    assert [one.source for one in await send_back(settings, "authorization")] == ["account.commands/0/9"]
    assert await send_back(settings, "authorization") == []
    assert all(one.sent_back for one in await letters(settings))
    back = [record async for record in committed_records(settings, ["account.commands"], {})]
    assert sorted((record.partition, record.value) for record in back) == [(0, COMMAND), (1, COMMAND)]
    assert all(abs(record.timestamp / 1000 - time.time()) < 60 for record in back)


async def test_what_still_cannot_be_read_stays_and_nothing_else_goes_either(settings, producer):
    await bury(producer, "authorization", COMMAND, "account.commands/1/7")
    await bury(producer, "authorization", b"?", "account.commands/0/9")
    with pytest.raises(CannotSendBack, match="still cannot be read"):
        await send_back(settings, "authorization")
    assert [record async for record in committed_records(settings, ["account.commands"], {})] == []


async def test_facts_are_never_written_a_second_time(settings, producer):
    await bury(producer, "projection", b"{}", "payment.events/0/3")
    with pytest.raises(CannotSendBack, match="readmodel rebuild"):
        await send_back(settings, "projection")


async def test_reading_past_a_transaction_that_hangs_ends_with_what_is_wrong(
    settings, fresh_broker, environment, monkeypatch
):
    monkeypatch.setattr(kafka, "STALLED_S", 0.4)
    await apply_topics(settings, [TopicPlan("t", 1, 1, {})])
    async with AIOKafkaProducer(
        bootstrap_servers=fresh_broker.address, transactional_id=f"{environment}.hangs"
    ) as hanging:
        await hanging.begin_transaction()
        await hanging.send_and_wait("t", b"x", partition=0)
        with pytest.raises(Stalled, match=r"nothing of t/0 for 0 s.*mini-visa doctor"):
            async for _ in committed_records(settings, ["t"], {}):
                pass
        await hanging.commit_transaction()
    assert [record.value async for record in committed_records(settings, ["t"], {})] == [b"x"]


async def test_who_reads_may_take_longer_over_a_batch_than_kafka_may_be_silent(
    settings, producer, monkeypatch
):
    monkeypatch.setattr(kafka, "STALLED_S", 0.2)
    await apply_topics(settings, [TopicPlan("t", 1, 1, {})])
    for number in range(1_000):
        await producer.send("t", b"%d" % number, partition=0)
    await producer.flush()
    read = 0
    async for _ in committed_records(settings, ["t"], {}):
        read += 1
        if read in (1, 500):
            time.sleep(0.3)  # noqa: ASYNC251  (as a handler that computes does)
    assert read == 1_000


def a_request(number: int, account: str) -> bytes:
    card = Card(token=account, bin="411111", last4="1111")
    return topics.CARD_REQUESTS.encode(
        Authorize(account=account, request_id=f"r-{number}", amount=100, currency="USD", card=card)
    )


async def test_a_back_test_reads_each_partition_within_its_bounds(settings, producer, monkeypatch):
    """Three requests on one partition, five on the other; then the same with bounds below that."""
    now = int(time.time() * 1000)
    for number in range(8):
        account = "tok_a" if number < 3 else "tok_b"
        await producer.send_and_wait(
            topics.CARD_REQUESTS.name, a_request(number, account), account.encode(), number >= 3, now - 5_000
        )
    body = {"metric": "count", "window_s": 60, "threshold": 2, "outcome": "decline"}
    rule = rule_of(PutRule(rule="strict", version=1, body=body))

    async def run(**changes) -> tuple[int, int, bool]:
        answer = await backtest.run(settings, backtest.Question(**({"rule": rule, "to_ms": now} | changes)))
        return answer["requests"], answer["declined_after"], answer["complete"]

    assert await run() == (8, 1 + 3, True)
    assert await run(to_ms=now - 6_000) == (0, 0, True)
    assert await run(from_ms=now - 4_000) == (0, 0, True), "they only fill the window"
    monkeypatch.setattr(backtest, "RECORDS_MAX", 6)
    assert await run() == (6, 1 + 1, False), "three of each partition"
    monkeypatch.setattr(backtest, "RECORDS_MAX", 8)
    assert await run() == (8, 1 + 3, True), "what one partition leaves, the next one may have"
    monkeypatch.setattr(backtest, "BATCH_RECORDS", 1)
    empty = BackTest(DEFAULT_RULE_SET, rule, partitions=2)
    monkeypatch.setattr(backtest, "HELD_BYTES_MAX", empty.held_bytes + 1)
    assert await run() == (2, 0, False), "one of each partition fills it"


async def test_lag_tells_how_long_the_oldest_record_has_waited(settings, producer, environment):
    await apply_topics(settings, [TopicPlan("t", 2, 1, {})])
    group = f"{environment}.service.work"
    old = int(time.time() * 1000) - 90_000
    for number in range(3):
        await producer.send_and_wait("t", b"x", None, 0, old + number * 30_000)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.broker.removeprefix("kafka://"), group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([TopicPartition("t", 0), TopicPartition("t", 1)])
    await consumer.commit({TopicPartition("t", 0): 1, TopicPartition("t", 1): 0})
    await consumer.stop()
    behind, level = await lag(settings, ages=True)
    assert (behind.records, behind.oldest_ms) == (2, old + 30_000)
    assert (level.records, level.oldest_ms) == (0, None)
    assert all(one.oldest_ms is None for one in await lag(settings))
