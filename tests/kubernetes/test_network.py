"""Every flow of the architecture has a policy that allows it, and nothing else is allowed."""

from __future__ import annotations

import pytest
from manifests import OVERLAYS, manifests_of, of_kind
from reach import OUTSIDE, Actor, Flow, actors_of, flows

from mini_visa import topics

pytestmark = pytest.mark.timeout(900)  # the first test builds its checker, once for ever

SQL, POOL, KAFKA, HTTP, WORKER, HOUSE, DNS = 5432, 6432, 9092, 8080, 8081, 8090, 53
CONTROL, REPLICATION, AGENT, EXPORTER, ISTIOD = 9090, 9091, 8443, 9404, 15012
API_SERVER = (443, 6443)

OTHERS = (
    Actor("dns", "kube-system", {"k8s-app": "kube-dns"}, (("TCP", DNS), ("UDP", DNS))),
    Actor("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    Actor("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    Actor("ingress", "ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"}),
    Actor("istio ingress", "istio-system", {"istio": "ingressgateway"}),
    Actor("istiod", "istio-system", {"app": "istiod"}, (("TCP", ISTIOD),)),
    Actor("stranger", "default", {"app.kubernetes.io/name": "gateway"}, (("TCP", HTTP), ("TCP", 443))),
    Actor("twin", "staging", {"app.kubernetes.io/component": "worker"}, (("TCP", WORKER),)),
)
"""Pods of other namespaces, some of which only look like ours."""

STRIMZI = {"strimzi.io/cluster": "mini-visa", "app.kubernetes.io/instance": "mini-visa"}
OPERATED = (
    Actor(
        "kafka",
        "mini-visa",
        STRIMZI | {"app.kubernetes.io/name": "kafka"},
        (("TCP", CONTROL), ("TCP", REPLICATION), ("TCP", KAFKA), ("TCP", AGENT)),
    ),
    Actor("entity operator", "mini-visa", STRIMZI | {"app.kubernetes.io/name": "entity-operator"}),
    Actor(
        "exporter",
        "mini-visa",
        STRIMZI | {"app.kubernetes.io/name": "kafka-exporter"},
        (("TCP", EXPORTER),),
    ),
    Actor("strimzi", "strimzi", {"strimzi.io/kind": "cluster-operator"}),
)
"""Pods that Strimzi makes, with the labels that it gives them."""


def others(overlay: str) -> tuple[Actor, ...]:
    return OTHERS if overlay in ("local", "blue-green") else OTHERS + OPERATED


def architecture(overlay: str) -> set[Flow]:
    """docs/architecture.md's arrows as connections: a consumer and a producer both open one to Kafka."""
    ours = {actor.name for actor in actors_of(manifests_of(overlay))}
    gateways = {name for name in ours if name.startswith("gateway")}
    expected = {(name, "dns", DNS) for name in ours}
    expected |= {(service, "kafka", KAFKA) for service in topics.SERVICES}
    expected |= {("prometheus", service, WORKER) for service in topics.SERVICES}
    expected |= {(gateway, "kafka", KAFKA) for gateway in gateways}
    expected |= {("prometheus", gateway, HTTP) for gateway in gateways}
    expected |= {("projection", "postgresql", SQL)}
    if overlay in ("local", "blue-green"):
        expected |= {("kafka", "kafka", KAFKA)}
        expected |= {(gateway, "postgresql", SQL) for gateway in gateways}
        expected |= {("ingress", gateway, HTTP) for gateway in gateways}
        expected |= {("make-secrets", OUTSIDE, port) for port in API_SERVER}
        expected |= {("make-secrets", "stranger", 443)}  # by its port: the API server has no pod to name
    else:
        expected |= {("istio ingress", gateway, HTTP) for gateway in gateways}
        expected |= {(gateway, "istiod", ISTIOD) for gateway in gateways}
        expected |= {(gateway, "pgbouncer", POOL) for gateway in gateways}
        expected |= {("pgbouncer", "postgresql-replica", SQL)}
        expected |= {(f"postgresql-{who}", "postgresql", SQL) for who in ("replica", "backup", "roles")}
        expected |= operated_kafka()
    if overlay == "production":
        expected |= {("connector", OUTSIDE, 443)}
    else:
        expected |= {("connector", "clearing-house", HOUSE)}
    if overlay == "load-test":
        expected |= {("load-generator", gateway, HTTP) for gateway in gateways}
    return expected


def operated_kafka() -> set[Flow]:
    """What a Kafka of Strimzi's needs inside."""
    made = ("entity operator", "exporter")
    found = {(name, "dns", DNS) for name in ("kafka", *made)}
    found |= {
        ("kafka", "kafka", CONTROL),
        ("kafka", "kafka", REPLICATION),
        ("prometheus", "exporter", EXPORTER),
    }
    found |= {(name, "kafka", REPLICATION) for name in made}
    found |= {("strimzi", "kafka", port) for port in (CONTROL, REPLICATION, AGENT)}
    found |= {("entity operator", OUTSIDE, port) for port in API_SERVER}
    return found | {("entity operator", "stranger", 443)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_reach_whom_is_what_the_architecture_says(overlay: str):
    allowed, expected = flows(manifests_of(overlay), others(overlay)), architecture(overlay)
    assert sorted(expected - allowed) == [], "flows of the architecture that no policy allows"
    assert sorted(allowed - expected) == [], "flows that policies allow and the architecture does not have"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_under_the_policy_that_denies_everything(overlay: str):
    [deny] = [
        one
        for one in of_kind(manifests_of(overlay), "NetworkPolicy")
        if one["metadata"]["name"] == "default-deny"
    ]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_missing_policy_is_noticed():
    manifests = [one for one in manifests_of("local") if one["metadata"]["name"] != "workers"]
    assert ("risk", "kafka", KAFKA) not in flows(manifests, OTHERS)


def test_without_the_policy_that_denies_everything_strangers_get_in():
    manifests = [one for one in manifests_of("local") if one["kind"] != "NetworkPolicy"]
    assert ("stranger", "gateway", HTTP) in flows(manifests, OTHERS)
