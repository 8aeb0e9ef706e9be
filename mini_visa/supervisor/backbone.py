"""The broker under the services: started, or found, and its topics in place."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from mini_visa.broker import Broker, BrokerError
from mini_visa.kafka import admin, apply_topics, bootstrap_servers, broker_of, client_options
from mini_visa.settings import Settings

CHECK_INTERVAL_S: Final = 0.5
COORDINATORS_INTERVAL_S: Final = 0.05
COORDINATORS_TIMEOUT_S: Final = 30.0
SETTLE_INTERVAL_S: Final = 0.05
SETTLE_TIMEOUT_S: Final = 10.0
COORDINATORS_OWN: Final = ("__transaction_state", "__cluster_metadata")
"""Internal topics that hold no transaction's records."""
GROUP, TRANSACTION = 0, 1
"""Kinds of coordinators, as FindCoordinator numbers them."""


class Backbone:
    """`jars`: where the embedded broker's jars are kept, when not with its data."""

    def __init__(self, settings: Settings, *, jars: Path | None = None) -> None:
        self.settings = settings
        self.address = settings.broker
        """kafka://HOST:PORT once started: what the services are given as MINI_VISA_BROKER."""
        self._broker: Broker | None = None
        if not settings.broker.startswith("kafka://"):
            self._broker = broker_of(settings, jars=jars)
        self._ours = False

    async def start(self) -> None:
        """Raises `BrokerError` or `TopicError` with what to do."""
        if self._broker is not None:
            self._ours = await asyncio.to_thread(self._broker.start)
        servers = ",".join(bootstrap_servers(self.settings))
        self.address = f"kafka://{servers}"
        self.settings = self.settings.model_copy(update={"broker": self.address})
        await apply_topics(self.settings)
        await self._coordinators()

    async def _coordinators(self) -> None:
        """Returns when groups and transactions can be coordinated: on a new cluster the first question
        makes their internal topics, which takes a moment that would fill the services' logs."""
        deadline = time.monotonic() + COORDINATORS_TIMEOUT_S
        async with admin(self.settings) as client:
            for kind in (GROUP, TRANSACTION):
                while True:
                    try:
                        await client.find_coordinator(self.settings.environment, kind)
                        break
                    except KafkaError as error:
                        if time.monotonic() > deadline:
                            raise BrokerError(
                                f"The cluster has no coordinator for groups and transactions after "
                                f"{COORDINATORS_TIMEOUT_S:.0f} s ({type(error).__name__}). Its log says why."
                            ) from error
                    await asyncio.sleep(COORDINATORS_INTERVAL_S)

    async def stop(self) -> None:
        """Ends the broker if this started it; one that ran before goes on."""
        if self._broker is not None and self._ours:
            await self._settle()
            await asyncio.to_thread(self._broker.stop)
            self._ours = False

    async def _settle(self) -> None:
        """Returns when no transaction is open any more, or its time is up.

        A commit is answered before its markers are in the partitions. A Kafka that shuts down while it
        still writes them gives up its partitions first, takes those without a leader for deleted ones, and
        drops their markers (4.4, KRaftMetadataCache.getPartitionLeaderEndpoint): the transaction hangs in
        them for ever, and nobody can read past it. So the services stop first, and this looks that their
        markers have arrived."""
        consumers = [
            AIOKafkaConsumer(**client_options(self.settings), enable_auto_commit=False, isolation_level=level)
            for level in ("read_committed", "read_uncommitted")
        ]
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S), admin(self.settings) as client:
                partitions = [
                    TopicPartition(topic["topic"], partition["partition"])
                    for topic in await client.describe_topics()
                    if topic["topic"] not in COORDINATORS_OWN
                    for partition in topic["partitions"]
                ]
                for consumer in consumers:
                    await consumer.start()
                    consumer.assign(partitions)  # their metadata in one request
                    consumer.pause(*partitions)
                while True:
                    committed, written = [await consumer.end_offsets(partitions) for consumer in consumers]
                    if committed == written:
                        return
                    await asyncio.sleep(SETTLE_INTERVAL_S)
        except (KafkaError, BrokerError, OSError):  # a TimeoutError is an OSError
            pass  # it does not answer, or somebody else's transaction is open: no use in waiting longer
        finally:
            await asyncio.gather(*(consumer.stop() for consumer in consumers), return_exceptions=True)

    @property
    def pid(self) -> int | None:
        """Of the broker, when it runs on this machine and this started it."""
        return self._broker.health().pid if self._broker is not None and self._ours else None

    async def lost(self) -> str:
        """Returns when the broker of this machine has ended, with what its log says last. Of a cluster
        elsewhere nothing is known here: its clients say so themselves."""
        broker = self._broker
        while broker is None or broker.address is not None:  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(CHECK_INTERVAL_S)
        end = "\n".join(f"    {line}" for line in broker.logs(15))
        return f"The Kafka broker ended. The end of {broker.log}:\n{end}"
