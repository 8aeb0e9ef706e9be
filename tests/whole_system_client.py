"""A client of the whole system in tests: cards, requests with ids of their own, records put into topics."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiohttp import ClientSession
from aiokafka import AIOKafkaProducer

from mini_visa.demo.cards import card_numbers
from mini_visa.kafka import client_options
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic


class Reply(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body["operation"]["response_code"])


_NUMBERS = card_numbers(random.Random(2026))


class Client:
    """A merchant and an issuer in one, with request ids of its own."""

    def __init__(self, session: ClientSession, pans: list[str]) -> None:
        self.session = session
        self.pans = pans
        self.run = f"t{time.time_ns():x}"
        self.requests = 0

    def request_id(self) -> str:
        self.requests += 1
        return f"{self.run}-{self.requests}"

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Reply:
        async with self.session.request(method, path, json=body) as response:
            return Reply(response.status, await response.json(content_type=None), dict(response.headers))

    async def post(self, path: str, **body: Any) -> Reply:
        return await self.call("POST", path, {"request_id": self.request_id(), **body})

    def pan(self) -> str:
        pan = next(_NUMBERS)
        self.pans.append(pan)
        return pan

    async def open(self, limit: str = "1000.00", **more: Any) -> Card:
        pan = self.pan()
        opened = await self.post("/accounts", pan=pan, limit=limit, **more)
        assert opened.status == 200, opened
        return Card(self, pan, opened.body["account_id"], opened.body["currency"])

    async def get(self, path: str) -> Reply:
        return await self.call("GET", path)

    async def postings(self, account_id: str, payments: Iterable[str]) -> Counter[str]:
        """Ledger account -> minor units, debit > 0: all that was posted for an account and its payments."""
        sums: Counter[str] = Counter()
        for payment_id in payments:
            for entry in (await self.get(f"/ledger/entries?payment={payment_id}")).body["items"]:
                for posting in entry["postings"]:
                    sums[posting["account"]] += minor(posting["amount"])
        paid = await self.get(f"/ledger/accounts/receivable:cardholder:{account_id}/entries?limit=1000")
        for line in paid.body["items"]:
            if line["kind"] == "account_paid":  # about no payment
                sums[f"receivable:cardholder:{account_id}"] += minor(line["amount"])
                sums["settlement:bank"] -= minor(line["amount"])
        return sums


class Card:
    """A cardholder's card."""

    def __init__(self, client: Client, pan: str, account_id: str, currency: str) -> None:
        self.client = client
        self.pan = pan
        self.account_id = account_id
        self.currency = currency

    async def authorize(self, amount: str, **more: Any) -> Reply:
        return await self.client.post("/payments/authorize", pan=self.pan, amount=amount, **more)

    async def set(self, **changes: Any) -> Reply:
        body = {"request_id": self.client.request_id(), **changes}
        return await self.client.call("PATCH", f"/accounts/{self.account_id}", body)

    async def sums(self) -> tuple[str, str, str]:
        """(available, held, posted)"""
        body = (await self.client.get(f"/accounts/{self.account_id}")).body
        return body["available"], body["held"], body["posted"]


def minor(amount: str) -> int:
    return int(amount.replace(".", ""))


async def put(
    settings: Settings,
    topic: AnyTopic,
    value: bytes | None,
    *,
    key: bytes | None,
    at: int | None = None,
    partition: int | None = None,
) -> tuple[int, int]:
    """Write a record straight into a topic, as if at the time `at` (ms); its partition and offset."""
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    try:
        sent = await producer.send_and_wait(topic.name, value, key=key, timestamp_ms=at, partition=partition)
        return sent.partition, sent.offset
    finally:
        await producer.stop()
