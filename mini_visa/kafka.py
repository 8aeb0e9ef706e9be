"""How the program reaches Kafka: connection settings, the topics and their configuration, positions."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.offset import OffsetRequest

from mini_visa import topics as declared
from mini_visa.broker import Broker, BrokerError, DockerBroker, EmbeddedBroker
from mini_visa.errors import UserError
from mini_visa.settings import Settings
from mini_visa.streams.topic import HOUR_MS, AnyTopic

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 20.0
REFUSAL_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
"""Until a broker has taken a connection and let its client in."""
VISIBLE_TIMEOUT_S = 20.0
FETCH_WAIT_MS = 200
STALLED_S = 20.0
BROKER_PATIENCE_S = 60.0
"""How long a service that starts waits for a broker that does not answer."""
BROKER_RETRY_S = 0.25
OFFSETS_TOPIC = "__consumer_offsets"
COORDINATOR_S = 5.0
COORDINATOR_AWAY = {14: "it loads", 15: "it is not available", 16: "it says that it is not the coordinator"}
"""Errors with which a group's coordinator refuses whatever is asked of it."""
TIMESTAMP_AHEAD_MS_MAX = 60_000
"""The broker refuses a record further in the future: no one record may move a partition's time."""
DEAD_LETTERS_RETENTION_MS = 30 * 24 * HOUR_MS
DEAD_LETTER_BYTES_MAX = 2 << 20
"""The largest record that any topic takes (1 MiB by default) must fit with its headers."""
TOMBSTONE_RETENTION_MS = 7 * 24 * HOUR_MS
"""Changelogs keep deletions this long: a store on disk that is older may hold deleted rows."""
_LATEST = -1
"""The end of a partition, as ListOffsets asks for it."""
_DYNAMIC_TOPIC_CONFIG = 1  # config_source of a value that was set on the topic itself (KIP-226)


class TopicError(UserError):
    """A topic of the cluster is not as it must be, and nothing here may change that."""


class Stalled(UserError, TimeoutError):
    """The cluster answers, and has delivered nothing of what there is for `STALLED_S`."""


# -- connection ------------------------------------------------------------------------------------

_connect = AIOKafkaConnection.connect


