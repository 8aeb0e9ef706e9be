"""Do risk and authorization work now? Seen from the positions that their groups commit in Kafka.

Every second (the setting `tick_interval_s`) a worker tells each of its partitions that time has passed, and
commits its position past that: a partition whose position stands still has no worker, or one that is stuck.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from mini_visa import topics
from mini_visa.broker import BrokerError
from mini_visa.kafka import client_options
from mini_visa.settings import Settings

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
FIRST_LOOK_S: Final = 0.1
"""Until everything was seen to move once: a system that starts is ready as soon as it works."""
GROUPS: Final = {
    "risk.assess": topics.CARD_REQUESTS.name,
    "authorization.decide": topics.ACCOUNT_COMMANDS.name,
}
"""What an authorization passes on its way: SERVICE.PROCESSOR and its source."""

NONE: Final = -1
"""The position of a group that has committed none."""

Place = tuple[str, TopicPartition]
"""A group and a partition of its source."""


class Vigil:
    """Looks on from `start` until `stop`."""

    def __init__(self, settings: Settings, now: Callable[[], float] = monotonic) -> None:
        self.silence_s = settings.gateway_deadline_s + 2 * settings.tick_interval_s
        """After this long without a move an authorization that began with the silence has missed its
        deadline."""
        self._settings = settings
        self._now = now
        self._groups = {f"{settings.environment}.{group}": topic for group, topic in GROUPS.items()}
        self._places: list[Place] = []
        self._positions: dict[Place, int] = {}
        self._moved_at: dict[Place, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, partitions: Mapping[str, int]) -> None:
        """`partitions`: how many each topic has."""
        self.watch(partitions)
        self._task = asyncio.create_task(self._run())

    def watch(self, partitions: Mapping[str, int]) -> None:
        self._places = [
            (group, TopicPartition(topic, partition))
            for group, topic in self._groups.items()
            for partition in range(partitions[topic])
        ]

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def silent(self) -> str:
        """A partition that nobody works on, in words; "" when there is none."""
        now = self._now()
        for place in self._places:
            moved_at = self._moved_at.get(place)
            if moved_at is None:
                return f"{_words(place)} was not seen to work yet."
            if now - moved_at > self.silence_s:
                return f"{_words(place)} has not worked for {now - moved_at:.0f} s."
        return ""

    def saw(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """The group's committed positions as they are now. A coordinator that has just moved is said to have
        none (aiokafka does not look at the error): that is no move, and what was seen before counts."""
        for place in self._places:
            if place[0] == group:
                former = self._positions.get(place)
                position = positions.get(place[1], NONE if former is None else former)
                if former is not None and former != position:
                    self._moved_at[place] = self._now()
                self._positions[place] = position

    async def _run(self) -> None:
        complained = False
        while True:
            try:
                admin = AIOKafkaAdminClient(**client_options(self._settings))
                try:
                    await admin.start()
                    while True:
                        for group in self._groups:
                            committed = await admin.list_consumer_group_offsets(group)
                            self.saw(group, {at: position.offset for at, position in committed.items()})
                        complained = False
                        unseen = len(self._moved_at) < len(self._places)
                        await asyncio.sleep(FIRST_LOOK_S if unseen else LOOK_S)
                finally:
                    await admin.close()
            except (KafkaError, BrokerError, OSError) as error:
                if not complained:
                    log.warning("cannot see what the services do (%s): trying again", type(error).__name__)
                    complained = True
                await asyncio.sleep(LOOK_S)


def _words(place: Place) -> str:
    group, partition = place
    return f"{group.split('.')[-2]} on {partition.topic}/{partition.partition}"
