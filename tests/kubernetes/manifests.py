"""Manifests as Python objects, and what a test asks them again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from checkers import ROOT, run

DEPLOY: Final = ROOT / "deploy" / "k8s"
OVERLAYS: Final = tuple(sorted(path.parent.name for path in DEPLOY.glob("overlays/*/kustomization.yaml")))
WORKLOADS: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")

Manifest = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: "=" is a string, not YAML 1.1's key for a default value."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


def read(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.load_all(text, _Loader) if manifest]


@cache
def text_of(overlay: str) -> str:
    """What `kubectl apply -k` would send for an overlay; "": the default one."""
    folder = DEPLOY / "overlays" / overlay if overlay else DEPLOY
    built = run("kustomize", "build", folder)
    assert built.returncode == 0, f"{folder.relative_to(ROOT)} does not build:\n{built.stderr}"
    return built.stdout


def manifests_of(overlay: str) -> list[Manifest]:
    """Read anew each time: a test may break them."""
    return read(text_of(overlay))


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def only(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    found = [one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


def template_of(workload: Manifest) -> Manifest:
    """The pod template."""
    spec = workload["spec"]
    return spec["jobTemplate"]["spec"]["template"] if workload["kind"] == "CronJob" else spec["template"]


def labels_of(workload: Manifest) -> dict[str, str]:
    """Of its pods. A StatefulSet's controller adds more, which nobody selects by."""
    return template_of(workload)["metadata"].get("labels", {})


def containers_of(workload: Manifest) -> list[Manifest]:
    """All of a pod, those that only run first too."""
    pod = template_of(workload)["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


def selects(selector: Manifest | None, labels: dict[str, str]) -> bool:
    """A Kubernetes label selector: an empty one selects everything, None nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for wanted in selector.get("matchExpressions") or ():
        value, values = labels.get(wanted["key"]), wanted.get("values", ())
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[wanted["operator"]]
        if not holds:
            return False
    return True


_UNITS: Final = {
    "": 1,
    "m": 1e-3,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: "500m" is 0.5, "1Gi" 2**30."""
    text = str(text)
    digits = text.rstrip("KMGTikm")
    return float(digits) * _UNITS[text[len(digits) :]]


@dataclass(frozen=True)
class Source:
    """A file of the repository that people read."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(errors="ignore")
