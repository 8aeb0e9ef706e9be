"""What the connector does with a batch of records, against a clearing house on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from aiokafka.partitioner import DefaultPartitioner
from test_clearing_house import PAYMENT, a_cancel, a_client, a_presentment

from mini_visa import topics
from mini_visa.clearing_house.app import create
from mini_visa.clearing_house.book import Book, Conduct
from mini_visa.clearing_house.connector import Connector, _partitioner
from mini_visa.settings import Settings


class Sent:
    """Stands where the producer is, and keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes, bytes, dict[str, Any]]] = []

    async def send(self, topic: str, value: bytes, key: bytes, **more: Any) -> asyncio.Future[None]:
        self.records.append((topic, value, key, more))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def send_and_wait(self, topic: str, value: bytes, key: bytes, **more: Any) -> None:
        await (await self.send(topic, value, key, **more))

    @property
    def outcomes(self) -> dict[str, bool]:
        found = {}
        for topic, value, key, _ in self.records:
            if topic == topics.ACCOUNT_COMMANDS.name:
                command = topics.ACCOUNT_COMMANDS.decode(value)
                assert key == command.account.encode()
                found[command.request_id] = command.accepted
        return found


class ARecord:
    """Of clearing.submissions, as aiokafka gives it."""

    def __init__(self, offset: int, value: bytes | None) -> None:
        self.topic, self.partition = topics.CLEARING_SUBMISSIONS.name, 1
        self.offset, self.value, self.timestamp, self.key = offset, value, 1_000, b"k"


def records_of(*submissions: Any) -> list[ARecord]:
    return [ARecord(n, topics.CLEARING_SUBMISSIONS.encode(one)) for n, one in enumerate(submissions)]


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    book = Book()
    async with TestServer(create(book)) as running:
        running.book = book
        yield running


async def work(server: TestServer, records: list[Any], **settings: Any) -> tuple[Connector, Sent]:
    connector, sent, house = Connector(Settings(**settings)), Sent(), a_client(server, tries_max=3)
    try:
        await connector._work(records, house, sent)
    finally:
        await house.close()
    return connector, sent


async def test_every_outcome_is_told_to_its_account(server):
    server.book.conduct = Conduct(rejections=0.5)
    presentments = [a_presentment(n) for n in range(1, 41)]
    connector, sent = await work(server, records_of(*presentments), connector_batch_max=7)
    decided = {f"clear-{one.key}": server.book.find(one.key).status == "accepted" for one in presentments}
    assert sent.outcomes == decided and len(set(decided.values())) == 2
    assert connector.outcomes["accepted"] + connector.outcomes["rejected"] == 40


def test_an_account_has_the_partition_that_kafkas_clients_give_it():
    kafkas, partitions = DefaultPartitioner(), list(range(7))
    for n in range(50):
        key = f"tok_{n:030d}".encode()
        assert _partitioner(key, partitions, [0]) == kafkas(key, partitions, [0])


async def test_a_presentment_that_came_several_times_is_asked_once(server):
    await work(server, records_of(a_presentment(), a_presentment(), a_presentment()))
    assert server.book.times(a_presentment().key) == 1


async def test_what_is_called_back_is_not_presented_again_in_the_same_breath(server):
    connector, sent = await work(server, records_of(a_presentment(), a_cancel(), a_presentment()))
    assert server.book.times(a_presentment().key) == 0
    assert sent.outcomes == {f"clear-{PAYMENT}-1": False}
    assert connector.outcomes["cancelled"] == 1


async def test_one_that_is_not_understood_does_not_hold_up_the_others(server):
    presentments = [a_presentment(n) for n in range(1, 12)]
    presentments[4] = a_presentment(5, amount=-1)
    connector, sent = await work(server, records_of(*presentments))
    assert len(sent.outcomes) == 10 and connector.outcomes["refused"] == 1


async def test_a_conflict_is_no_outcome(server):
    await work(server, records_of(a_presentment(amount=1)))
    connector, sent = await work(server, records_of(a_presentment(amount=2)))
    assert sent.outcomes == {} and connector.outcomes["conflict"] == 1


async def test_an_unknown_outcome_is_told_to_nobody(server):
    server.book.conduct = Conduct(lost_answers=1.0)
    connector, sent = await work(server, records_of(a_presentment()))
    assert sent.records == [] and connector.outcomes["unknown"] == 1


async def test_garbage_is_a_dead_letter_and_the_next_one_is_presented(server):
    records = [ARecord(7, b"\xffgarbage"), ARecord(8, None), *records_of(a_presentment())]
    _, sent = await work(server, records)
    letters = [record for record in sent.records if record[0] == "connector.dead-letters"]
    assert [value for _, value, _, _ in letters] == [b"\xffgarbage", None]
    assert dict(letters[0][3]["headers"])["source"] == b"clearing.submissions/1/7"
    assert letters[0][3]["partition"] == 1
    assert list(sent.outcomes.values()) == [True]
