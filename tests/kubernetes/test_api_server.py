"""Level 2: a real Kubernetes API server takes every overlay, with the custom resources' real definitions.

It sees what schemas cannot: defaults, validation rules written in CEL, admission, rights.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from apiserver import ApiServer, binaries
from checkers import ROOT
from manifests import OVERLAYS, Manifest, manifests_of, name_of, of_kind, only, template_of, text_of

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ApiServer]:
    custom = {
        (group, one["kind"])
        for overlay in OVERLAYS
        for one in manifests_of(overlay)
        if "." in (group := one["apiVersion"].partition("/")[0]) and not group.endswith(".k8s.io")
    } | {("autoscaling.k8s.io", "VerticalPodAutoscaler")}
    with ApiServer(binaries()) as server:
        server.define(custom)
        namespaces = [*of_kind(manifests_of("production"), "Namespace"), {
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}]  # fmt: skip
        apply(server, namespaces)
        yield server


def apply(server: ApiServer, manifests: list[Manifest]) -> None:
    server.must("apply", "--server-side", "-f", "-", manifests=as_list(manifests))


def as_list(manifests: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_takes_an_overlay_without_a_warning(cluster: ApiServer, overlay: str):
    done = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", "-", manifests=text_of(overlay)
    )
    assert done.code == 0 and not done.err, done.err
    assert len(done.out.splitlines()) == len(manifests_of(overlay))


def refused(cluster: ApiServer, *manifests: Manifest) -> str:
    done = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", "-", manifests=as_list(list(manifests))
    )
    assert done.code != 0, f"taken: {done.out}"
    return done.err


def test_more_pods_at_least_than_at_most_are_refused(cluster: ApiServer):
    scaler = only(manifests_of("production"), "HorizontalPodAutoscaler", "gateway")
    scaler["spec"]["minReplicas"] = 21
    assert "must be greater than or equal to `minReplicas`" in refused(cluster, scaler)


def test_a_rule_of_a_definition_is_enforced(cluster: ApiServer):
    rule = only(manifests_of("production"), "VirtualService", "payments")
    rule["spec"]["http"][0]["directResponse"] = {"status": "not found"}
    assert "directResponse.status" in refused(cluster, rule)


def test_a_field_that_does_not_exist_is_refused(cluster: ApiServer):
    user = only(manifests_of("production"), "KafkaUser", "risk")
    user["spec"]["authorization"]["acl"] = user["spec"]["authorization"].pop("acls")
    assert "acl" in refused(cluster, user)


def pod_of(workload: Manifest) -> Manifest:
    """The pod that its controller would make."""
    template = template_of(workload)
    claimed = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())]
    volumes = [*template["spec"].get("volumes", ()), *({"name": name, "emptyDir": {}} for name in claimed)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload['kind'].lower()}-{workload['metadata']['name']}",
            "namespace": "mini-visa",
            "labels": template["metadata"]["labels"],
        },
        "spec": template["spec"] | {"volumes": volumes},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_gets_past_admission(cluster: ApiServer, overlay: str):
    """Pod Security enforces "restricted", quota and limits count, priorities and accounts must exist."""
    manifests = manifests_of(overlay)
    apply(cluster, list(of_kind(manifests, "ServiceAccount", "PriorityClass", "ResourceQuota", "LimitRange")))
    pods = [pod_of(one) for one in of_kind(manifests, "Deployment", "StatefulSet", "Job", "CronJob")]
    done = cluster.kubectl("create", "--dry-run=server", "-f", "-", manifests=as_list(pods))
    assert done.code == 0 and not done.err, done.err
    assert len(done.out.splitlines()) == len(pods) >= 8


def test_a_pod_that_asks_for_more_than_it_may_is_refused(cluster: ApiServer):
    manifests = manifests_of("local")
    apply(cluster, list(of_kind(manifests, "ServiceAccount", "PriorityClass")))
    pod = pod_of(only(manifests, "StatefulSet", "ledger"))
    pod["spec"]["hostNetwork"] = True
    done = cluster.kubectl("create", "--dry-run=server", "-f", "-", manifests=json.dumps(pod))
    assert done.code != 0 and 'violates PodSecurity "restricted:latest": host namespaces' in done.err


MAY = {
    "viewers": ("get pods", "get pods --subresource=log", "list networkpolicies.networking.k8s.io"),
    "debuggers": ("create pods --subresource=exec",),
    "operators": (
        "get pods", "delete pods", "create pods --subresource=eviction",
        "create pods --subresource=portforward", "patch statefulsets.apps",
        "update statefulsets.apps --subresource=scale", "patch services/gateway", "create jobs.batch",
    ),
}  # fmt: skip
MAY_NOT = {
    "viewers": ("delete pods", "get secrets", "patch services/gateway", "create pods --subresource=exec"),
    "debuggers": ("get secrets", "delete pods"),
    "operators": (
        "get secrets", "list secrets", "create pods --subresource=exec", "create pods",
        "patch services/kafka", "delete statefulsets.apps", "delete persistentvolumeclaims",
        "patch networkpolicies.networking.k8s.io",
        "create rolebindings.rbac.authorization.k8s.io",
    ),
}  # fmt: skip


@pytest.mark.parametrize("group", MAY)
def test_people_may_do_their_work_and_nothing_else(cluster: ApiServer, group: str):
    apply(cluster, list(of_kind(manifests_of("production"), "Role", "RoleBinding")))
    for allowed, asked in (("yes", MAY[group]), ("no", MAY_NOT[group])):
        for action in asked:
            assert may(cluster, action, "--as=somebody", f"--as-group=mini-visa:{group}") == allowed, action


def may(cluster: ApiServer, action: str, *who: str) -> str:
    return cluster.kubectl("auth", "can-i", *action.split(), "--namespace=mini-visa", *who).out.strip()


def test_no_service_account_may_do_anything(cluster: ApiServer):
    """But one, which may create secrets, in clusters that are thrown away."""
    manifests = [one for overlay in OVERLAYS for one in manifests_of(overlay)]
    rights = {name_of(one): one for one in of_kind(manifests, "Role", "RoleBinding", "ServiceAccount")}
    apply(cluster, list(rights.values()))
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    assert len(accounts) > 12

    def rights_of(account: str) -> set[str]:
        listed = cluster.must(
            "auth", "can-i", "--list", "--no-headers", "--namespace=mini-visa",
            f"--as=system:serviceaccount:mini-visa:{account}",
        )  # fmt: skip
        return {" ".join(line.split()) for line in listed.splitlines()}

    anybody = rights_of("nobody")
    assert {name: found - anybody for name in accounts if (found := rights_of(name)) != anybody} == {
        "make-secrets": {"secrets [] [] [create]"}
    }


# -- blue and green --------------------------------------------------------------------------------


@pytest.fixture
def colours(cluster: ApiServer) -> Iterator[ApiServer]:
    manifests = manifests_of("blue-green")
    mine = [one for one in manifests if one["kind"] == "Deployment" or name_of(one) == "Service/gateway"]
    cluster.must("apply", "-f", "-", manifests=as_list(mine))
    yield cluster
    cluster.must("delete", "-f", "-", "--wait=false", manifests=as_list(mine))


def blue_green(cluster: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    kubectl = f"{binaries() / 'kubectl'} --kubeconfig {cluster.kubeconfig}"
    return subprocess.run(
        [ROOT / "scripts" / "blue-green", *arguments], env=os.environ | {"KUBECTL": kubectl},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def serves(cluster: ApiServer) -> str:
    return cluster.must(
        "get", "service", "gateway", "-n", "mini-visa", "-o", "jsonpath={.spec.selector.mini-visa/track}"
    )


def make_ready(cluster: ApiServer, colour: str, pods: int = 1) -> None:
    """What the controllers of a cluster with nodes would say."""
    name = f"deployment/gateway-{colour}"
    generation = int(cluster.must("get", name, "-n", "mini-visa", "-o", "jsonpath={.metadata.generation}"))
    status = {
        "observedGeneration": generation,
        "replicas": pods,
        "readyReplicas": pods,
        "availableReplicas": pods,
    }
    cluster.must(
        "patch",
        name,
        "-n",
        "mini-visa",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )


def test_a_colour_is_switched_to_when_it_is_ready_and_back_again(colours: ApiServer):
    early = blue_green(colours, "switch", "green")
    assert early.returncode == 1 and "green is not ready (0/1 pods): nothing was changed" in early.stderr
    assert serves(colours) == ""
    make_ready(colours, "blue")
    make_ready(colours, "green")
    assert "blue serves (1/1 pods), both did" in blue_green(colours, "switch", "blue").stdout
    assert "green serves (1/1 pods), blue did" in blue_green(colours, "switch", "green").stdout
    assert serves(colours) == "green"
    assert "green  1/1 ready, serves" in blue_green(colours, "status").stdout
    assert "blue serves (1/1 pods), green did" in blue_green(colours, "rollback").stdout
    assert serves(colours) == "blue"


def test_an_apply_leaves_the_colour_as_it_is(colours: ApiServer):
    make_ready(colours, "green")
    blue_green(colours, "switch", "green")
    service = as_list([only(manifests_of("blue-green"), "Service", "gateway")])
    colours.must("apply", "-f", "-", manifests=service)
    assert serves(colours) == "green"
    # On the server's side a selector has one owner as a whole: it is refused, not moved.
    done = colours.kubectl("apply", "--server-side", "--field-manager=another", "-f", "-", manifests=service)
    assert done.code != 0 and ".spec.selector" in done.err and serves(colours) == "green"


def test_a_colour_whose_new_version_is_not_out_yet_is_not_switched_to(colours: ApiServer):
    make_ready(colours, "green")
    colours.must("set", "image", "deployment/gateway-green", "gateway=mini-visa:next", "-n", "mini-visa")
    assert blue_green(colours, "switch", "green").returncode == 1
