"""The project's rules for its manifests, where no schema and no general checker knows them.

Each takes an overlay's manifests and returns what is wrong, a line each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from checkers import ROOT
from manifests import (
    WORKLOADS,
    Manifest,
    containers_of,
    labels_of,
    name_of,
    of_kind,
    quantity,
    selects,
    template_of,
)
from pydantic import ValidationError

from mini_visa import topics
from mini_visa.settings import Settings

Rule = Callable[[list[Manifest]], Iterator[str]]

PREFIX: Final = "MINI_VISA_"
NOT_IN_A_CLUSTER: Final = {
    "broker_heap_bytes": "of the broker that one machine starts for itself",
    "broker_image": "the same, in Docker",
    "kafka_sasl_mechanism": "clients show certificates",
    "kafka_username": "clients show certificates",
    "kafka_password": "clients show certificates",
    "gateway_id": "follows from the pod's name",
    "fees_file": "one rate for all, unless an overlay mounts a schedule",
}
"""Settings that no manifest names, and why."""
OPTIONS: Final = ("api_key", "url")
"""Options of commands that are variables too, and no settings."""
ONLY_WITH_TLS: Final = ("kafka_ca_file", "kafka_cert_file", "kafka_key_file")
MADE_ELSEWHERE: Final = {
    "database": "components/generated-secrets, or an ExternalSecret",
    "gateway-keys": "the same",
    "gateway-tls": "cert-manager, or whoever runs the ingress",
}
"""Secrets that are in no manifest, because secrets are not."""
TALKS_TO_THE_API_SERVER: Final = ("make-secrets",)
RUNS_ALONE: Final = ("clearing-house", "kafka", "postgresql")
"""StatefulSets with a fixed number of pods."""


def containers_are_bounded(manifests: list[Manifest]) -> Iterator[str]:
    for workload in of_kind(manifests, *WORKLOADS):
        for container in containers_of(workload):
            resources = container.get("resources", {})
            for kind in ("requests", "limits"):
                for what in ("cpu", "memory", "ephemeral-storage"):
                    if what not in resources.get(kind, {}):
                        yield f"{name_of(workload)}: {container['name']} has no {kind}.{what}"
        for volume in template_of(workload)["spec"].get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{name_of(workload)}: the emptyDir {volume['name']} has no sizeLimit"


def containers_are_probed(manifests: list[Manifest]) -> Iterator[str]:
    for workload in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet"):
        for container in template_of(workload)["spec"]["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe not in container:
                    yield f"{name_of(workload)}: {container['name']} has no {probe}"


def containers_are_locked(manifests: list[Manifest]) -> Iterator[str]:
    for workload in of_kind(manifests, *WORKLOADS):
        pod = template_of(workload)["spec"]
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("runAsUser", 0) < 10_000:
            yield f"{name_of(workload)}: pods must run as a user of their own, 10000 or more"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name_of(workload)}: no seccompProfile RuntimeDefault"
        if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{name_of(workload)}: shares its node's namespaces"
        for container in containers_of(workload):
            own = container.get("securityContext", {})
            wanted = {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            if own != wanted:
                yield f"{name_of(workload)}: the securityContext of {container['name']} is {own}"


def tokens_are_not_given_away(manifests: list[Manifest]) -> Iterator[str]:
    accounts = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): one
        for one in of_kind(manifests, "ServiceAccount")
    }
    for account in accounts.values():
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name_of(account)}: automountServiceAccountToken is not false"
    for workload in of_kind(manifests, *WORKLOADS):
        pod, name = template_of(workload)["spec"], workload["metadata"]["name"]
        if pod.get("automountServiceAccountToken", True) and name not in TALKS_TO_THE_API_SERVER:
            yield f"{name_of(workload)}: pods get a token for the API server"
        account = pod.get("serviceAccountName", "default")
        if account == "default" or (workload["metadata"]["namespace"], account) not in accounts:
            yield f"{name_of(workload)}: {account} is not a service account of its own"


def rights_are_small(manifests: list[Manifest]) -> Iterator[str]:
    for role in of_kind(manifests, "Role", "ClusterRole"):
        for rule in role["rules"]:
            if "*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]:
                yield f"{name_of(role)}: a rule with *"
            if "secrets" in rule["resources"] and set(rule["verbs"]) - {"create"}:
                yield f"{name_of(role)}: may {', '.join(rule['verbs'])} secrets"
            if (
                set(rule["resources"]) & {"pods/exec", "pods/attach"}
                and role["metadata"]["name"] != "debugger"
            ):
                yield f"{name_of(role)}: may run commands beside card data"
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        for one in of_kind(manifests, kind):
            yield f"{name_of(one)}: a right in every namespace"


def objects_have_their_labels(manifests: list[Manifest]) -> Iterator[str]:
    for workload in of_kind(manifests, *WORKLOADS):
        wanted = {"name", "instance", "component", "part-of"}
        missing = wanted - {label.removeprefix("app.kubernetes.io/") for label in labels_of(workload)}
        if missing:
            yield f"{name_of(workload)}: its pods lack the labels {', '.join(sorted(missing))}"
        for claim in workload["spec"].get("volumeClaimTemplates", ()):
            if "app.kubernetes.io/version" in claim["metadata"].get("labels", {}):
                yield f"{name_of(workload)}: a version in a claim template can never be upgraded"
    for one in manifests:
        if "app.kubernetes.io/version" in str(one.get("spec", {}).get("selector", "")):
            yield f"{name_of(one)}: selects by version"


def selectors_find_pods(manifests: list[Manifest]) -> Iterator[str]:
    pods = [
        (one["metadata"]["namespace"], labels_of(one), one)
        for one in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet")
    ]
    for one in of_kind(manifests, "Deployment", "StatefulSet"):
        if not selects(one["spec"]["selector"], labels_of(one)):
            yield f"{name_of(one)}: does not select its own pods"
        for other in of_kind(manifests, "Deployment", "StatefulSet"):
            if other is not one and selects(one["spec"]["selector"], labels_of(other)):
                yield f"{name_of(one)}: selects the pods of {name_of(other)} too"
    for one in of_kind(manifests, "Service", "PodDisruptionBudget"):
        selector = one["spec"].get("selector")
        if selector is None:
            continue
        wanted = {"matchLabels": selector} if one["kind"] == "Service" else selector
        found = [
            workload
            for namespace, labels, workload in pods
            if namespace == one["metadata"]["namespace"] and selects(wanted, labels)
        ]
        if not found:
            yield f"{name_of(one)}: selects no pod"
        for port in one["spec"].get("ports", ()):
            for workload in found:
                ports = [each for container in containers_of(workload) for each in container.get("ports", ())]
                target = port.get("targetPort", port["port"])
                if target not in [each["name"] for each in ports] + [each["containerPort"] for each in ports]:
                    yield f"{name_of(one)}: {name_of(workload)} has no port {target}"
    for one in of_kind(manifests, "StatefulSet"):
        services = [each["metadata"]["name"] for each in of_kind(manifests, "Service")]
        if one["spec"]["serviceName"] not in services:
            yield f"{name_of(one)}: there is no service {one['spec']['serviceName']}"


def references_exist(manifests: list[Manifest]) -> Iterator[str]:
    def names(kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in of_kind(manifests, kind)}

    secrets = names("Secret") | set(MADE_ELSEWHERE) | names("KafkaUser")
    secrets |= {one["spec"]["secretName"] for one in of_kind(manifests, "Certificate")}
    secrets |= {f"{name}-cluster-ca-cert" for name in names("Kafka")}
    for one in of_kind(manifests, "ExternalSecret"):
        secrets.add(one["spec"].get("target", {}).get("name", one["metadata"]["name"]))
    for workload in of_kind(manifests, *WORKLOADS):
        pod = template_of(workload)["spec"]
        if pod.get("priorityClassName") and pod["priorityClassName"] not in names("PriorityClass"):
            yield f"{name_of(workload)}: there is no PriorityClass {pod['priorityClassName']}"
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        for container in containers_of(workload):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes.keys() | claims:
                    yield f"{name_of(workload)}: {container['name']} mounts {mount['name']}, which is none"
        for kind, name in _named(pod):
            if name not in (secrets if kind == "secret" else names("ConfigMap")):
                yield f"{name_of(workload)}: there is no {kind} {name}"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in names("PersistentVolumeClaim"):
                yield f"{name_of(workload)}: there is no PersistentVolumeClaim {claim}"


def _named(node: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of every ConfigMap and Secret that must exist for a pod to start."""
    if isinstance(node, list):
        for each in node:
            yield from _named(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            kind = "secret" if key.startswith("secret") else "config map"
            if key in ("configMapRef", "configMapKeyRef", "secretRef", "secretKeyRef", "configMap", "secret"):
                if isinstance(value, dict) and not value.get("optional"):
                    yield kind, value.get("name") or value["secretName"]
            else:
                yield from _named(value)


def pods_have_time_to_stop(manifests: list[Manifest]) -> Iterator[str]:
    settings = settings_of(manifests)
    needed = {
        "gateway": 5.0 + settings.gateway_drain_s,
        "worker": settings.drain_timeout_s + settings.transaction_timeout_s,
    }
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        component = labels_of(workload).get("app.kubernetes.io/component", "")
        grace = template_of(workload)["spec"].get("terminationGracePeriodSeconds", 30)
        if grace <= needed.get(component, 0.0):
            yield f"{name_of(workload)}: has {grace} s to stop and may need {needed[component]:g} s"


def every_service_runs_as_it_must(manifests: list[Manifest]) -> Iterator[str]:
    sets = {one["metadata"]["name"]: one for one in of_kind(manifests, "StatefulSet")}
    budgets = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests, "PodDisruptionBudget")}
    for service in topics.SERVICES:
        if service not in sets:
            yield f"no StatefulSet for {service}"
            continue
        spec = sets[service]["spec"]
        worker = spec["template"]["spec"]["containers"][0]
        if worker["args"] != ["worker", service]:
            yield f"{service}: runs {worker['args']}"
        if spec.get("podManagementPolicy") != "Parallel":
            yield f"{service}: pods wait for one another"
        instance = [one for one in worker["env"] if one["name"] == f"{PREFIX}INSTANCE"]
        if (
            not instance
            or instance[0].get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") != "metadata.name"
        ):
            yield f"{service}: its membership is not static: MINI_VISA_INSTANCE must be the pod's name"
        if spec.get("persistentVolumeClaimRetentionPolicy") != {
            "whenDeleted": "Retain",
            "whenScaled": "Retain",
        }:
            yield f"{service}: volumes do not outlive pods"
        keys = {one["topologyKey"] for one in spec["template"]["spec"].get("topologySpreadConstraints", ())}
        if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{service}: not spread over zones and nodes"
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        if not any(selects(spec["selector"], labels_of(workload)) for spec in budgets.values()):
            yield f"{name_of(workload)}: no PodDisruptionBudget"
    for name, spec in budgets.items():
        if spec.get("maxUnavailable") != 1:
            yield f"PodDisruptionBudget/{name}: not one at a time"