async def _connect_in_time(connection: AIOKafkaConnection) -> Any:
    """aiokafka waits for a connection as long as for an answer, 40 s, and makes no other one meanwhile. A pod
    or a machine that is gone refuses nothing: a broker that was back elsewhere went unnoticed for so long."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        return await _connect(connection)


AIOKafkaConnection.connect = _connect_in_time


def bootstrap_servers(settings: Settings) -> list[str]:
    """HOST:PORT of the brokers to ask first, from MINI_VISA_BROKER.

    Raises BrokerError when the broker of this machine does not run or the setting is malformed."""
    if settings.broker in ("embedded", "docker"):
        address = broker_of(settings).address
        if address is None:
            raise BrokerError(
                f"The {settings.broker} broker of {settings.home} is not running. Start it "
                "(`mini-visa broker start`, or everything: `mini-visa up`), "
                "or set MINI_VISA_BROKER=kafka://HOST:PORT."
            )
        return [address]
    scheme, _, hosts = settings.broker.partition("://")
    servers = [host.strip() for host in hosts.split(",")]
    if scheme != "kafka" or not all(_is_address(server) for server in servers):
        raise BrokerError(
            f'MINI_VISA_BROKER is "{settings.broker}"; it must be "embedded", "docker" or '
            '"kafka://HOST:PORT[,HOST:PORT]".'
        )
    return servers


def broker_of(settings: Settings, *, port: int | None = None, jars: Path | None = None) -> Broker:
    """The broker of this machine that the settings name, running or not. `jars`: where the embedded
    one's are kept, when not with its data.

    Raises BrokerError when they name a cluster elsewhere: it is not ours to start or stop."""
    home, heap_bytes = settings.home / "broker", settings.broker_heap_bytes
    if settings.broker == "embedded":
        return EmbeddedBroker(home, port=port, heap_bytes=heap_bytes, libs_cache=jars)
    if settings.broker == "docker":
        return DockerBroker(home, port=port, heap_bytes=heap_bytes, image=settings.broker_image)
    raise BrokerError(
        f"MINI_VISA_BROKER={settings.broker} is a cluster elsewhere: it is not started or stopped from here."
    )


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client of the program is made with.

    Raises BrokerError as `bootstrap_servers` does, and when a certificate cannot be read."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings),
        "security_protocol": settings.kafka_security,
    }
    if settings.kafka_security.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security.startswith("SASL"):
        if not settings.kafka_username or not settings.kafka_password:
            raise BrokerError(
                f"MINI_VISA_KAFKA_SECURITY={settings.kafka_security} needs MINI_VISA_KAFKA_USERNAME "
                "and MINI_VISA_KAFKA_PASSWORD."
            )
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password
    return options


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65_536


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """Verifies the brokers' certificates and names; with a client certificate, mutual TLS."""
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.kafka_cert_file:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file)
    except (OSError, ssl.SSLError) as unreadable:
        raise BrokerError(
            "A TLS file cannot be used (MINI_VISA_KAFKA_CA_FILE, _CERT_FILE, _KEY_FILE): "
            f"{unreadable.filename or ''} {unreadable.strerror or unreadable}"
        ) from unreadable
    return context


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected administration client. Raises BrokerError when no broker answers."""
    options = client_options(settings)
    client = AIOKafkaAdminClient(**options, request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000))
    try:
        async with _reachable(options):
            await client.start()
        yield client
    finally:
        await client.close()


async def await_broker(settings: Settings, patience_s: float = BROKER_PATIENCE_S) -> None:
    """Returns once a broker answers: one that restarts is away for some seconds, and whoever starts in that
    time has nothing to give up for. Raises BrokerError when none has answered for `patience_s`."""
    deadline = time.monotonic() + patience_s
    complained = False
    while True:
        try:
            async with admin(settings):
                return
        except BrokerError as failure:
            if time.monotonic() > deadline:
                raise
            if not complained:
                log.warning("%s Trying again for %d s.", failure, patience_s)
                complained = True
        await asyncio.sleep(BROKER_RETRY_S)


@asynccontextmanager
async def _reachable(options: dict[str, Any]) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            yield
    except (KafkaError, OSError) as failure:  # a TimeoutError is an OSError
        servers = ",".join(options["bootstrap_servers"])
        reason = await _refusal(options) or f"({type(failure).__name__}). Is it running?"
        raise BrokerError(f"No Kafka answers at {servers}: {reason}") from failure


async def _refusal(options: dict[str, Any]) -> str:
    """Why the first of the servers that can be asked takes no connection, and what to do. aiokafka's clients
    keep the reason to their log. "": it takes one."""
    options = dict(options)
    host, _, port = options.pop("bootstrap_servers")[0].rpartition(":")
    try:
        async with asyncio.timeout(REFUSAL_TIMEOUT_S):
            (await create_conn(host.strip("[]"), int(port), **options)).close()
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not trusted ({error.verify_message}). "
            "MINI_VISA_KAFKA_CA_FILE must hold the authority that signed it."
        )
    except ssl.SSLError:
        return "it does not speak TLS there. Check MINI_VISA_KAFKA_SECURITY and the port."
    except (SaslAuthenticationFailed, AuthenticationFailedError):
        return (
            f"it refused the user {options.get('sasl_plain_username')} or the password. "
            "Check MINI_VISA_KAFKA_USERNAME and MINI_VISA_KAFKA_PASSWORD."
        )
    except UnsupportedSaslMechanismError:
        return f"it does not take {options.get('sasl_mechanism')}. Check MINI_VISA_KAFKA_SASL_MECHANISM."
    except TimeoutError:
        return "no answer in time. Is it running, and is it a Kafka?"
    except OSError as error:
        return f"{os.strerror(error.errno) if error.errno else error}. Is it running?"
    except KafkaError:
        return "it ended the connection. Does it want TLS or a password (MINI_VISA_KAFKA_SECURITY)?"
    return ""


# -- topics ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopicPlan:
    """A topic as it is to exist in the cluster."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


@dataclass(frozen=True)
class TopicChange:
    """What `apply_topics` did. `config` holds the values it set."""

    name: str
    action: str  # "created" or "changed"
    config: dict[str, str] = field(default_factory=dict)


