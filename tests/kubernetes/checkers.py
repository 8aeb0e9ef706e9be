"""The programs that check manifests (tests/kubernetes/tools), built once by Go into the user's cache; and
where the definitions of custom resources are found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "tests" / "kubernetes" / "tools"
PROGRAMS: Final = {
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
    "kube-score": "github.com/zegl/kube-score/cmd/kube-score",
    "podsecurity": ".",
}
BUILD_TIMEOUT_S: Final = 900.0
CHECK_TIMEOUT_S: Final = 120.0


def cache() -> Path:
    """MINI_VISA_CACHE, or the user's own: outside of the checkout, so that it outlives a clean clone."""
    if named := os.environ.get("MINI_VISA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mini-visa"


def program(name: str) -> Path:
    """The path of a checker, built if it is not there. Skips the test where there is no Go."""
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    built = cache() / "manifests" / digest / name
    if built.exists():
        return built
    if shutil.which("go") is None:
        pytest.skip("Go is missing, which builds the checkers of manifests: apt-get install golang-go")
    built.parent.mkdir(parents=True, exist_ok=True)
    draft = built.with_name(f"{name}.{os.getpid()}")
    subprocess.run(
        ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", draft,
         PROGRAMS[name]],
        cwd=SOURCES,
        env=os.environ | {"CGO_ENABLED": "0"},
        timeout=BUILD_TIMEOUT_S,
        check=True,
    )  # fmt: skip
    draft.rename(built)  # whole, or not there
    return built


def run(name: str, *arguments: str | Path, manifests: str = "") -> subprocess.CompletedProcess[str]:
    """A checker on manifests at its standard input."""
    return subprocess.run(
        [program(name), *arguments],
        input=manifests,
        text=True,
        capture_output=True,
        timeout=CHECK_TIMEOUT_S,
        check=False,
    )


def definitions() -> Path:
    """The folder with `crds` and `crd-schemas`: MINI_VISA_CRDS, or one called `kubernetes` in a folder beside
    the checkout. Skips the test where there is none."""
    named = os.environ.get("MINI_VISA_CRDS", "")
    for folder in [Path(named)] if named else sorted(ROOT.parent.glob("*/kubernetes")):
        if (folder / "crds").is_dir() and (folder / "crd-schemas").is_dir():
            return folder.resolve()
    pytest.skip(
        "no definitions of custom resources: set MINI_VISA_CRDS to a folder that has "
        "crds/*.yaml (CustomResourceDefinitions) and crd-schemas/GROUP/KIND_VERSION.json"
    )


def core_schemas(version: str, kinds: Iterable[tuple[str, str]], folder: Path) -> str:
    """Writes the schemas of `kinds` (apiVersion, kind) of a Kubernetes version into `folder`, each complete
    in itself, and returns their location for kubeconform.

    They come from the package kubernetes-validate, whose files refer to one another.
    """
    import kubernetes_validate

    source = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}-local-strict"
    shared = json.loads((source / "_definitions.json").read_text())
    shared = shared.get("$defs") or shared["definitions"]
    for api_version, kind in kinds:
        group, _, name = api_version.rpartition("/")
        file = "-".join(filter(None, (kind.lower(), group.split(".")[0], name))) + ".json"
        if (source / file).exists():
            schema = json.loads((source / file).read_text())
            (folder / file).write_text(json.dumps(_complete(schema, shared)))
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def custom_schemas(folder: Path) -> tuple[str, ...]:
    """Locations of the schemas of custom resources, for kubeconform: those that are ready to use, and in
    `folder` those of the definitions that have none."""
    ready = definitions() / "crd-schemas"
    for file in sorted((definitions() / "crds").glob("*.yaml")):
        if "external-secrets" in file.name:  # the one collection that crd-schemas lacks
            for definition in yaml.load_all(file.read_text(), yaml.CSafeLoader):
                _write_schemas(definition, folder)
    return tuple(
        f"{place}/{{{{.Group}}}}/{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json"
        for place in (ready, folder)
    )


def _write_schemas(definition: dict[str, Any] | None, folder: Path) -> None:
    if not definition or definition["kind"] != "CustomResourceDefinition":
        return
    group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"].lower()
    (folder / group).mkdir(exist_ok=True)
    for version in definition["spec"]["versions"]:
        schema = _closed(version["schema"]["openAPIV3Schema"])
        (folder / group / f"{kind}_{version['name']}.json").write_text(json.dumps(schema))


def _closed(node: Any) -> Any:
    """The same, refusing what it does not name, as the API server does with strict validation."""
    if isinstance(node, list):
        return [_closed(value) for value in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not open_ended:
        closed["additionalProperties"] = False
    return closed


def _complete(schema: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    needed: dict[str, Any] = {}
    waiting = _references(schema)
    while waiting:
        if (name := waiting.pop()) not in needed:
            needed[name] = shared[name]
            waiting |= _references(shared[name])
    return _local({**schema, "$defs": needed})


def _references(node: Any) -> set[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(node, dict):
        own = {node["$ref"].rsplit("/", 1)[1]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(_references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(value) for value in node))
    return set()


def _local(node: Any) -> Any:
    """The same with every reference pointing into the schema itself."""
    if isinstance(node, dict):
        return {
            key: f"#/$defs/{value.rsplit('/', 1)[1]}"
            if key == "$ref" and isinstance(value, str)
            else _local(value)
            for key, value in node.items()
        }
    return [_local(value) for value in node] if isinstance(node, list) else node
