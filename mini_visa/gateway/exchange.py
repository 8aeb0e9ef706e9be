"""The gateway's side of Kafka: commands out, answers in, matched by attempt.

What can be promised: `ask` returns the one answer, or raises `NotSent` (the command is in no log and
never will be) or `NoAnswer` (it may be there now or later). `tell` returns once a command is durable.
Everything is bounded: waiting by a deadline, memory by the gateway's bound on requests in flight and by
the producer's own buffer, which makes senders wait when it is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import Histogram

from mini_visa import topics
from mini_visa.domain.answers import Answer
from mini_visa.domain.commands import Command
from mini_visa.domain.messages import Undecodable
from mini_visa.errors import UserError
from mini_visa.streams.topic import AnyTopic, partition_of

log = logging.getLogger(__name__)

NEEDED_TOPICS: Final[tuple[AnyTopic, ...]] = (
    topics.CARD_REQUESTS,
    topics.ACCOUNT_COMMANDS,
    topics.GATEWAY_REPLIES,
)
RESTART_PAUSE_S: Final = 0.5
"""Between two attempts to get a working producer or consumer back."""
STOP_TIMEOUT_S: Final = 5.0


class NotSent(Exception):
    """The command did not get into the log before the deadline, and never will."""


class NoAnswer(Exception):
    """The deadline passed, or the broker failed: the command may be in the log, now or later."""


class TopicsMissing(UserError):
    """The cluster lacks topics that the gateway needs."""


class Exchange:
    """One idempotent producer, one consumer of this gateway's partition of gateway.replies."""

    def __init__(
        self, client_options: Mapping[str, Any], *, gateway_id: int, produce_seconds: Histogram
    ) -> None:
        """`client_options`: aiokafka's, for reaching the cluster. `gateway_id` modulo the number of
        partitions of gateway.replies is the one listened to."""
        self.reply_partition = -1
        self._options = dict(client_options)
        self._gateway_id = gateway_id
        self.partitions: dict[str, int] = {}
        """Of each needed topic, once connected."""
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._replacing = False
        self._listening = False
        self._produce_seconds = {
            topic.name: produce_seconds.labels(topic.name)
            for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS)
        }

    @property
    def connected(self) -> bool:
        """A producer is up and the replies are being listened to."""
        return self._producer is not None and self._listening

    @property
    def waiting(self) -> int:
        """Commands that have no answer yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Connects, and positions the consumer at the end of its replies: nothing is asked before
        that. Raises `TopicsMissing` or a KafkaError."""
        self._producer = await self._new_producer()
        try:
            metadata = await self._producer.client.fetch_all_metadata()
            counts = {topic.name: metadata.partitions_for_topic(topic.name) for topic in NEEDED_TOPICS}
            missing = [name for name, partitions in counts.items() if not partitions]
            if missing:
                raise TopicsMissing(f"the cluster has no {', '.join(missing)}: run `mini-visa topics apply`")
            self.partitions = {name: len(partitions) for name, partitions in counts.items()}
            self.reply_partition = self._gateway_id % len(counts[topics.GATEWAY_REPLIES.name])
            self._consumer = await self._new_consumer()
        except BaseException:
            await self.stop()
            raise
        self._listening = True
        self._keep(self._listen())

    async def stop(self) -> None:
        """Flushes what is still buffered (bounded) and disconnects."""
        self._listening = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        for client in (producer, consumer):
            if client is not None:
                await _stop(client)

    async def ask(self, topic: AnyTopic, command: Command, *, deadline: float) -> Answer:
        """Sends `command` and waits for the answer to its `attempt`, until `deadline` (loop time, s).

        Raises `NotSent` or `NoAnswer`.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting[command.attempt] = answer
        try:
            delivery = await self._send(topic, command, command.account.encode(), deadline)
            delivery.add_done_callback(lambda done: _pass_on_failure(done, answer))
            timer = loop.call_at(deadline, _give_up, answer)
            try:
                return await answer
            finally:
                timer.cancel()
        except (TimeoutError, KafkaError) as error:
            raise NoAnswer(type(error).__name__) from None
        finally:
            del self._waiting[command.attempt]

    async def tell(
        self, topic: AnyTopic, message: Any, *, key: bytes, deadline: float, partition: int | None = None
    ) -> None:
        """Sends `message` and waits until it is durable. Raises `NotSent` or `NoAnswer` (it is in the
        producer's buffer, which goes on trying, and may become durable later)."""
        delivery = await self._send(topic, message, key, deadline, partition)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(delivery)
        except (TimeoutError, KafkaError) as error:
            raise NoAnswer(type(error).__name__) from None

    async def reachable(self, timeout_s: float) -> bool:
        """Whether the cluster answers and the reply partition has a leader."""
        consumer = self._consumer
        if consumer is None or not self.connected:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await consumer.end_offsets(
                    [TopicPartition(topics.GATEWAY_REPLIES.name, self.reply_partition)]
                )
        except (TimeoutError, KafkaError):
            return False
        return True

    # -- out -------------------------------------------------------------------------------------

    async def _send(
        self, topic: AnyTopic, message: Any, key: bytes, deadline: float, partition: int | None = None
    ) -> asyncio.Future[Any]:
        producer = self._producer
        if producer is None:
            raise NotSent("the producer is being replaced")
        started = monotonic()
        if partition is None:
            partition = partition_of(key, self.partitions[topic.name])
        try:
            async with asyncio.timeout_at(deadline):
                delivery: asyncio.Future[Any] = await producer.send(
                    topic.name, topic.encode(message), key, partition
                )
        except (TimeoutError, KafkaError) as error:  # raised before the record entered the buffer
            self._check(error)
            raise NotSent(type(error).__name__) from None
        observe = self._produce_seconds[topic.name].observe

        def delivered(done: asyncio.Future[Any]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is None:
                observe(monotonic() - started)
            else:
                self._check(error)

        delivery.add_done_callback(delivered)
        return delivery

    def _check(self, error: BaseException) -> None:
        """aiokafka retries what can be retried for as long as it takes. What it does give up on leaves
        a gap in an idempotent producer's sequence: that producer is never used again."""
        if isinstance(error, KafkaError) and not error.retriable and not self._replacing:
            self._replacing = True
            log.error("the producer failed for good (%s): replacing it", type(error).__name__)
            self._keep(self._replace_producer())

    async def _replace_producer(self) -> None:
        failed, self._producer = self._producer, None
        try:
            while self._producer is None:
                try:
                    self._producer = await self._new_producer()
                except KafkaError as error:
                    log.error("no producer yet: %s", type(error).__name__)
                    await asyncio.sleep(RESTART_PAUSE_S)
        finally:
            self._replacing = False
            if failed is not None:
                await _stop(failed)

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._options,
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=256 << 10,
            request_timeout_ms=10_000,
            retry_backoff_ms=50,
        )
        try:
            await producer.start()
        except BaseException:
            await _stop(producer)
            raise
        return producer

    # -- in --------------------------------------------------------------------------------------

    async def _new_consumer(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            isolation_level="read_committed",
            fetch_min_bytes=1,
            fetch_max_wait_ms=500,
            retry_backoff_ms=50,
        )
        replies = TopicPartition(topics.GATEWAY_REPLIES.name, self.reply_partition)
        try:
            await consumer.start()
            consumer.assign([replies])
            await consumer.seek_to_end(replies)
            await consumer.position(replies)
        except BaseException:
            await _stop(consumer)
            raise
        return consumer

    async def _listen(self) -> None:
        """Answers wake those who wait for them; answers for other gateways, or for those who gave up,
        are dropped. A consumer that fails is replaced: what it missed ends as a time-out."""
        while True:
            try:
                if self._consumer is None:
                    self._consumer = await self._new_consumer()
                self._listening = True
                await self._deliver(self._consumer)
            except KafkaError as error:
                self._listening = False
                log.error("listening for replies failed (%s): starting anew", type(error).__name__)
                failed, self._consumer = self._consumer, None
                if failed is not None:
                    await _stop(failed)
                await asyncio.sleep(RESTART_PAUSE_S)

    async def _deliver(self, consumer: AIOKafkaConsumer) -> None:
        waiting, decode = self._waiting, topics.GATEWAY_REPLIES.decode
        while True:
            for records in (await consumer.getmany(timeout_ms=60_000)).values():
                for record in records:
                    try:
                        answer = decode(record.value)
                    except Undecodable as error:
                        log.error("reply %d/%d: %s", record.partition, record.offset, error)
                        continue
                    future = waiting.get(answer.attempt)
                    if future is not None and not future.done():
                        future.set_result(answer)

    def _keep(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _pass_on_failure(delivery: asyncio.Future[Any], answer: asyncio.Future[Answer]) -> None:
    if delivery.cancelled() or answer.done():
        return
    error = delivery.exception()
    if error is not None:
        answer.set_exception(error)


def _give_up(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await client.stop()