def workers_are_no_more_than_partitions(manifests: list[Manifest]) -> Iterator[str]:
    partitions = settings_of(manifests).partitions
    for workload in of_kind(manifests, "StatefulSet"):
        if labels_of(workload).get("app.kubernetes.io/component") == "worker":
            most = pods_at_most(workload, manifests)
            if most > partitions:
                yield f"{name_of(workload)}: up to {most} pods for {partitions} partitions"


def scaled_workloads_have_no_number(manifests: list[Manifest]) -> Iterator[str]:
    workloads = {
        (one["kind"], one["metadata"]["name"]): one for one in of_kind(manifests, "Deployment", "StatefulSet")
    }
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject", "VerticalPodAutoscaler"):
        reference = scaler["spec"].get("scaleTargetRef") or scaler["spec"]["targetRef"]
        target = workloads.get((reference.get("kind", "Deployment"), reference["name"]))
        if target is None:
            yield f"{name_of(scaler)}: there is no {reference}"
        elif scaler["kind"] != "VerticalPodAutoscaler" and "replicas" in target["spec"]:
            yield f"{name_of(target)}: says how many pods, and so does {name_of(scaler)}"
        elif (
            scaler["kind"] == "VerticalPodAutoscaler"
            and scaler["spec"]["updatePolicy"]["updateMode"] != "Off"
        ):
            yield f"{name_of(scaler)}: changes what a horizontal one measures against"


