"""Writes what of deploy/k8s follows from the program: Kafka's topics, who may do what with them, and how
workers scale. `make manifests`; a test compares.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from mini_visa import topics
from mini_visa.clearing_house.connector import SERVICE as CONNECTOR
from mini_visa.gateway.exchange import NEEDED_TOPICS
from mini_visa.gateway.vigil import GROUPS as VIGIL
from mini_visa.kafka import TopicPlan, changelog_plan, plans
from mini_visa.readmodel.projector import SERVICE as PROJECTION
from mini_visa.readmodel.views import ALL as VIEWS
from mini_visa.settings import Settings

DEPLOY: Final = Path(__file__).parent.parent / "deploy" / "k8s"
CLUSTER: Final = "mini-visa"
"""Name of Strimzi's Kafka."""
NAMESPACE: Final = "mini-visa"
WRITTEN: Final = "# Written by `make manifests` from {source}. Change it there.\n"

WORKERS_MIN: Final = 2
WORKERS_MAX: Final = 20
LAG_S_MAX: Final = 60
RECORDS_PER_S_MAX: Final = 10_000
STEP_FOR_LAG, STEP_FOR_THROUGHPUT = 5, 2
"""Pods more than a minute before."""

Manifest = dict[str, Any]


def settings() -> Settings:
    """What the clusters have in common, from the base."""
    lines = (DEPLOY / "base" / "settings.env").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return Settings(**{name.removeprefix("MINI_VISA_").lower(): value for name, _, value in pairs})


# -- topics ----------------------------------------------------------------------------------------


def processors() -> Iterator[tuple[str, Any]]:
    """(service, processor) of the whole system."""
    for service in topics.SERVICES:
        for processor in importlib.import_module(f"agents.{service}").app.processors.values():
            yield service, processor


def changelogs(configured: Settings) -> Iterator[TopicPlan]:
    for service, processor in processors():
        name = f"{configured.environment}.{service}.{processor.name}.changelog"
        yield changelog_plan(configured, name, configured.partitions)


def topic_manifests(configured: Settings) -> Iterator[Manifest]:
    for plan in [*plans(configured), *changelogs(configured)]:
        yield {
            "apiVersion": "kafka.strimzi.io/v1",
            "kind": "KafkaTopic",
            "metadata": _metadata(plan.name),
            "spec": {
                "partitions": plan.partitions,
                "replicas": plan.replication,
                "config": {key: _typed(value) for key, value in sorted(plan.config.items())},
            },
        }


def _typed(value: str) -> str | int | bool:
    """As Strimzi shows values: numbers and booleans are not strings."""
    if value.lstrip("-").isdigit():
        return int(value)
    return {"true": True, "false": False}.get(value, value)


# -- users -----------------------------------------------------------------------------------------


def rights(configured: Settings) -> dict[str, list[Manifest]]:
    """What each service may do, and nothing else: by the principal of its certificate."""
    gateway = _Rights()
    for topic in NEEDED_TOPICS:
        gateway.grant("topic", topic.name, "Read" if topic is topics.GATEWAY_REPLIES else "Write")
    for group in VIGIL:  # do they work? their positions say so
        gateway.grant("group", f"{configured.environment}.{group}")
    gateway.grant("topic", topics.FRAUD_ALERTS.name, "Read")  # streamed to its clients
    gateway.grant("topic", topics.CARD_REQUESTS.name, "Read")  # back-tests of rules
    return {"gateway": gateway.rules()} | {
        service: _rights_of_worker(configured, service) for service in topics.SERVICES
    }


def _rights_of_worker(configured: Settings, service: str) -> list[Manifest]:
    own = [processor for name, processor in processors() if name == service]
    prefix, granted = f"{configured.environment}.{service}", _Rights()
    for processor in own:
        name = f"{prefix}.{processor.name}"
        granted.grant(
            "topic", processor.source.name, "Read", *(["Write"] if processor.tick is not None else [])
        )
        for sink in processor.sinks:
            granted.grant("topic", sink.name, "Write")
        # It compares the configuration with what it needs, and finds it right: Strimzi made the topic.
        granted.grant("topic", f"{name}.changelog", "Read", "Write", "DescribeConfigs")
        granted.grant("topic", topics.dead_letters(service), "Write", "DescribeConfigs")
        granted.grant("transactionalId", f"{name}.", "Write", prefix=True)
        granted.grant("group", name, "Read")
    if not own:  # a follower: a consumer of its own, without transactions
        granted.grant("topic", topics.dead_letters(service), "Write")
        granted.grant("group", prefix, "Read")
    if service == CONNECTOR:
        granted.grant("topic", topics.CLEARING_SUBMISSIONS.name, "Read")
        granted.grant("topic", topics.ACCOUNT_COMMANDS.name, "Write")
    if service == PROJECTION:
        for view in VIEWS:
            granted.grant("topic", view.topic.name, "Read")
    return granted.rules()


