"""The configuration of our own brokers. Kafka's defaults stand unless a line here says why not."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """What differs between the brokers of a cluster; the default is a cluster of one."""

    id: int = 1
    voters: str = ""
    """controller.quorum.voters of the whole cluster; "": this node alone."""
    cluster_id: str = ""
    replication: int = 1
    detour: tuple[int, int] | None = None
    """(port, advertised port) of a second listener: whoever asks on it is sent to the advertised port for all
    that follows. A test has a proxy there."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Lines of server.properties that win over those below: a listener with TLS, for one."""


def new_cluster_id() -> str:
    """A random id in Kafka's form: 16 bytes, URL-safe base64 without padding, not starting with '-'."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text


def properties(
    node: Node, *, port: int, controller_port: int, data: str, bind: str = "127.0.0.1"
) -> dict[str, str]:
    """server.properties of a broker that is also a controller. `bind`: where it listens; clients are
    told 127.0.0.1."""
    min_in_sync = max(1, node.replication - 1)
    values: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node.id,
        "controller.quorum.voters": node.voters or f"{node.id}@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://{bind}:{port},CONTROLLER://{bind}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DETOUR:PLAINTEXT",
        "log.dirs": data,
        # Safety: topics are made by `topics apply` only; a replica that lags never leads.
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        "default.replication.factor": node.replication,
        "min.insync.replicas": min_in_sync,
        # A record from the future would move a partition's time and expire its holds.
        "log.message.timestamp.after.max.ms": 60_000,
        # One machine: few internal partitions, created and loaded quickly.
        "offsets.topic.replication.factor": node.replication,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": node.replication,
        "transaction.state.log.min.isr": min_in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": node.replication,
        "share.coordinator.state.topic.min.isr": min_in_sync,
        # A service that restarts rejoins at once; tests use sessions shorter than 6 s.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        # A laptop that is closed for a month must find its consumers' positions again.
        "offsets.retention.minutes": 60 * 24 * 365,
        # A dead worker's open transaction hides what follows it: look for expired ones every second.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
        "transaction.max.timeout.ms": 300_000,
        # Retention is checked often enough, on segments small enough, that a bound on disk is a bound.
        "log.retention.check.interval.ms": 60_000,
        "log.segment.bytes": 256 << 20,
        "log.index.size.max.bytes": 1 << 20,
        # A coordinator that starts reads the logs that it keeps its groups and transactions in, and serves
        # nobody before it is through: what is said in them again and again is dropped from closed segments.
        "offsets.topic.segment.bytes": 2 << 20,
        "transaction.state.log.segment.bytes": 2 << 20,
        "log.cleaner.delete.retention.ms": 60_000,
        # Memory: the cleaner's default buffer alone is 128 MB.
        "log.cleaner.dedupe.buffer.size": 16 << 20,
        # The next transaction of a producer waits for the last one's markers: two milliseconds here, and it
        # is looked for every 20 ms by default.
        "add.partitions.to.txn.retry.backoff.ms": 1,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 4,
    }
    if node.detour is not None:
        listens, advertised = node.detour
        values["listeners"] = f"{values['listeners']},DETOUR://{bind}:{listens}"
        values["advertised.listeners"] = f"{values['advertised.listeners']},DETOUR://127.0.0.1:{advertised}"
    return {key: str(value) for key, value in {**values, **node.extra}.items()}