def plan(settings: Settings, topic: AnyTopic) -> TopicPlan:
    """The partitions, copies and configuration of a declared topic under these settings."""
    if topic is declared.GATEWAY_REPLIES:
        partitions = settings.replies_partitions
    else:
        partitions = topic.partitions or settings.partitions
    config = {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "retention.ms": str(topic.retention_ms),
    }
    return TopicPlan(
        topic.name, partitions, settings.replication, _with_common(settings, config | topic.config)
    )


def dead_letters_plan(settings: Settings, service: str, partitions: int | None = None) -> TopicPlan:
    """A service's dead letters: as many partitions as its source, so a letter keeps its partition."""
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(DEAD_LETTERS_RETENTION_MS),
        # Kept from when they were buried on: a partition that has seen nothing but garbage has no event time,
        # and what is of 1970 would be deleted at once. The record's own time is in a header.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(DEAD_LETTER_BYTES_MAX),
    }
    name = declared.dead_letters(service)
    return TopicPlan(
        name, partitions or settings.partitions, settings.replication, _with_common(settings, config)
    )


def changelog_plan(settings: Settings, name: str, partitions: int) -> TopicPlan:
    """A processor's changelog: the latest row of every key, for ever; as many partitions as its source."""
    config = {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(TOMBSTONE_RETENTION_MS),
        "unclean.leader.election.enable": "false",
    }
    return TopicPlan(name, partitions, settings.replication, _with_common(settings, config))


def _with_common(settings: Settings, config: dict[str, str]) -> dict[str, str]:
    return {
        "min.insync.replicas": str(max(1, settings.replication - 1)),
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(TIMESTAMP_AHEAD_MS_MAX),
        "compression.type": "producer",
    } | config


def plans(settings: Settings, topics: Iterable[AnyTopic] | None = None) -> list[TopicPlan]:
    """The plans of `topics`; of None: all declared topics and every service's dead letters."""
    if topics is not None:
        return [plan(settings, topic) for topic in topics]
    return [plan(settings, topic) for topic in declared.ALL] + [
        dead_letters_plan(settings, service) for service in declared.SERVICES
    ]


async def apply_topics(
    settings: Settings, topics: Iterable[AnyTopic | TopicPlan] | None = None
) -> list[TopicChange]:
    """Creates what is missing and sets what differs; again: does nothing and returns [].

    Values that an operator set under other names stay. Raises TopicError when an existing topic has
    another partition count: records' partitions follow from it, so it is fixed for ever."""
    wanted = (
        plans(settings)
        if topics is None
        else [topic if isinstance(topic, TopicPlan) else plan(settings, topic) for topic in topics]
    )
    async with admin(settings) as client:
        existing = await _partition_counts(client)
        _must_match([plan for plan in wanted if plan.name in existing], existing)
        created = await _create([plan for plan in wanted if plan.name not in existing], client)
        kept = [plan for plan in wanted if plan.name in existing]
        changed = await _configure(kept, client)
        await _visible(client, {plan.name: plan.partitions for plan in wanted})
        await _serving(client, [plan.name for plan in wanted])
    return [*created, *changed]


def _must_match(wanted: Sequence[TopicPlan], existing: dict[str, int]) -> None:
    wrong = [
        f"{plan.name} has {existing[plan.name]} partitions, the settings say {plan.partitions}"
        for plan in wanted
        if existing[plan.name] != plan.partitions
    ]
    if wrong:
        raise TopicError(
            "; ".join(wrong)
            + ". A topic's partition count is fixed at creation: set MINI_VISA_PARTITIONS (or"
            " MINI_VISA_REPLIES_PARTITIONS) to what the cluster has, or use a new cluster."
        )


async def _create(wanted: Sequence[TopicPlan], client: AIOKafkaAdminClient) -> list[TopicChange]:
    if not wanted:
        return []
    answer = await client.create_topics(
        [NewTopic(p.name, p.partitions, p.replication, topic_configs=p.config) for p in wanted]
    )
    refused = {
        name: (code, message)
        for name, code, message in answer.topic_errors
        if code not in (0, TopicAlreadyExistsError.errno)  # another process applied them at the same time
    }
    for name, (code, message) in refused.items():
        raise TopicError(f"The cluster refused to create {name}: {for_code(code).__name__}: {message}")
    return [TopicChange(p.name, "created", dict(p.config)) for p in wanted]


