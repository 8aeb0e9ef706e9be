"""The money's whole way on a real broker: authorization, ledger, clearing, reversal, connector and clearing
house as processes, with rejections and lost answers, and workers killed in the middle of it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from mini_visa import topics
from mini_visa.broker import EmbeddedBroker
from mini_visa.domain.commands import Authorize, OpenAccount
from mini_visa.domain.events import PaymentEvent
from mini_visa.domain.journal import TrialBalance, verify
from mini_visa.domain.ledger import BANK
from mini_visa.domain.payment import CaptureState, Card, Merchant
from mini_visa.domain.settlement import SettlementPosition
from mini_visa.kafka import apply_topics, client_options
from mini_visa.settings import Settings
from mini_visa.supervisor.ports import free_port

ROOT = Path(__file__).parents[3]
PARTITIONS = 2
ACCOUNTS = 20
PAYMENTS = 240
WAIT_S = 180.0

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(900)]


class Processes:
    """The services of one environment, each restarted by the test when it has killed it."""

    def __init__(self, settings: Settings, **environment: str) -> None:
        self.settings = settings
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MINI_VISA_")},
            "MINI_VISA_HOME": str(settings.home),
            "MINI_VISA_ENVIRONMENT": settings.environment,
            "MINI_VISA_BROKER": settings.broker,
            "MINI_VISA_PARTITIONS": str(PARTITIONS),
            "MINI_VISA_REPLIES_PARTITIONS": "1",
            **environment,
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = settings.home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *command: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )

    def worker(self, name: str, *services: str) -> None:
        self.start(name, "mini_visa.cli", "worker", *services)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running.pop(name).wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.running.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"{name} did not stop:\n{self.log_of(name)}") from None

    def log_of(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def all_are_alive(self) -> None:
        for name, process in self.running.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log_of(name)}"


@contextmanager
def stopped_at_the_end(processes: Processes) -> Iterator[Processes]:
    try:
        yield processes
    finally:
        processes.stop()


@pytest.fixture
async def settings(
    fresh_broker: EmbeddedBroker, settings_for: Callable[..., Settings]
) -> AsyncIterator[Settings]:
    settings = settings_for(fresh_broker.address, partitions=PARTITIONS, replies_partitions=1)
    await apply_topics(settings)
    yield settings


async def read(settings: Settings, topic: Any) -> list[tuple[int, Any]]:
    """All committed messages of `topic` with their partitions, each partition in order."""
    consumer = AIOKafkaConsumer(**client_options(settings), isolation_level="read_committed")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, n) for n in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        found: list[tuple[int, Any]] = []
        while any([await consumer.position(one) < ends[one] for one in partitions]):
            for part, records in (await consumer.getmany(timeout_ms=200)).items():
                found += [
                    (part.partition, topic.decode(record.value))
                    for record in records
                    if record.key != b"garbage"
                ]
        return found
    finally:
        await consumer.stop()


async def produce(settings: Settings, topic: Any, messages: Sequence[Any]) -> None:
    producer = AIOKafkaProducer(**client_options(settings), acks="all")
    await producer.start()
    try:
        await asyncio.gather(
            *[
                await producer.send(topic.name, topic.encode(one), key=one.account.encode())
                for one in messages
            ]
        )
    finally:
        await producer.stop()


def a_sale(n: int) -> Authorize:
    account = f"tok_{n % ACCOUNTS}"
    return Authorize(
        account=account,
        request_id=f"sale-{n}",
        amount=100 + n,
        currency="USD",
        card=Card(token=account, bin="411111", last4="1111"),
        merchant=Merchant(id=f"m{n % 3}", mcc="5411"),
        capture=True,
    )


def an_account(n: int) -> OpenAccount:
    return OpenAccount(
        account=f"tok_{n}", request_id="open", bin="411111", last4="1111", currency="USD", limit=10**9
    )


async def at_work(settings: Settings, processes: Processes, entries: int) -> None:
    """Wait until the ledger has written so many entries: everything runs, and is in the middle of it."""
    deadline = time.monotonic() + WAIT_S
    while len(await read(settings, topics.LEDGER_JOURNAL)) < entries:
        processes.all_are_alive()
        assert time.monotonic() < deadline, f"no {entries} entries"
        await asyncio.sleep(0.1)


async def settled(settings: Settings, processes: Processes, payments: int) -> dict[str, PaymentEvent]:
    """Wait until every payment has cleared or was compensated; the last event of each."""
    deadline = time.monotonic() + WAIT_S
    while True:
        processes.all_are_alive()
        last = {
            event.payment.payment_id: event
            for _, event in await read(settings, topics.PAYMENT_EVENTS)
            if isinstance(event, PaymentEvent)
        }
        states = Counter(one.state for event in last.values() for one in event.payment.captures)
        if len(last) == payments and not states[CaptureState.SUBMITTED]:
            return last
        assert time.monotonic() < deadline, f"{len(last)} payments, {states}"
        await asyncio.sleep(0.5)


async def test_every_payment_clears_or_is_compensated_whatever_is_killed(settings: Settings) -> None:
    port = free_port()
    processes = Processes(
        settings,
        MINI_VISA_CLEARING_HOUSE_PORT=str(port),
        MINI_VISA_CLEARING_HOUSE_URL=f"http://127.0.0.1:{port}",
        MINI_VISA_CLEARING_REJECTIONS="0.1",
        MINI_VISA_CLEARING_LOST_ANSWERS="0.2",
        MINI_VISA_CLEARING_CYCLE_S="3",
        MINI_VISA_CLEARING_PRESENT_AGAIN_S="3",
        MINI_VISA_CLEARING_DEADLINE_S="60",
        MINI_VISA_TICK_INTERVAL_S="0.5",
        MINI_VISA_SESSION_TIMEOUT_S="6",
    )
    workers = {
        "authorization": ("authorization",),
        "money": ("ledger", "clearing", "reversal"),
        "connector": ("connector",),
    }
    await produce(settings, topics.ACCOUNT_COMMANDS, [an_account(n) for n in range(ACCOUNTS)])
    with stopped_at_the_end(processes):
        processes.start("clearing-house", "mini_visa.cli", "clearing-house")
        for name, services in workers.items():
            processes.worker(name, *services)
        for part in range(4):
            sales = [a_sale(n) for n in range(part * PAYMENTS // 4, (part + 1) * PAYMENTS // 4)]
            await produce(settings, topics.ACCOUNT_COMMANDS, sales)
            await at_work(settings, processes, entries=part * PAYMENTS // 2 + 20)
            victim = ("money", "connector", "clearing-house", None)[part]
            if victim is not None:
                processes.kill(victim)
                if part == 0:
                    for service in workers["money"]:
                        shutil.rmtree(settings.home / "state" / settings.environment / service)
                if victim in workers:
                    processes.worker(victim, *workers[victim])
                else:
                    processes.start(victim, "mini_visa.cli", "clearing-house")
        await put_garbage(settings)
        last = await settled(settings, processes, PAYMENTS)
        totals = await _house_totals(port)
        entries, settlement = await _ledger_at_rest(settings, processes, last)

    states = Counter(event.payment.captures[0].state for event in last.values())
    assert states[CaptureState.CLEARED] + states[CaptureState.REJECTED] == PAYMENTS
    assert states[CaptureState.REJECTED] > 0
    assert totals == {
        "accepted": states[CaptureState.CLEARED], "rejected": states[CaptureState.REJECTED],
    }  # fmt: skip

    trial = TrialBalance()
    for _, entry in [*entries, *settlement]:
        trial.add(entry)
    assert trial.difference("USD") == 0
    by_payment: dict[str, Counter[str]] = {}
    for _, entry in entries:
        sums = by_payment.setdefault(entry.payment_id, Counter())
        for account, _, amount in entry.postings:
            sums[account] += amount
    assert by_payment.keys() == last.keys()
    for payment_id, event in last.items():
        if event.payment.captures[0].state is CaptureState.REJECTED:
            assert not any(by_payment[payment_id].values()), "a compensated payment left something behind"

    positions = [
        one
        for _, one in await read(settings, topics.SETTLEMENT_POSITIONS)
        if isinstance(one, SettlementPosition)
    ]
    assert sum(one.net for one in positions) == -trial.balance(BANK, "USD")
    for merchant in ("m0", "m1", "m2"):
        assert trial.balance(f"payable:merchant:{merchant}", "USD") == 0
    assert trial.balance("clearing:suspense", "USD") == trial.balance("holds:contra", "USD") == 0
    cleared = [
        event.payment for event in last.values() if event.payment.captures[0].state is CaptureState.CLEARED
    ]
    assert sum(one.sales for one in positions) == sum(payment.captured for payment in cleared)
    assert sum(one.items for one in positions) == len(cleared)
    expected = {"authorization": 0, "ledger": 3, "clearing": 2, "reversal": 1, "connector": 1}
    assert {service: await _dead_letters(settings, service) for service in expected} == expected


async def put_garbage(settings: Settings) -> None:
    """A record that nobody can read, in each source topic after account.commands."""
    producer = AIOKafkaProducer(**client_options(settings), acks="all")
    await producer.start()
    try:
        for topic in (
            topics.PAYMENT_EVENTS, topics.LEDGER_POSTINGS, topics.SETTLEMENT_POSITIONS, topics.CLEARING_ITEMS,
            topics.CLEARING_SUBMISSIONS,
        ):  # fmt: skip
            await producer.send_and_wait(topic.name, b"\xff not a message", key=b"garbage")
    finally:
        await producer.stop()


async def _house_totals(port: int) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/totals") as answer:
        return {one["status"]: one["presentments"] for one in await answer.json()}


async def _ledger_at_rest(settings: Settings, processes: Processes, last: dict[str, Any]) -> tuple[Any, Any]:
    """Both journals, once every merchant is paid off; their chains are whole."""
    deadline = time.monotonic() + WAIT_S
    while True:
        processes.all_are_alive()
        entries = await read(settings, topics.LEDGER_JOURNAL)
        settlement = await read(settings, topics.LEDGER_SETTLEMENT_JOURNAL)
        owed: Counter[str] = Counter()
        for _, entry in [*entries, *settlement]:
            for account, _, amount in entry.postings:
                if account.startswith(("payable:", "clearing:")):
                    owed[account] += amount
        if settlement and not any(owed.values()):
            for journal in (entries, settlement):
                for partition in range(PARTITIONS):
                    verify(entry for found, entry in journal if found == partition)
            return entries, settlement
        assert time.monotonic() < deadline, owed
        await asyncio.sleep(0.5)


async def _dead_letters(settings: Settings, service: str) -> int:
    consumer = AIOKafkaConsumer(**client_options(settings))
    await consumer.start()
    try:
        parts = [TopicPartition(topics.dead_letters(service), n) for n in range(PARTITIONS)]
        consumer.assign(parts)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(parts)
        count = 0
        while any([await consumer.position(one) < ends[one] for one in parts]):
            count += sum(len(records) for records in (await consumer.getmany(timeout_ms=200)).values())
        return count
    finally:
        await consumer.stop()
