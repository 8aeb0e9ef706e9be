"""The broker under the services: started, or found, and its topics in place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from mini_visa.broker import EmbeddedBroker
from mini_visa.kafka import apply_topics, bootstrap_servers, broker_of
from mini_visa.settings import Settings

CHECK_INTERVAL_S: Final = 0.5


class Backbone:
    """`jars`: where the embedded broker's jars are kept, when not with its data."""

    def __init__(self, settings: Settings, *, jars: Path | None = None) -> None:
        self.settings = settings
        self.address = settings.broker
        """kafka://HOST:PORT once started: what the services are given as MINI_VISA_BROKER."""
        self._broker: EmbeddedBroker | None = None
        if not settings.broker.startswith("kafka://"):
            self._broker = broker_of(settings)
            if jars is not None:
                self._broker.libs_cache = jars
        self._ours = False

    async def start(self) -> None:
        """Raises `BrokerError` or `TopicError` with what to do."""
        if self._broker is not None:
            self._ours = await asyncio.to_thread(self._broker.start)
        servers = ",".join(bootstrap_servers(self.settings))
        self.address = f"kafka://{servers}"
        self.settings = self.settings.model_copy(update={"broker": self.address})
        await apply_topics(self.settings)

    async def stop(self) -> None:
        """Ends the broker if this started it; one that ran before goes on."""
        if self._broker is not None and self._ours:
            await asyncio.to_thread(self._broker.stop)
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
