"""The broker under the services: started, or found, and its topics in place."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from aiokafka.errors import KafkaError

from mini_visa.broker import Broker, BrokerError
from mini_visa.kafka import admin, apply_topics, bootstrap_servers, broker_of
from mini_visa.settings import Settings

CHECK_INTERVAL_S: Final = 0.5
COORDINATORS_INTERVAL_S: Final = 0.05
COORDINATORS_TIMEOUT_S: Final = 30.0
QUIET_S: Final = 0.1
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
        """Ends the broker if this started it; one that ran before goes on. The services have ended: only
        the markers of their last transactions may still be on their way."""
        if self._broker is not None and self._ours:
            await asyncio.to_thread(self._broker.stop, quiet_s=QUIET_S)
            self._ours = False

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