async def _configure(wanted: Sequence[TopicPlan], client: AIOKafkaAdminClient) -> list[TopicChange]:
    if not wanted:
        return []
    current = await _configs(client, [p.name for p in wanted])
    changes: list[TopicChange] = []
    resources: list[ConfigResource] = []
    for p in wanted:
        values, own = current[p.name]
        differing = {key: value for key, value in p.config.items() if values.get(key) != value}
        if differing:
            changes.append(TopicChange(p.name, "changed", differing))
            # AlterConfigs replaces all of a topic's own values, so those set by others go along.
            resources.append(ConfigResource(ConfigResourceType.TOPIC, p.name, own | p.config))
    if resources:
        for answer in await client.alter_configs(resources):
            for code, message, _, name in answer.resources:
                if code:
                    raise TopicError(
                        f"The cluster refused to configure {name}: {for_code(code).__name__}: {message}"
                    )
    return changes


async def _configs(
    client: AIOKafkaAdminClient, names: Sequence[str]
) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """For each topic its effective values, and those set on the topic itself."""
    if not names:
        return {}
    answers = await client.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    )
    found: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for answer in answers:
        for code, message, _, name, entries in answer.resources:
            if code:
                raise TopicError(f"The cluster does not show the configuration of {name}: {message}")
            found[name] = (
                {entry[0]: entry[1] for entry in entries},
                {entry[0]: entry[1] for entry in entries if entry[3] == _DYNAMIC_TOPIC_CONFIG},
            )
    return found


async def _visible(client: AIOKafkaAdminClient, wanted: dict[str, int]) -> None:
    """Waits until the brokers show the topics with a leader for every partition: usable at once."""
    deadline = asyncio.get_running_loop().time() + VISIBLE_TIMEOUT_S
    while True:
        described = await client.describe_topics(list(wanted)) if wanted else []
        ready = {
            topic["topic"]: sum(1 for part in topic["partitions"] if part["leader"] >= 0)
            for topic in described
        }
        missing = sorted(name for name, count in wanted.items() if ready.get(name, 0) != count)
        if not missing:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise TopicError(
                f"No leader for every partition of {', '.join(missing)} in {VISIBLE_TIMEOUT_S:.0f} s."
            )
        await asyncio.sleep(0.05)


async def _serving(client: AIOKafkaAdminClient, names: Sequence[str]) -> None:
    """Waits until every leader answers for its partitions: one that is named may not know of it yet. (A
    consumer would wait as well, and fill the log with errors meanwhile.)"""
    deadline = asyncio.get_running_loop().time() + VISIBLE_TIMEOUT_S
    while names:
        led: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for topic in await client.describe_topics(list(names)):
            for part in topic["partitions"]:
                led[part["leader"]][topic["topic"]].append((part["partition"], _LATEST))
        refusing = []
        for leader, topics in led.items():
            request = OffsetRequest(-1, 0, list(topics.items()))
            response = await client._send_request(request, leader)
            refusing += [
                f"{name}/{partition}"
                for name, parts in response.topics
                for partition, code, *_ in parts
                if code
            ]
        if not refusing:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise TopicError(f"No leader serves {', '.join(refusing)} after {VISIBLE_TIMEOUT_S:.0f} s.")
        await asyncio.sleep(0.05)


async def _partition_counts(client: AIOKafkaAdminClient) -> dict[str, int]:
    return {topic["topic"]: len(topic["partitions"]) for topic in await client.describe_topics()}


@dataclass(frozen=True)
class TopicStatus:
    """A topic as the cluster has it."""

    name: str
    partitions: int
    records: int
    """End offsets minus start offsets: transaction markers count too."""
    config: dict[str, str]