def the_quota_is_enough(manifests: list[Manifest]) -> Iterator[str]:
    """Everything at its largest number of pods, and one more of each Deployment while it is rolled."""
    needed: dict[str, float] = {"pods": 0, "persistentvolumeclaims": 0, "requests.storage": 0}
    for workload in of_kind(manifests, *WORKLOADS):
        if workload["metadata"]["namespace"] != "mini-visa":
            continue
        pods = pods_at_most(workload, manifests)
        needed["pods"] += pods
        for claim in workload["spec"].get("volumeClaimTemplates", ()):
            needed["persistentvolumeclaims"] += pods
            needed["requests.storage"] += pods * quantity(claim["spec"]["resources"]["requests"]["storage"])
        pod = template_of(workload)["spec"]
        for kind in ("requests", "limits"):
            for what in ("cpu", "memory", "ephemeral-storage"):
                together = sum(
                    quantity(one["resources"].get(kind, {}).get(what, 0)) for one in pod["containers"]
                )
                first = max(
                    (
                        quantity(one["resources"].get(kind, {}).get(what, 0))
                        for one in pod.get("initContainers", ())
                    ),
                    default=0,
                )
                needed[f"{kind}.{what}"] = needed.get(f"{kind}.{what}", 0) + pods * max(together, first)
    for pool in of_kind(manifests, "KafkaNodePool"):
        spec = pool["spec"]
        needed["pods"] += spec["replicas"]
        needed["persistentvolumeclaims"] += spec["replicas"]
        needed["requests.storage"] += spec["replicas"] * quantity(spec["storage"]["volumes"][0]["size"])
        for kind in ("requests", "limits"):
            for what in ("cpu", "memory"):
                needed[f"{kind}.{what}"] += spec["replicas"] * quantity(spec["resources"][kind][what])
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        needed["persistentvolumeclaims"] += 1
        needed["requests.storage"] += quantity(claim["spec"]["resources"]["requests"]["storage"])
    hard = {
        key: quantity(value)
        for one in of_kind(manifests, "ResourceQuota")
        for key, value in one["spec"]["hard"].items()
    }
    for what, amount in needed.items():
        if hard.get(what, 0) < amount:
            yield f"quota {what}: {hard.get(what, 0):g}, and everything at its most needs {amount:g}"


