"""Do risk and authorization work now? Seen from the positions that their groups commit in Kafka.

Every second (the setting `tick_interval_s`) a worker tells each of its partitions that time has passed, and
commits its position past that: a partition whose position stands still has no worker, or one that is stuck.

One such partition is no reason to be unready: every gateway sees the same one, so the cards of all others
would lose their way in too. It is counted and named; only a service that works nowhere is a reason.
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
"""While there is something to wait for: a system that starts is ready as soon as it works."""
GROUPS: Final = {
    "risk.assess": topics.CARD_REQUESTS.name,
    "authorization.decide": topics.ACCOUNT_COMMANDS.name,
}
"""What an authorization passes on its way: SERVICE.PROCESSOR and its source."""

SHOWN_MAX: Final = 10
"""Silent partitions that are named."""
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
        self.patience_s = settings.session_timeout_s + self.silence_s
        """A gateway that has just started waits so long for a service's other partitions, from when it first
        saw one of them move: until then another worker has what a dead one had, or there is something wrong
        that waiting does not mend."""
        self._settings = settings
        self._now = now
        self._groups = {f"{settings.environment}.{group}": topic for group, topic in GROUPS.items()}
        self._places: list[Place] = []
        self._positions: dict[Place, int] = {}
        self._moved_at: dict[Place, float] = {}
        self._begun_at: dict[str, float] = {}
        """When each group was first seen to move."""
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

    def unable(self) -> str:
        """Why no authorization at all would be answered, in words; "" where some are, or may be."""
        now = self._now()
        if (awaited := self._awaited(now)) is not None:
            return f"{_words(awaited)} was not seen to work yet."
        silent = set(self._silent(now))
        for group, topic in self._groups.items():
            if all(place in silent for place in self._places if place[0] == group):
                return (
                    f"{_service(group)} on {topic} works on no partition for {self.silence_s:.0f} s or more."
                )
        return ""

    def silent(self) -> list[str]:
        """Partitions that nobody works on, in words: `SHOWN_MAX` of them at most."""
        now = self._now()
        shown = []
        for place in self._silent(now)[:SHOWN_MAX]:
            moved_at = self._moved_at.get(place)
            since = (
                "was not seen to work yet"
                if moved_at is None
                else f"has not worked for {now - moved_at:.0f} s"
            )
            shown.append(f"{_words(place)} {since}.")
        return shown

    def silent_of(self, group: str) -> int:
        """How many partitions of one of `GROUPS` nobody works on."""
        return sum(place[0].endswith(f".{group}") for place in self._silent(self._now()))

    def _awaited(self, now: float) -> Place | None:
        """A partition that this gateway has not seen to move, and still waits for."""
        for place in self._places:
            if place not in self._moved_at and now - self._begun_at.get(place[0], now) <= self.patience_s:
                return place
        return None

    def _silent(self, now: float) -> list[Place]:
        return [
            place for place in self._places if now - self._moved_at.get(place, float("-inf")) > self.silence_s
        ]

    def saw(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """The group's committed positions as they are now. A coordinator that has just moved is said to have
        none (aiokafka does not look at the error): that is no move, and what was seen before counts."""
        for place in self._places:
            if place[0] == group:
                former = self._positions.get(place)
                position = positions.get(place[1], NONE if former is None else former)
                if former is not None and former != position:
                    self._moved_at[place] = self._now()
                    self._begun_at.setdefault(group, self._now())
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
                        await asyncio.sleep(FIRST_LOOK_S if self._awaited(self._now()) else LOOK_S)
                finally:
                    await admin.close()
            except (KafkaError, BrokerError, OSError) as error:
                if not complained:
                    log.warning("cannot see what the services do (%s): trying again", type(error).__name__)
                    complained = True
                await asyncio.sleep(LOOK_S)


def _words(place: Place) -> str:
    group, partition = place
    return f"{_service(group)} on {partition.topic}/{partition.partition}"


def _service(group: str) -> str:
    return group.split(".")[-2]
