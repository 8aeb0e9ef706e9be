"""Every flow of the architecture has a policy that allows it, and nothing else is allowed."""

from __future__ import annotations

import pytest
from manifests import OVERLAYS, manifests_of, of_kind
from reach import OUTSIDE, Actor, Flow, actors_of, flows

from mini_visa import topics

pytestmark = pytest.mark.timeout(900)  # the first test builds its checker, once for ever

SQL, POOL, KAFKA, HTTP, WORKER, HOUSE, DNS = 5432, 6432, 9092, 8080, 8081, 8090, 53

OTHERS = (
    Actor("dns", "kube-system", {"k8s-app": "kube-dns"}, (("TCP", DNS), ("UDP", DNS))),
    Actor("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    Actor("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    Actor("ingress", "ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"}),
    Actor("istio ingress", "istio-system", {"istio": "ingressgateway"}),
    Actor("stranger", "default", {"app.kubernetes.io/name": "gateway"}, (("TCP", HTTP), ("TCP", 443))),
    Actor("twin", "staging", {"app.kubernetes.io/component": "worker"}, (("TCP", WORKER),)),
)
"""Pods of other namespaces, some of which only look like ours."""


def architecture(overlay: str) -> set[Flow]:
    """docs/architecture.md's arrows as connections: a consumer and a producer both open one to Kafka."""
    manifests = manifests_of(overlay)
    ours = {actor.name for actor in actors_of(manifests)}
    expected = {(name, "dns", DNS) for name in ours}
    expected |= {(service, "kafka", KAFKA) for service in topics.SERVICES}
    expected |= {("prometheus", service, WORKER) for service in topics.SERVICES}
    expected |= {("gateway", "kafka", KAFKA), ("prometheus", "gateway", HTTP)}
    expected |= {("projection", "postgresql", SQL), ("connector", "clearing-house", HOUSE)}
    if overlay == "local":
        expected |= {("kafka", "kafka", KAFKA), ("gateway", "postgresql", SQL), ("ingress", "gateway", HTTP)}
        expected |= {
            ("make-secrets", OUTSIDE, 443),
            ("make-secrets", OUTSIDE, 6443),
            ("make-secrets", "stranger", 443),
        }
    return expected


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_reach_whom_is_what_the_architecture_says(overlay: str):
    allowed, expected = flows(manifests_of(overlay), OTHERS), architecture(overlay)
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
