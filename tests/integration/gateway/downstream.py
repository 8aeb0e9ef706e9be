"""A double of risk and authorization on the real Kafka: answers what the gateway asks, by a rule each
test gives, in transactions as the services do. For what the real services cannot be told to do: be late,
be silent, refuse in every way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from mini_visa import topics
from mini_visa.domain.answers import Answer, Outcome
from mini_visa.domain.commands import Authorize, Command
from mini_visa.domain.payment import Payment, PaymentStatus
from mini_visa.kafka import client_options
from mini_visa.settings import Settings

NOON = 1_800_000_000_000

Rule = Callable[[Command], Outcome | None]
"""What a command's outcome is; None: silence."""


def approve(command: Command) -> Outcome:
    """Every authorization is approved."""
    assert isinstance(command, Authorize)
    payment = Payment(
        payment_id="pay_1",
        account=command.account,
        client=command.client,
        request_id=command.request_id,
        card=command.card,
        currency=command.currency,
        amount=command.amount,
        status=PaymentStatus.AUTHORIZED,
        response_code="00",
        created_at=NOON,
        authorized=command.amount,
        authorization_code="A1B2C3",
        expires_at=NOON + 7 * 86_400_000,
        merchant=command.merchant,
        metadata=command.metadata,
    )
    return Outcome(status=200, request_id=command.request_id, response_code="00", payment=payment)


class Downstream:
    """Answers by `rule` and remembers every command it saw, in `seen`."""

    def __init__(self, settings: Settings, rule: Rule = approve) -> None:
        self.rule = rule
        self.seen: list[Command] = []
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    async def saw(self, count: int) -> list[Command]:
        """The commands seen, once there are `count`."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: len(self.seen) >= count)
        return self.seen

    async def __aenter__(self) -> Downstream:
        options: dict[str, Any] = client_options(self._settings)
        self._consumer = AIOKafkaConsumer(**options, group_id=None, isolation_level="read_committed")
        self._producer = AIOKafkaProducer(**options, transactional_id=f"downstream-{secrets.token_hex(4)}")
        await self._consumer.start()
        await self._producer.start()
        partitions = [
            TopicPartition(topic.name, number)
            for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS)
            for number in range(self._settings.partitions)
        ]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_end(*partitions)
        for partition in partitions:
            await self._consumer.position(partition)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _run(self) -> None:
        decoders = {topic.name: topic.decode for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS)}
        while True:
            for records in (await self._consumer.getmany(timeout_ms=60_000)).values():
                answers = []
                for record in records:
                    command: Any = decoders[record.topic](record.value)
                    self.seen.append(command)
                    outcome = self.rule(command)
                    if outcome is not None:
                        answer = Answer(
                            attempt=command.attempt,
                            outcome=outcome,
                            partition=record.partition,
                            position=record.offset,
                        )
                        answers.append((answer, command.reply_partition))
                if answers:
                    async with self._producer.transaction():
                        for answer, partition in answers:
                            await self._producer.send(
                                topics.GATEWAY_REPLIES.name,
                                topics.GATEWAY_REPLIES.encode(answer),
                                partition=partition,
                            )
                async with self._news:
                    self._news.notify_all()
