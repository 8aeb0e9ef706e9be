"""Who may open a connection to whom, worked out from NetworkPolicies as an enforcing network does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from manifests import WORKLOADS, Manifest, containers_of, labels_of, of_kind, selects

NAMESPACE: Final = "mini-visa"
OUTSIDE: Final = "outside"
"""An address beyond the cluster, or one that no pod has."""


@dataclass(frozen=True)
class Actor:
    """Pods that a policy treats alike."""

    name: str
    namespace: str
    labels: dict[str, str] = field(hash=False)
    ports: tuple[tuple[str, int], ...] = ()
    """(protocol, port) that its containers listen on."""


Flow = tuple[str, str, int]
"""From, to, port."""


def actors_of(manifests: Iterable[Manifest]) -> list[Actor]:
    """The namespace's workloads."""
    found = []
    for workload in of_kind(manifests, *WORKLOADS):
        if workload["metadata"]["namespace"] == NAMESPACE:
            ports = {
                (port.get("protocol", "TCP"), port["containerPort"])
                for container in containers_of(workload)
                for port in container.get("ports", ())
            }
            found.append(
                Actor(workload["metadata"]["name"], NAMESPACE, labels_of(workload), tuple(sorted(ports)))
            )
    return found


def flows(manifests: list[Manifest], others: Iterable[Actor]) -> set[Flow]:
    """Every connection that is allowed between the namespace's workloads, `others` and the world outside."""
    policies = [
        one for one in of_kind(manifests, "NetworkPolicy") if one["metadata"]["namespace"] == NAMESPACE
    ]
    everyone = [*actors_of(manifests), *others]
    found: set[Flow] = set()
    for source in everyone:
        for target in everyone:
            if source.namespace != NAMESPACE and target.namespace != NAMESPACE:
                continue
            for protocol, port in target.ports:
                if _leaves(policies, source, target, protocol, port) and _enters(
                    policies, source, target, protocol, port
                ):
                    found.add((source.name, target.name, port))
        found |= {(source.name, OUTSIDE, port) for port in _outside(policies, source)}
    return found


def _leaves(policies: list[Manifest], source: Actor, target: Actor, protocol: str, port: int) -> bool:
    return _allowed(policies, "Egress", "egress", "to", source, target, protocol, port)


def _enters(policies: list[Manifest], source: Actor, target: Actor, protocol: str, port: int) -> bool:
    return _allowed(policies, "Ingress", "ingress", "from", target, source, protocol, port)


def _allowed(
    policies: list[Manifest], kind: str, key: str, peers: str,
    subject: Actor, peer: Actor, protocol: str, port: int,
) -> bool:  # fmt: skip
    """No policy of this kind selects the subject, or one of its rules allows the peer at the port."""
    binding = [one for one in policies if kind in one["spec"]["policyTypes"] and _selected(one, subject)]
    if not binding:
        return True
    rules = [rule for one in binding for rule in one["spec"].get(key) or ()]
    return any(
        _port(rule, protocol, port) and (peers not in rule or any(_peer(one, peer) for one in rule[peers]))
        for rule in rules
    )


def _selected(policy: Manifest, actor: Actor) -> bool:
    return actor.namespace == NAMESPACE and selects(policy["spec"]["podSelector"], actor.labels)


def _port(rule: Manifest, protocol: str, port: int) -> bool:
    wanted = rule.get("ports")
    return not wanted or any(
        one.get("protocol", "TCP") == protocol and one.get("port") == port for one in wanted
    )


def _peer(peer: Manifest, actor: Actor) -> bool:
    if "ipBlock" in peer:
        return False
    namespaces = peer.get("namespaceSelector")
    there = (
        actor.namespace == NAMESPACE
        if namespaces is None
        else selects(namespaces, {"kubernetes.io/metadata.name": actor.namespace})
    )
    return there and selects(peer.get("podSelector", {}), actor.labels)


def _outside(policies: list[Manifest], source: Actor) -> Iterator[int]:
    """Ports at which an address that is no pod's may be asked."""
    binding = [one for one in policies if "Egress" in one["spec"]["policyTypes"] and _selected(one, source)]
    for rule in (rule for one in binding for rule in one["spec"].get("egress") or ()):
        if "to" not in rule or any("ipBlock" in peer for peer in rule["to"]):
            ports: list[dict[str, Any]] = rule.get("ports", [{"port": 0}])
            yield from (one["port"] for one in ports)