def pods_at_most(workload: Manifest, manifests: list[Manifest]) -> int:
    """As many as a scaler may make of it, and one more of a Deployment while it is rolled."""
    name = workload["metadata"]["name"]
    most = int(workload["spec"].get("replicas", 1))
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        reference = scaler["spec"]["scaleTargetRef"]
        if (reference.get("kind", "Deployment"), reference["name"]) == (workload["kind"], name):
            most = int(scaler["spec"].get("maxReplicas") or scaler["spec"]["maxReplicaCount"])
    if workload["kind"] in ("Job", "CronJob"):
        job = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
        most = int(job.get("parallelism", 1))
    return most + (1 if workload["kind"] == "Deployment" else 0)


# -- settings --------------------------------------------------------------------------------------


def variables_of(manifests: list[Manifest]) -> dict[str, list[str]]:
    """MINI_VISA_... variables and the values they have somewhere; "" for one that only a cluster knows."""
    found: dict[str, list[str]] = {}
    for config in of_kind(manifests, "ConfigMap"):
        for name, value in config.get("data", {}).items():
            if name.startswith(PREFIX):
                found.setdefault(name, []).append(value)
    for workload in of_kind(manifests, *WORKLOADS):
        for container in containers_of(workload):
            for variable in container.get("env", ()):
                if variable["name"].startswith(PREFIX):
                    found.setdefault(variable["name"], []).append(variable.get("value", ""))
    return found


