"""What is written by scripts/manifests.py: it is up to date, and says what the program needs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkers import ROOT
from manifests import containers_of, manifests_of, of_kind, only

from mini_visa import topics
from mini_visa.broker.properties import Node, properties
from mini_visa.kafka import plan

pytestmark = pytest.mark.timeout(900)  # the first test builds its checker, once for ever

WRITER: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "manifests.py"))


@pytest.mark.parametrize("path", WRITER["files"](), ids=lambda path: path.name)
def test_the_file_is_what_the_program_says(path: Path):
    assert path.read_text() == WRITER["files"]()[path], "run `make manifests`"


def test_every_declared_topic_is_a_resource_with_its_configuration():
    made = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests_of("production"), "KafkaTopic")}
    settings = WRITER["settings"]()
    for topic in topics.ALL:
        wanted, spec = plan(settings, topic), made[topic.name]
        assert (spec["partitions"], spec["replicas"]) == (wanted.partitions, wanted.replication) and spec[
            "replicas"
        ] == 3
        shown = {
            key: str(value).lower() if value is False else str(value) for key, value in spec["config"].items()
        }
        assert shown == wanted.config
        assert spec["config"]["min.insync.replicas"] == 2
    assert {topics.dead_letters(service) for service in topics.SERVICES} <= made.keys()


COUNTED_ON = (
    "auto.create.topics.enable", "unclean.leader.election.enable", "log.message.timestamp.after.max.ms",
    "offsets.retention.minutes", "transaction.max.timeout.ms",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms", "add.partitions.to.txn.retry.backoff.ms",
)  # fmt: skip
"""Of a broker, wherever it runs: what the services' safety and speed were tested with."""


def broker_configurations() -> dict[str, dict[str, str]]:
    single = only(manifests_of("local"), "StatefulSet", "kafka")
    variables = {one["name"]: one["value"] for one in containers_of(single)[0]["env"]}
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    strimzi = only(manifests_of("production"), "Kafka", "mini-visa")["spec"]["kafka"]["config"]
    named = {name: f"KAFKA_{name.upper().replace('.', '_')}" for name in COUNTED_ON}
    return {
        "one pod": {name: variables.get(variable, "") for name, variable in named.items()},
        "Compose": {
            name: compose["services"]["kafka"]["environment"].get(variable, "")
            for name, variable in named.items()
        },
        "Strimzi": {name: str(strimzi.get(name, "")).lower() for name in COUNTED_ON},
    }


@pytest.mark.parametrize("where", ["one pod", "Compose", "Strimzi"])
def test_every_broker_is_configured_as_the_one_that_everything_was_tested_on(where: str):
    tested = properties(Node(), port=1, controller_port=2, data="/d")
    assert broker_configurations()[where] == {name: tested[name] for name in COUNTED_ON}


def rights_of(user: str) -> dict[tuple[str, str], set[str]]:
    """(kind, name) -> operations other than Describe."""
    spec = only(manifests_of("production"), "KafkaUser", user)["spec"]
    assert spec["authentication"] == {"type": "tls"}
    return {
        (rule["resource"]["type"], rule["resource"]["name"]): set(rule["operations"]) - {"Describe"}
        for rule in spec["authorization"]["acls"]
    }


def test_the_source_of_truth_has_one_writer():
    users = {one["metadata"]["name"] for one in of_kind(manifests_of("production"), "KafkaUser")}
    assert users == {"gateway", *topics.SERVICES}
    writers = {user for user in users if "Write" in rights_of(user).get(("topic", "payment.events"), set())}
    assert writers == {"authorization"}


def test_a_worker_may_do_what_it_does_and_no_more():
    assert rights_of("reversal") == {
        ("topic", "payment.events"): {"Read"},
        ("topic", "account.commands"): {"Write"},
        ("topic", "clearing.submissions"): {"Write"},
        ("topic", "payment.sagas"): {"Write"},
        ("topic", "reversal.dead-letters"): {"Write", "DescribeConfigs"},
        ("topic", "live.reversal.compensate.changelog"): {"Read", "Write", "DescribeConfigs"},
        ("transactionalId", "live.reversal.compensate."): {"Write"},
        ("group", "live.reversal.compensate"): {"Read"},
    }


def test_the_gateway_may_not_read_what_others_are_told_but_alerts_and_what_rules_are_tried_on():
    assert rights_of("gateway") == {
        ("topic", "card.requests"): {"Read", "Write"},
        ("topic", "fraud.alerts"): {"Read"},
        ("topic", "account.commands"): {"Write"},
        ("topic", "gateway.replies"): {"Read"},
        ("group", "live.risk.assess"): set(),  # to look at
        ("group", "live.authorization.decide"): set(),
    }


@pytest.mark.parametrize("service", topics.SERVICES)
def test_workers_scale_as_the_guide_says_and_come_down_slower(service: str):
    spec = only(manifests_of("production"), "ScaledObject", service)["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 20)
    behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleUp"]["policies"] == [{"type": "Percent", "value": 100, "periodSeconds": 30}]
    assert behaviour["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
    triggers = {one.get("name", one["type"]): one for one in spec["triggers"]}
    assert triggers["cpu"]["metadata"]["value"] == "70" and triggers["memory"]["metadata"]["value"] == "80"
    assert (
        "+ 5)" in triggers["lag"]["metadata"]["query"]
        and "> bool 60)" in triggers["lag"]["metadata"]["query"]
    )
    assert "+ 2)" in triggers["throughput"]["metadata"]["query"]
    assert "> bool 10000)" in triggers["throughput"]["metadata"]["query"]