async def own_configs(settings: Settings, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What was set on each topic itself, not what it has from the brokers."""
    async with admin(settings) as client:
        return {name: own for name, (_, own) in (await _configs(client, names)).items()}


async def list_topics(settings: Settings, *, internal: bool = False) -> list[TopicStatus]:
    """Every topic of the cluster, by name; `internal` adds Kafka's own."""
    async with admin(settings) as client:
        counts = {
            name: count
            for name, count in sorted((await _partition_counts(client)).items())
            if internal or not name.startswith("__")
        }
        configs = await _configs(client, list(counts))
    start, end = await _offsets(settings, list(counts))
    records = dict.fromkeys(counts, 0)
    for partition, offset in end.items():
        records[partition.topic] += offset - start[partition]
    return [TopicStatus(name, counts[name], records[name], configs[name][0]) for name in counts]


# -- positions -------------------------------------------------------------------------------------


async def end_offsets(settings: Settings, topics: Sequence[str]) -> dict[TopicPartition, int]:
    """The offset after the last record of each partition of `topics`."""
    return (await _offsets(settings, topics))[1]


async def _offsets(
    settings: Settings, topics: Sequence[str]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """First and end offsets of each partition of `topics`."""
    if not topics:
        return {}, {}
    async with admin(settings) as client:
        described = await client.describe_topics(list(topics))
    partitions = [
        TopicPartition(topic["topic"], part["partition"])
        for topic in described
        for part in topic["partitions"]
    ]
    if missing := sorted(set(topics) - {partition.topic for partition in partitions}):
        raise TopicError(
            f"The cluster has no topic {', '.join(missing)}. Create them: `mini-visa topics apply`."
        )
    options = client_options(settings)
    consumer = AIOKafkaConsumer(**options, enable_auto_commit=False)
    try:
        async with _reachable(options):
            await consumer.start()
            consumer.assign(partitions)  # so their metadata come in one request, not in one each
            consumer.pause(*partitions)
            return await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()


async def committed_records(
    settings: Settings,
    topics: Sequence[str],
    start: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int] | None = None,
) -> AsyncGenerator[ConsumerRecord, None]:
    """Every committed record of `topics` from `start` (a partition that is not in it: from its first) up
    to `ends` (of None: where each ends now). Reads without a group, so it disturbs nobody. Raises
    `Stalled` when the broker delivers nothing for `STALLED_S`."""
    if not topics:
        return
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        if ends is None:
            ends = await end_offsets(settings, topics)
        consumer.assign(list(ends))
        consumer.pause(*ends)
        begins = await consumer.beginning_offsets(list(ends))
        open_: dict[TopicPartition, int] = {}
        for partition, end in ends.items():
            first = max(start.get(partition, 0), begins[partition])
            if first < end:
                open_[partition] = end
        for partition in open_:
            consumer.seek(partition, max(start.get(partition, 0), begins[partition]))
            consumer.resume(partition)
        positions: dict[TopicPartition, int] = {}
        alive = time.monotonic()
        while open_:
            fetched: dict[TopicPartition, list[Any]] = await consumer.getmany(
                *open_, timeout_ms=FETCH_WAIT_MS
            )
            for partition, batch in fetched.items():
                for record in batch:
                    if record.offset < open_[partition]:
                        yield record
            if fetched:
                alive = time.monotonic()  # only now: who reads may take his time over a batch
            for partition in list(open_):
                # The position passes what holds no record: commit markers, aborted batches.
                position = await _position(consumer, partition, alive)
                if positions.get(partition) != position:
                    positions[partition], alive = position, time.monotonic()
                if position >= open_[partition]:
                    del open_[partition]
            if time.monotonic() - alive > STALLED_S:
                raise _stalled(open_)
    finally:
        await asyncio.shield(consumer.stop())


async def _position(consumer: AIOKafkaConsumer, partition: TopicPartition, alive: float) -> int:
    try:
        async with asyncio.timeout(max(0.0, alive + STALLED_S - time.monotonic())):
            return int(await consumer.position(partition))
    except TimeoutError:
        raise _stalled([partition]) from None


def _stalled(places: Iterable[TopicPartition]) -> Stalled:
    shown = ", ".join(sorted(f"{place.topic}/{place.partition}" for place in places))
    return Stalled(
        f"Kafka delivered nothing of {shown} for {STALLED_S:.0f} s, and there is more. "
        "Does a broker hang, or a transaction? `mini-visa doctor` tells."
    )


async def newest_timestamp_ms(settings: Settings, topic: str) -> int | None:
    """The greatest timestamp among the last records of the topic's partitions; None when it is empty."""
    start, end = await _offsets(settings, [topic])
    last = {partition: offset for partition, offset in end.items() if offset > start[partition]}
    if not last:
        return None
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(last))
        for partition, offset in last.items():
            # The very last offset may hold a transaction's commit marker, which is not delivered.
            consumer.seek(partition, max(start[partition], offset - 2))
        batches = await consumer.getmany(timeout_ms=1_000)
    finally:
        await consumer.stop()
    return max((record.timestamp for records in batches.values() for record in records), default=None)


