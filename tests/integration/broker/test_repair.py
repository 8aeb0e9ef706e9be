"""Transactions that hang: made on a real broker, named by the doctor, and ended as they were decided."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch

from mini_visa.broker import EmbeddedBroker
from mini_visa.broker.properties import Node
from mini_visa.kafka import TopicPlan, admin, apply_topics, client_options
from mini_visa.settings import Settings
from mini_visa.streams.commit import Transactions, _Pack
from mini_visa.transactions import (
    ONGOING,
    PREPARE_COMMIT,
    Decision,
    Hanging,
    Open,
    _coordinator_log,
    _open,
    decide,
    finish,
    hanging,
)

pytestmark = pytest.mark.broker

AT = TopicPartition("facts", 0)


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[str]:
    """A broker that does not ask the coordinator whether a transaction is known: so one can be left hanging
    without a broker that ends at the wrong moment."""
    node = Node(extra={"transaction.partition.verification.enable": "false"})
    broker = EmbeddedBroker(tmp_path_factory.mktemp("lenient"), libs_cache=jars_cache, node=node)
    broker.start()
    try:
        yield str(broker.address)
    finally:
        broker.stop()


@pytest.fixture
async def settings(lenient: str, settings_for: Any) -> Settings:
    made: Settings = settings_for(lenient)
    await apply_topics(made, [TopicPlan("facts", 1, 1, {})])
    return made


@asynccontextmanager
async def producer(address: str, name: str) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=address, transactional_id=name)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def leave_hanging(made: AIOKafkaProducer, value: bytes) -> None:
    """Write into a partition of which the coordinator is not told."""
    await made.begin_transaction()
    made._txn_manager._txn_partitions.add(AT)
    await made.send_and_wait(AT.topic, value, partition=AT.partition)


async def committed(address: str, at: TopicPartition = AT) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address, isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([at])
        await consumer.seek_to_beginning(at)
        end = (await consumer.end_offsets([at]))[at]
        values: list[bytes] = []
        while await consumer.position(at) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                values += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


async def test_what_hangs_is_found_and_ended_as_it_was_decided(settings: Settings, lenient: str) -> None:
    async with producer(lenient, "told") as told, producer(lenient, "untold") as untold:
        async with told.transaction():
            await told.send_and_wait("facts", b"committed", partition=0)
        async with asyncio.timeout(30):
            while await committed(lenient) != [b"committed"]:  # noqa: ASYNC110 - answered before its marker is there
                await asyncio.sleep(0.05)
        await leave_hanging(told, b"its marker is lost")  # the last word on this partition was: commit
        await leave_hanging(untold, b"nobody was told")
        async with producer(lenient, "later") as later, later.transaction():
            await later.send_and_wait("facts", b"after them", partition=0)
        assert await committed(lenient) == [b"committed"], "the rest is hidden"

        assert await hanging(settings) == [], "a moment ago: it may still be ended by its producer"
        found = await hanging(settings, after_s=-60.0)
        assert [hung.decision for hung in found] == [Decision.COMMIT, Decision.ABORT]
        assert str(found[0]).startswith("facts/0 cannot be read beyond offset 1: a transaction was committed")

        assert await finish(settings, found) == found
        assert await hanging(settings, after_s=-60.0) == []
        assert await committed(lenient) == [b"committed", b"its marker is lost", b"after them"]


async def test_the_doctor_names_it_and_mends_it_when_told_to(settings: Settings, lenient: str) -> None:
    def doctor(*options: str) -> dict[str, str]:
        environment = os.environ | {
            "MINI_VISA_HOME": str(settings.home),
            "MINI_VISA_BROKER": f"kafka://{lenient}",
            "MINI_VISA_TRANSACTION_TIMEOUT_S": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "mini_visa.cli", "doctor", "--json", *options],
            capture_output=True, text=True, env=environment, timeout=60,
        )  # fmt: skip
        return next(check for check in json.loads(done.stdout) if check["subject"] == "transactions")

    assert doctor()["verdict"] == "OK"
    async with producer(lenient, "old") as old:
        await old.begin_transaction()
        old._txn_manager._txn_partitions.add(AT)
        await old.send_and_wait("facts", b"long ago", partition=0, timestamp_ms=1_700_000_000_000)
        named = doctor()
        assert named["verdict"] == "FAIL" and "facts/0 cannot be read beyond" in named["finding"]
        assert "mini-visa doctor --repair" in named["remedy"]
        assert doctor("--repair")["verdict"] == "OK"
    assert b"long ago" not in await committed(lenient)


async def test_one_that_is_going_on_is_left_alone(settings: Settings, lenient: str) -> None:
    async with producer(lenient, "busy") as busy, busy.transaction():
        await busy.send_and_wait("facts", b"in time", partition=0)
        assert await hanging(settings, after_s=-60.0) == []
    assert b"in time" in await committed(lenient)


async def test_since_version_2_a_record_that_comes_late_finds_the_door_shut(
    settings: Settings, lenient: str
) -> None:
    """What the kernel's transactions are of. The leader joins the partition to the transaction itself,
    although this broker does not check; a marker of the decision's epoch leaves nothing open behind it."""
    await apply_topics(settings, [TopicPlan("facts2", 1, 1, {})])
    at = TopicPartition("facts2", 0)
    made = Transactions("kernel", "group", at, at, 10.0, client_options(settings))
    await made.fence()
    try:
        for value in (b"one", b"two"):  # the second has no beginning of its own in the coordinator's log
            await made._produce([pack(at, value)])
            if value == b"one":
                await made._end(commit=True)
        last = made._producer
        (found,) = [one for one in await opened(settings) if one.partition == at]
        history = [one async for one in _coordinator_log(settings) if one.producer_id == last.id]
        assert found.epoch == last.epoch
        assert history[-1].status == ONGOING and history[-1].partitions == {("facts2", 0)}
        assert decide(found, history).decision is Decision.OPEN

        decided = [*history, history[-1]._replace(status=PREPARE_COMMIT, epoch=last.epoch + 1)]
        hung = Hanging(
            found, *decide(found, [*decided, decided[-1]._replace(status=4, partitions=frozenset())])
        )
        assert await finish(settings, [hung]) == [hung]
        assert [one for one in await opened(settings) if one.partition == at] == []
        late = pack(at, b"late")
        late.sequence = 1
        with pytest.raises(InvalidProducerEpoch):
            await made._produce([late])
        await made._end(commit=True)  # its own marker has the same epoch: nothing is torn
        await made._produce([pack(at, b"three")])
        await made._end(commit=True)
    finally:
        await made.stop()
    async with asyncio.timeout(30):
        while await committed(lenient, at) != [b"one", b"two", b"three"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def pack(at: TopicPartition, value: bytes) -> _Pack:
    made = _Pack(at)
    made.append(None, value, None, [])
    return made


async def opened(settings: Settings) -> list[Open]:
    async with admin(settings) as client:
        return await _open(client)
