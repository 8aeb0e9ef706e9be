"""Manifests that are broken on purpose, one thing each: the checks must say what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from checkers import run
from manifests import Manifest, containers_of, manifests_of, only
from rules import broken

pytestmark = pytest.mark.timeout(900)  # the first test builds its checker, once for ever

Breakage = Callable[[list[Manifest]], None]


def _no_memory_limit(manifests: list[Manifest]) -> None:
    del containers_of(only(manifests, "StatefulSet", "risk"))[-1]["resources"]["limits"]["memory"]


def _no_readiness_probe(manifests: list[Manifest]) -> None:
    del containers_of(only(manifests, "Deployment", "gateway"))[-1]["readinessProbe"]


def _writable_root(manifests: list[Manifest]) -> None:
    containers_of(only(manifests, "StatefulSet", "ledger"))[-1]["securityContext"][
        "readOnlyRootFilesystem"
    ] = False


def _token_in_every_pod(manifests: list[Manifest]) -> None:
    only(manifests, "StatefulSet", "ledger")["spec"]["template"]["spec"]["automountServiceAccountToken"] = (
        True
    )


def _right_to_read_secrets(manifests: list[Manifest]) -> None:
    only(manifests, "Role", "viewer")["rules"].append(
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    )


def _version_in_a_selector(manifests: list[Manifest]) -> None:
    only(manifests, "Service", "gateway")["spec"]["selector"]["app.kubernetes.io/version"] = "1"


def _service_without_pods(manifests: list[Manifest]) -> None:
    only(manifests, "Service", "risk")["spec"]["selector"]["app.kubernetes.io/name"] = "risks"


def _port_that_nobody_has(manifests: list[Manifest]) -> None:
    only(manifests, "Service", "gateway")["spec"]["ports"][0]["targetPort"] = "https"


def _secret_that_nobody_makes(manifests: list[Manifest]) -> None:
    for variable in containers_of(only(manifests, "StatefulSet", "projection"))[-1]["env"]:
        if variable["name"] == "MINI_VISA_DATABASE_URL":
            variable["valueFrom"]["secretKeyRef"]["name"] = "data-base"


def _too_little_time_to_stop(manifests: list[Manifest]) -> None:
    only(manifests, "StatefulSet", "risk")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20


def _membership_that_is_not_static(manifests: list[Manifest]) -> None:
    worker = containers_of(only(manifests, "StatefulSet", "risk"))[-1]
    worker["env"] = [{"name": "MINI_VISA_INSTANCE", "value": "risk"}]


def _more_workers_than_partitions(manifests: list[Manifest]) -> None:
    only(manifests, "StatefulSet", "risk")["spec"]["replicas"] = 5


def _unknown_setting(manifests: list[Manifest]) -> None:
    _settings(manifests)["MINI_VISA_PARTITION"] = "4"


def _forgotten_setting(manifests: list[Manifest]) -> None:
    del _settings(manifests)["MINI_VISA_HOLD_DAYS"]


def _impossible_value(manifests: list[Manifest]) -> None:
    _settings(manifests)["MINI_VISA_REPLICATION"] = "9"


def _password_in_the_open(manifests: list[Manifest]) -> None:
    _settings(manifests)["MINI_VISA_DATABASE_URL"] = "postgresql://mini_visa:letmein@postgresql/mini_visa"


def _quota_that_is_too_small(manifests: list[Manifest]) -> None:
    only(manifests, "ResourceQuota", "compute")["spec"]["hard"]["requests.cpu"] = "1"


def _runbook_that_is_not_there(manifests: list[Manifest]) -> None:
    only(manifests, "Deployment", "gateway")["metadata"]["annotations"] = {
        "runbook": "docs/runbooks/no-such.md"
    }


def _settings(manifests: list[Manifest]) -> dict[str, str]:
    [shared] = [
        one
        for one in manifests
        if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith("settings-")
    ]
    return shared["data"]


EXPECTED: dict[Breakage, str] = {
    _no_memory_limit: "containers_are_bounded: StatefulSet/risk: worker has no limits.memory",
    _no_readiness_probe: "containers_are_probed: Deployment/gateway: gateway has no readinessProbe",
    _writable_root: "containers_are_locked: StatefulSet/ledger",
    _token_in_every_pod: "tokens_are_not_given_away: StatefulSet/ledger",
    _right_to_read_secrets: "rights_are_small: Role/viewer: may get secrets",
    _version_in_a_selector: "objects_have_their_labels: Service/gateway: selects by version",
    _service_without_pods: "selectors_find_pods: Service/risk: selects no pod",
    _port_that_nobody_has: "selectors_find_pods: Service/gateway: Deployment/gateway has no port https",
    _secret_that_nobody_makes: "references_exist: StatefulSet/projection: there is no secret data-base",
    _too_little_time_to_stop: "pods_have_time_to_stop: StatefulSet/risk: has 20 s to stop and may need 30 s",
    _membership_that_is_not_static: "every_service_runs_as_it_must: risk: its membership is not static",
    _more_workers_than_partitions: "workers_are_no_more_than_partitions: StatefulSet/risk: up to 5 pods",
    _unknown_setting: "settings_are_the_programs: MINI_VISA_PARTITION is not a setting",
    _forgotten_setting: "settings_are_the_programs: MINI_VISA_HOLD_DAYS is a setting that no manifest names",
    _impossible_value: "settings_are_the_programs: settings: ('replication',)",
    _password_in_the_open: "secrets_are_not_here: MINI_VISA_DATABASE_URL: a value that belongs into a secret",
    _quota_that_is_too_small: "the_quota_is_enough: quota requests.cpu: 1, and everything at its most needs",
    _runbook_that_is_not_there: "runbooks_exist: docs/runbooks/no-such.md is named and does not exist",
}


@pytest.mark.parametrize("breakage", EXPECTED, ids=lambda breakage: breakage.__name__.strip("_"))
def test_a_broken_manifest_is_caught_by_the_rule_for_it(breakage: Breakage):
    manifests = manifests_of("local")
    breakage(manifests)
    said = broken(manifests)
    assert any(line.startswith(EXPECTED[breakage]) for line in said), said


def _replicas_as_words(manifests: list[Manifest]) -> None:
    only(manifests, "StatefulSet", "kafka")["spec"]["replicas"] = "one"


def test_what_breaks_a_schema_is_caught(tmp_path):
    from checkers import core_schemas

    manifests = manifests_of("local")
    _replicas_as_words(manifests)
    kafka = only(manifests, "StatefulSet", "kafka")
    core = core_schemas("1.34.0", {("apps/v1", "StatefulSet")}, tmp_path)
    checked = run("kubeconform", "-strict", "-schema-location", core, manifests=yaml.safe_dump(kafka))
    assert checked.returncode == 1 and "replicas" in checked.stdout


def test_what_breaks_pod_security_is_caught():
    ledger = only(manifests_of("local"), "StatefulSet", "ledger")
    ledger["spec"]["template"]["spec"]["hostNetwork"] = True
    checked = run("podsecurity", manifests=yaml.safe_dump(ledger))
    assert checked.returncode == 1 and "StatefulSet/ledger: DENIED: host namespaces" in checked.stdout


def test_what_kube_score_knows_is_caught():
    gateway = only(manifests_of("local"), "Deployment", "gateway")
    gateway["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = True
    checked = run("kube-score", "score", "--output-format", "ci", "-", manifests=yaml.safe_dump(gateway))
    assert checked.returncode == 1 and "privileged" in checked.stdout.lower()