@dataclass(frozen=True)
class Lag:
    """Records of a partition that a consumer group has not processed. After transactions about one
    of them is a commit marker, which is no record."""

    group: str
    topic: str
    partition: int
    committed: int
    end: int
    oldest_ms: int | None = None
    """Time of the oldest of them; None: there is none, or it was not asked for."""

    @property
    def records(self) -> int:
        return max(0, self.end - self.committed)


def _coordinator_of(group: str, partitions: int) -> int:
    """The partition of __consumer_offsets whose leader is the group's coordinator, by Java's hash of a name
    in ASCII, a signed number, without its sign."""
    digest = 0
    for character in group.encode("ascii"):
        digest = (31 * digest + character) & 0xFFFFFFFF
    return min(digest, (1 << 32) - digest) % partitions


async def silent_coordinators(settings: Settings) -> dict[int, str]:
    """Partitions of __consumer_offsets whose coordinator refuses to work, and with which error.

    Asks each for a group that nobody has. One that loads takes some seconds, so it is asked for
    `COORDINATOR_S` before it counts. A cluster without groups has none.
    """
    async with admin(settings) as client:
        (found,) = await client.describe_topics([OFFSETS_TOPIC])
        count = len(found["partitions"])
        probes: dict[int, str] = {}
        names = (f"{settings.environment}-doctor-{number}" for number in itertools.count())
        while len(probes) < count:
            name = next(names)
            probes.setdefault(_coordinator_of(name, count), name)
        deadline = time.monotonic() + COORDINATOR_S
        while True:
            silent = {}
            for partition, name in probes.items():
                (answer,) = await client.describe_consumer_groups([name])
                code = answer.groups[0][0]
                if code in COORDINATOR_AWAY:
                    silent[partition] = COORDINATOR_AWAY[code]
            if not silent or time.monotonic() > deadline:
                return silent
            probes = {partition: probes[partition] for partition in silent}
            await asyncio.sleep(0.5)


async def lag(settings: Settings, *, ages: bool = False) -> list[Lag]:
    """The lag of every consumer group of this environment, by group, topic and partition; `ages`: with the
    time of the oldest record that each has before it."""
    async with admin(settings) as client:
        names = sorted(
            group[0]
            for group in await client.list_consumer_groups()
            if group[0].startswith(f"{settings.environment}.")
            or group[0].startswith(f"{settings.environment}-")
        )
        committed = {name: await client.list_consumer_group_offsets(name) for name in names}
    topics = sorted({partition.topic for offsets in committed.values() for partition in offsets})
    end = await end_offsets(settings, topics)
    found = sorted(
        (
            Lag(name, partition.topic, partition.partition, position.offset, end.get(partition, 0))
            for name, offsets in committed.items()
            for partition, position in offsets.items()
        ),
        key=lambda one: (one.group, one.topic, one.partition),
    )
    return await _with_ages(settings, found) if ages else found


async def _with_ages(settings: Settings, found: list[Lag]) -> list[Lag]:
    """Reads the first record after each committed offset. A marker is none: nothing follows it, no age."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        aged = []
        for one in found:
            partition = TopicPartition(one.topic, one.partition)
            oldest = None
            if one.records:
                consumer.assign([partition])
                consumer.seek(partition, one.committed)
                records = (await consumer.getmany(timeout_ms=FETCH_WAIT_MS, max_records=1)).get(partition)
                oldest = records[0].timestamp if records else None
            aged.append(replace(one, oldest_ms=oldest))
        return aged
    finally:
        await consumer.stop()
