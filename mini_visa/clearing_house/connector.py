"""The connector: from clearing.submissions to the clearing house, and its decisions into account.commands.

At least once each way, with an idempotency key each way: the presentment's key there, a request id made
from it here. So a crash anywhere only repeats. One that has no outcome after some tries is left: clearing
presents it again, and reversal calls it back when it takes too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import CommitFailedError, IllegalGenerationError, KafkaError, UnknownMemberIdError

from mini_visa import topics
from mini_visa.clearing_house.book import CONFLICT
from mini_visa.clearing_house.client import ClearingHouse, Refused
from mini_visa.domain.clearing import (
    ACCEPTED,
    CANCELLED,
    CancelPresentment,
    Submission,
)
from mini_visa.domain.commands import CLEARING_CLIENT, RecordClearing
from mini_visa.domain.messages import Undecodable
from mini_visa.errors import UserError
from mini_visa.kafka import admin, await_broker, client_options
from mini_visa.settings import Settings
from mini_visa.streams.topic import partition_of

SERVICE: Final = "connector"
FETCH_WAIT_MS: Final = 100
POLL_INTERVAL_S_MAX: Final = 600.0
"""The group waits this long for a batch whose every answer is late."""

log = logging.getLogger(__name__)


def _partitioner(key: bytes, every: Sequence[int], available: Sequence[int]) -> int:
    """Kafka's default one for a key, as aiokafka's own is; but an account's partition is worked out once."""
    return every[partition_of(key, len(every))]


class ConnectorStopped(UserError):
    """The connector cannot go on. The text says why and what to do."""


def outcome_command(submission: Submission, status: str, reason: str) -> RecordClearing:
    """What the account is told. The same outcome told twice is the same request."""
    return RecordClearing(
        account=submission.account,
        client=CLEARING_CLIENT,
        request_id=f"clear-{submission.key}",
        payment_id=submission.payment_id,
        n=submission.n,
        accepted=status == ACCEPTED,
        reason="no outcome in time" if status == CANCELLED else reason,
    )


class Connector:
    """Runs until it is stopped."""

    def __init__(self, settings: Settings, *, instance: str | None = None) -> None:
        self._settings = settings
        self._instance = instance
        self._stopping = asyncio.Event()
        self._slots = asyncio.Semaphore(settings.connector_in_flight_max)
        self.outcomes: Counter[str] = Counter()
        """By status, since the start; "unknown": left to be presented again."""
        self.ready = False

    def stop(self) -> None:
        """`run` returns after the batch that it is at."""
        self._stopping.set()

    async def run(self) -> None:
        """Raises `ConnectorStopped` with one line that says what to do."""
        settings = self._settings
        source, sink = topics.CLEARING_SUBMISSIONS.name, topics.ACCOUNT_COMMANDS.name
        await await_broker(settings)
        async with admin(settings) as client:  # aiokafka's consumer waits for a topic for ever
            missing = {source, sink, topics.dead_letters(SERVICE)} - set(await client.list_topics())
        if missing:
            raise ConnectorStopped(f"no topic {', '.join(sorted(missing))}: run mini-visa topics apply")
        consumer = AIOKafkaConsumer(
            source,
            **client_options(settings),
            group_id=f"{settings.environment}.{SERVICE}",
            group_instance_id=self._instance,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(settings.session_timeout_s * 1_000),
            max_poll_interval_ms=int(POLL_INTERVAL_S_MAX * 1_000),
        )
        producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,
            partitioner=_partitioner,
        )
        house = ClearingHouse(
            settings.clearing_house,
            timeout_s=settings.connector_timeout_s,
            tries_max=settings.connector_tries_max,
            connections_max=settings.connector_in_flight_max,
        )
        try:
            await producer.start()
            await consumer.start()
            self.ready = True
            while not self._stopping.is_set():
                found = await consumer.getmany(
                    timeout_ms=FETCH_WAIT_MS,
                    max_records=settings.connector_batch_max * settings.connector_in_flight_max,
                )
                records = [record for part in found.values() for record in part]
                if not records:
                    continue
                await self._work(records, house, producer)
                try:
                    await consumer.commit()
                except (CommitFailedError, IllegalGenerationError, UnknownMemberIdError):
                    log.info("partitions moved: what was under way is asked for again elsewhere")
        except KafkaError as error:
            raise ConnectorStopped(f"Kafka: {error}") from error
        finally:
            self.ready = False
            await consumer.stop()
            await producer.stop()
            await house.close()

    async def _work(self, records: Sequence[Any], house: ClearingHouse, producer: Any) -> None:
        """All of them, some batches side by side."""
        submissions: dict[str, Submission] = {}
        for record in records:
            try:
                submission = topics.CLEARING_SUBMISSIONS.decode(record.value)
            except Undecodable as error:
                await self._bury(record, str(error), producer)
                continue
            # A backlog holds repetitions; what is called back need not be presented again.
            if not isinstance(submissions.get(submission.key), CancelPresentment):
                submissions[submission.key] = submission
        every, size = list(submissions.values()), self._settings.connector_batch_max
        batches = [every[start : start + size] for start in range(0, len(every), size)]
        before = self.outcomes["unknown"]
        done = await asyncio.gather(
            *(self._clear(batch, house, producer) for batch in batches), return_exceptions=True
        )
        for failure in done:
            if failure is not None:
                raise failure
        if self.outcomes["unknown"] > before:
            log.warning(
                "%d presentments without an answer: they are presented again later",
                self.outcomes["unknown"] - before,
            )

    async def _clear(self, batch: Sequence[Submission], house: ClearingHouse, producer: Any) -> None:
        try:
            async with self._slots:
                answers = await house.outcomes(batch)
        except Refused as error:
            if len(batch) > 1:  # Find the one that it does not understand: the others are none the worse.
                middle = len(batch) // 2
                await self._clear(batch[:middle], house, producer)
                await self._clear(batch[middle:], house, producer)
                return
            log.error("the clearing house does not take %s: %s", batch[0].key, error)
            self.outcomes["refused"] += 1
            return
        sent = []
        for submission in batch:
            answer = answers.get(submission.key)
            self.outcomes["unknown" if answer is None else answer.status] += 1
            if answer is not None and answer.status == CONFLICT:
                log.error("the clearing house does not take %s: %s", answer.key, answer.reason)
            elif answer is not None:
                command = outcome_command(submission, answer.status, answer.reason)
                sent.append(
                    await producer.send(
                        topics.ACCOUNT_COMMANDS.name,
                        topics.ACCOUNT_COMMANDS.encode(command),
                        key=submission.account.encode(),
                    )
                )
        await asyncio.gather(*sent)

    async def _bury(self, record: Any, reason: str, producer: Any) -> None:
        """To the dead letters, with what the kernel gives its own."""
        headers = [
            ("reason", reason.encode()),
            ("processor", SERVICE.encode()),
            ("source", f"{record.topic}/{record.partition}/{record.offset}".encode()),
            ("source-timestamp", str(record.timestamp).encode()),
        ]
        await producer.send_and_wait(
            topics.dead_letters(SERVICE),
            record.value,
            key=record.key,
            partition=record.partition,
            headers=headers,
        )