class _Rights:
    """Collects operations by what they are allowed on. To describe a thing comes with every right to it."""

    def __init__(self) -> None:
        self._operations: dict[tuple[str, str, str], list[str]] = {}

    def grant(self, kind: str, name: str, *operations: str, prefix: bool = False) -> None:
        known = self._operations.setdefault((kind, name, "prefix" if prefix else "literal"), [])
        known += [operation for operation in (*operations, "Describe") if operation not in known]

    def rules(self) -> list[Manifest]:
        return [
            {
                "resource": {"type": kind, "name": name, "patternType": pattern},
                "operations": sorted(operations),
            }
            for (kind, name, pattern), operations in sorted(self._operations.items())
        ]


def user_manifests(configured: Settings) -> Iterator[Manifest]:
    for name, acls in rights(configured).items():
        yield {
            "apiVersion": "kafka.strimzi.io/v1",
            "kind": "KafkaUser",
            "metadata": _metadata(name),
            "spec": {
                "authentication": {"type": "tls"},
                "authorization": {"type": "simple", "acls": acls},
            },
        }


def _metadata(name: str) -> Manifest:
    return {"name": name, "namespace": NAMESPACE, "labels": {"strimzi.io/cluster": CLUSTER}}


# -- scaling ---------------------------------------------------------------------------------------


def scaler_manifests() -> Iterator[Manifest]:
    for service in topics.SERVICES:
        yield scaler(service)


def scaler(service: str) -> Manifest:
    """KEDA's. A Prometheus trigger's query says how many pods there should be: with a threshold of 1 and an
    average per pod, the autoscaler makes it so. "5 more than a minute ago" is then 5 a minute."""
    pods = f'count(up{{namespace="{NAMESPACE}",service="{service}"}} offset 1m)'
    lag_s = (
        f'sum(mini_visa_lag_records{{service="{service}"}}) '
        f'/ clamp_min(sum(rate(mini_visa_records_total{{service="{service}"}}[1m])), 1)'
    )
    throughput = f'sum(rate(mini_visa_records_total{{service="{service}"}}[1m]))'
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {
            "name": service,
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/name": service, "app.kubernetes.io/component": "worker"},
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": service},
            "minReplicaCount": WORKERS_MIN,
            "maxReplicaCount": WORKERS_MAX,
            "pollingInterval": 15,
            "cooldownPeriod": 600,
            "advanced": {
                "restoreToOriginalReplicaCount": False,
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleUp": {
                            "stabilizationWindowSeconds": 0,
                            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
                        },
                        # One at a time and seldom: each step moves partitions, and restores their tables.
                        "scaleDown": {
                            "stabilizationWindowSeconds": 600,
                            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
                        },
                    }
                },
            },
            "triggers": [
                {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}},
                {"type": "memory", "metricType": "Utilization", "metadata": {"value": "80"}},
                _prometheus("lag", f"({pods} + {STEP_FOR_LAG}) * (({lag_s}) > bool {LAG_S_MAX})"),
                _prometheus(
                    "throughput",
                    f"({pods} + {STEP_FOR_THROUGHPUT}) * (({throughput}) > bool {RECORDS_PER_S_MAX})",
                ),
            ],
        },
    }


def _prometheus(name: str, query: str) -> Manifest:
    return {
        "type": "prometheus",
        "name": name,
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": "http://prometheus.monitoring.svc:9090",
            "query": query,
            "threshold": "1",
            # No figure is no reason to do anything: a Prometheus that is away must not scale.
            "ignoreNullValues": "true",
        },
    }


# -- files -----------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Lists indented, as in the files that people write."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(source: str, manifests: Iterable[Manifest]) -> str:
    documents = (yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=200) for one in manifests)
    return WRITTEN.format(source=source) + "---\n".join(documents)


def files() -> dict[Path, str]:
    """Every file that is written, with its text."""
    configured, components = settings(), DEPLOY / "components"
    return {
        components / "kafka-strimzi" / "topics.yaml": text(
            "mini_visa/topics.py and the processors", topic_manifests(configured)
        ),
        components / "kafka-strimzi" / "users.yaml": text(
            "the processors' sources, sinks and tables", user_manifests(configured)
        ),
        components / "autoscaling" / "workers.yaml": text("scripts/manifests.py", scaler_manifests()),
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