def settings_of(manifests: list[Manifest]) -> Settings:
    """The shared ConfigMap as the program reads it. Raises ValidationError."""
    [shared] = [
        one
        for one in of_kind(manifests, "ConfigMap")
        if re.fullmatch(r"settings(-\w+)?", one["metadata"]["name"])
    ]
    return Settings(**{key.removeprefix(PREFIX).lower(): value for key, value in shared["data"].items()})


def settings_are_the_programs(manifests: list[Manifest]) -> Iterator[str]:
    try:
        tls = settings_of(manifests).kafka_security != "PLAINTEXT"
    except ValidationError as invalid:
        yield from (f"settings: {error['loc']}: {error['msg']}" for error in invalid.errors())
        return
    named = {name.removeprefix(PREFIX).lower() for name in variables_of(manifests)}
    known = set(Settings.model_fields)
    for name in sorted(named - known - set(OPTIONS)):
        yield f"{PREFIX}{name.upper()} is not a setting"
    for name in sorted(known - named - set(NOT_IN_A_CLUSTER)):
        if tls or name not in ONLY_WITH_TLS:
            yield f"{PREFIX}{name.upper()} is a setting that no manifest names: set it, or say why not"
    for name in sorted(named & set(NOT_IN_A_CLUSTER)):
        yield f"{PREFIX}{name.upper()} has no meaning in a cluster: {NOT_IN_A_CLUSTER[name]}"


# -- what is named exists --------------------------------------------------------------------------


def secrets_are_not_here(manifests: list[Manifest]) -> Iterator[str]:
    for secret in of_kind(manifests, "Secret"):
        yield f"{name_of(secret)}: a secret in git is none"
    for name, values in variables_of(manifests).items():
        if re.search(r"PASSWORD|DATABASE_URL$", name) and any(values):
            yield f"{name}: a value that belongs into a secret"


def runbooks_exist(manifests: list[Manifest]) -> Iterator[str]:
    for named in sorted(set(re.findall(r"docs/runbooks/[\w.-]+\.md", str(manifests)))):
        if not (ROOT / named).is_file():
            yield f"{named} is named and does not exist"


RULES: Final[tuple[Rule, ...]] = (
    containers_are_bounded,
    containers_are_probed,
    containers_are_locked,
    tokens_are_not_given_away,
    rights_are_small,
    objects_have_their_labels,
    selectors_find_pods,
    references_exist,
    pods_have_time_to_stop,
    every_service_runs_as_it_must,
    workers_are_no_more_than_partitions,
    scaled_workloads_have_no_number,
    the_quota_is_enough,
    settings_are_the_programs,
    secrets_are_not_here,
    runbooks_exist,
)


def broken(manifests: list[Manifest]) -> list[str]:
    """What is wrong by any rule."""
    found = []
    for rule in RULES:
        with suppress(ValidationError):  # of the settings: settings_are_the_programs says it
            found += [f"{rule.__name__}: {line}" for line in rule(manifests)]
    return found
