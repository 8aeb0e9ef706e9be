"""Every overlay builds, and what it builds is accepted: schemas, Pod Security, this project's rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkers import core_schemas, custom_schemas, run
from manifests import OVERLAYS, manifests_of, text_of
from rules import RULES, Rule

pytestmark = pytest.mark.timeout(900)  # the first test builds its checker, once for ever

VERSIONS = tuple(f"1.{minor}.0" for minor in range(25, 38))
"""Of Kubernetes: the oldest that the guides ask for to the newest."""


def test_the_default_is_the_local_overlay():
    assert text_of("") == text_of("local")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_object_is_there_once(overlay: str):
    names = [
        (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in manifests_of(overlay)
    ]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """kubeconform's arguments for custom resources."""
    places = custom_schemas(tmp_path_factory.mktemp("custom"))
    return [argument for place in places for argument in ("-schema-location", place)]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_a_kubernetes_version_hold(version: str, custom: list[str], tmp_path: Path):
    everything = [one for overlay in OVERLAYS for one in manifests_of(overlay)]
    kinds = {(one["apiVersion"], one["kind"]) for one in everything}
    core = core_schemas(version, kinds, tmp_path)
    checked = run(
        "kubeconform", "-strict", "-summary", "-schema-location", core, *custom,
        manifests="---\n".join(text_of(overlay) for overlay in OVERLAYS),
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(everything)} resources found" in checked.stdout and "Skipped: 0" in checked.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_meet_the_restricted_standard(overlay: str):
    checked = run("podsecurity", manifests=text_of(overlay))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("allowed") >= 8


NOT_OURS = {
    "container-image-tag": "the local overlay takes what was built on the machine",
    "container-image-pull-policy": "images are named by digest or version, which do not change",
    "pod-networkpolicy": "tests/kubernetes/test_network.py works out every flow",
    "networkpolicy-targets-pod": "operators make some of the pods, which are not in our manifests",
    "deployment-has-host-podantiaffinity": "topology spread constraints do it, by zone too",
    "statefulset-has-host-podantiaffinity": "the same",
    "statefulset-has-poddisruptionbudget": "rules.py; kube-score does not see those of a component",
    "deployment-has-poddisruptionbudget": "the same",
    "container-security-context-user-group-id": "set for the whole pod",
    "statefulset-has-servicename": "rules.py: kube-score asks for a label that is not needed",
    "deployment-replicas": "an autoscaler says how many, and the local overlay needs one",
    "pod-probes-identical": "readiness may ask what liveness asks where a process has no third state",
}
"""kube-score's checks that do not fit here, and why."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kube_score_finds_nothing(overlay: str):
    ignored = [argument for check in NOT_OURS for argument in ("--ignore-test", check)]
    checked = run("kube-score", "score", "--output-format", "ci", *ignored, "-", manifests=text_of(overlay))
    found = [line for line in checked.stdout.splitlines() if line.startswith(("[CRITICAL]", "[WARNING]"))]
    assert not found and checked.returncode == 0, "\n".join(found) + checked.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_projects_rules_hold(overlay: str, rule: Rule):
    assert list(rule(manifests_of(overlay))) == []
