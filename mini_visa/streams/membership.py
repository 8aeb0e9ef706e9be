"""Being a member of a consumer group: which partitions are ours, and nothing else.

aiokafka's group coordinator without its consumer: it joins, sends heartbeats and tells what was assigned.
It keeps no positions, fetches nothing and commits nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import GroupLoadInProgressError, KafkaError
from aiokafka.structs import TopicPartition

from mini_visa.streams import metrics
from mini_visa.streams.poison import Fatal, poison

log = logging.getLogger(__name__)

EVICTIONS_MAX: Final = 3
EVICTIONS_WITHIN_S: Final = 300.0
"""More often forgotten by the group than this, and something else uses our name."""
HEARTBEATS_A_SESSION: Final = 10
"""Kafka's clients send three. A member learns of a rebalance from its next heartbeat, and until the last one
has, all partitions of the group stand still: at ten that is a second of a session of ten."""
LEAVE_S: Final = 3.0
"""Leaving is a courtesy: nothing is owned any more."""
LOOK_S: Final = 0.5
LOADING: Final = (repr(GroupLoadInProgressError()),)
"""How aiokafka tells that a coordinator which has just been started answered the end of a join so. It calls
that unexpected and goes on joining, as it does by itself after the same answer to any other request."""
POLL_NEVER_MS: Final = 2**31 - 1
"""aiokafka leaves a group it does not poll. Nothing is polled here: a stuck handler stops the heartbeats."""


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What a member tells the group's leader about itself."""

    generation: int
    """In which it owned `partitions`; -1: it has only their tables on its disk."""
    partitions: list[int]


class StickyAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """Even numbers of partitions, and as few of them moved as that allows.

    aiokafka's own keeps its memory in the class, one for all groups of a process, and is never told the
    generation. This one is an object per group; a member that has just started claims what is on its disk.
    """

    name = "mini-visa-sticky"
    VERSION: Final = 0

    def __init__(self, on_disk: Callable[[], Iterable[int]]) -> None:
        self._on_disk = on_disk
        self.owned: list[int] | None = None
        self.generation = -1

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        claim = (
            Claim(-1, sorted(self._on_disk()))
            if self.owned is None
            else Claim(self.generation, sorted(self.owned))
        )
        return ConsumerProtocolMemberMetadata(self.VERSION, list(topics), msgspec.msgpack.encode(claim))

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        topics = {topic for member in members.values() for topic in member.subscription}
        assert len(topics) == 1, f"members of one group read different topics: {topics}"
        (topic,) = topics
        claims = {name: _claim(member.user_data) for name, member in members.items()}
        partitions = cluster.partitions_for_topic(topic)
        if not partitions:  # before anybody is told: static members would keep an assignment of nothing
            raise Fatal(f"no partitions of {topic} are known to this worker, which has to share them out")
        shares = share_out(partitions, claims)
        return {
            name: ConsumerProtocolMemberAssignment(self.VERSION, [(topic, partitions)], b"")
            for name, partitions in shares.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """The generation is set by `Membership`, which knows it."""


def _claim(data: bytes) -> Claim:
    try:
        return msgspec.msgpack.decode(data, type=Claim)
    except msgspec.DecodeError:
        return Claim(-1, [])


def share_out(partitions: Iterable[int], claims: Mapping[str, Claim]) -> dict[str, list[int]]:
    """Partitions per member: numbers differ by one at most, and claims are kept as far as that goes.

    Of two members that claim the same partition, the one that owned it in the later generation keeps it.
    """
    members = sorted(claims)
    wanted = sorted(partitions)
    share, extras = divmod(len(wanted), len(members))
    owner: dict[int, str] = {}
    for name in sorted(members, key=lambda member: claims[member].generation):
        for partition in claims[name].partitions:
            owner[partition] = name
    shares: dict[str, list[int]] = {name: [] for name in members}
    for partition in wanted:
        name = owner.get(partition, "")
        if name and len(shares[name]) < share:
            shares[name].append(partition)
            wanted = [other for other in wanted if other != partition]
    for partition in list(wanted):
        name = owner.get(partition, "")
        if name and extras and len(shares[name]) == share:
            shares[name].append(partition)
            wanted.remove(partition)
            extras -= 1
    for partition in wanted:
        name = min(members, key=lambda member: (len(shares[member]), member))
        shares[name].append(partition)
    return {name: sorted(share) for name, share in shares.items()}


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """One processor's membership. `revoked()` must leave every partition parked before it returns;
    `assigned(partitions, kept)` is told whether partitions assigned again were ours without interruption."""

    def __init__(
        self,
        *,
        group: str,
        topic: str,
        instance: str,
        session_timeout_s: float,
        rebalance_timeout_s: float,
        on_disk: Callable[[], Iterable[int]],
        revoked: Callable[[], Awaitable[None]],
        assigned: Callable[[set[int], bool], Awaitable[None]],
        processor: str,
        client_options: dict[str, Any],
    ) -> None:
        self.group = group
        self.topic = topic
        self._instance = instance
        self._session_timeout_s = session_timeout_s
        self._rebalance_timeout_s = rebalance_timeout_s
        self._revoked = revoked
        self._assigned = assigned
        self._client_options = client_options
        self._assignor = StickyAssignor(on_disk)
        self._member = ""
        self._generation = -1
        self._partition_count = 0
        self._evictions: deque[float] = deque(maxlen=EVICTIONS_MAX)
        self._rejoins = metrics.REJOINS.labels(processor)
        self._client: AIOKafkaClient | None = None
        self._coordinator: GroupCoordinator | None = None
        self._watch: asyncio.Task[None] | None = None
        self.joined = False
        """Between an assignment and the next revocation."""

    async def join(self) -> None:
        """Join the group; assignments come through the callbacks, now and later."""
        self._client = AIOKafkaClient(
            client_id=f"{self.group}.{self._instance}", retry_backoff_ms=50, **self._client_options
        )
        await self._client.bootstrap()
        await self._client.set_topics([self.topic])
        self._partition_count = len(await self._client._wait_on_metadata(self.topic))
        subscription = SubscriptionState()
        subscription.register_fetch_waiters(set())
        subscription.subscribe(topics={self.topic}, listener=self)
        self._coordinator = GroupCoordinator(
            self._client,
            subscription,
            group_id=self.group,
            group_instance_id=self._instance or None,
            session_timeout_ms=int(self._session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._session_timeout_s * 1000 / HEARTBEATS_A_SESSION),
            rebalance_timeout_ms=int(self._rebalance_timeout_s * 1000),
            retry_backoff_ms=100,
            enable_auto_commit=False,
            assignors=(self._assignor,),
            max_poll_interval_ms=POLL_NEVER_MS,
        )
        self._watch = asyncio.create_task(self._watch_errors())

    async def leave(self) -> None:
        """Stop heartbeats. A static member stays a member until its session ends: it is expected back."""
        if self._watch is not None:
            self._watch.cancel()
        with contextlib.suppress(TimeoutError):  # a join under way waits for members that may be dead
            async with asyncio.timeout(LEAVE_S):
                if self._coordinator is not None:
                    await self._coordinator.close()
        if self._client is not None:
            await self._client.close()
        self.joined = False

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.joined = False
        try:
            await self._revoked()
        except BaseException as error:
            poison(f"{self.group} (revoke)", error)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        try:
            coordinator = self._coordinator
            assert coordinator is not None and self._client is not None
            member, generation = coordinator.member_id, coordinator.generation
            count = len(self._client.cluster.partitions_for_topic(self.topic) or ())
            if count != self._partition_count:
                raise Fatal(
                    f"{self.topic} has {count} partitions and had {self._partition_count} when this worker "
                    "started: accounts would move between partitions, away from their state"
                )
            partitions = {partition.partition for partition in assigned}
            kept = member == self._member and generation in (self._generation, self._generation + 1)
            if self._member and member != self._member:
                self._evicted()
            log.info(
                "%s: generation %d, partitions %s%s",
                self.group,
                generation,
                sorted(partitions) or "none",
                "" if kept or not self._member else ", after an interruption",
            )
            self._member, self._generation = member, generation
            self._assignor.owned, self._assignor.generation = sorted(partitions), generation
            await self._assigned(partitions, kept)
            self.joined = True
        except BaseException as error:
            poison(f"{self.group} (assign)", error)

    def _evicted(self) -> None:
        self._rejoins.inc()
        now = time.monotonic()
        log.warning("%s: the group had forgotten this member, it has joined again", self.group)
        if len(self._evictions) == EVICTIONS_MAX and now - self._evictions[0] < EVICTIONS_WITHIN_S:
            raise Fatal(
                f"{self.group}: forgotten by the group {EVICTIONS_MAX + 1} times in "
                f"{EVICTIONS_WITHIN_S:.0f} s. Either another worker has the same MINI_VISA_INSTANCE "
                f"({self._instance!r}; give each its own), or this one is too slow for its session time-out "
                f"of {self._session_timeout_s:.0f} s"
            )
        self._evictions.append(now)

    async def _watch_errors(self) -> None:
        """aiokafka keeps its coordinator's errors for the next poll. There is none here, so look."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                assert self._coordinator is not None
                try:
                    self._coordinator.check_errors()
                except KafkaError as error:
                    if error.args != LOADING:
                        raise
                    log.warning("%s: the coordinator is still loading: asked again", self.group)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            poison(f"{self.group} (membership)", error)
