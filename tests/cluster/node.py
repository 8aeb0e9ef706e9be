"""A Kubernetes cluster of one node: etcd, the control plane, kubelet, containerd, CoreDNS.

Only inside of the namespaces that `scripts/cluster/node` makes: this changes routes and mounts.
Everything is the real thing; each part of the control plane has its own certificate and its own rights.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

NAME: Final = "node-1"
ADDRESS: Final = "192.0.2.2"
PODS: Final = "10.244.0.0/24"
SERVICES: Final = "10.96.0.0/16"
API: Final = "10.96.0.1"
DNS: Final = "10.96.0.10"
NAMESPACE: Final = "mini-visa"
START_TIMEOUT_S: Final = 180.0
COMMAND_TIMEOUT_S: Final = 300.0
VOLUMES: Final = 20
"""Local volumes that are there for claims to bind to, as an administrator provides them."""
CPU_SHARES: Final = 16 << 10
"""Of all pods, where a process of the machine has 1,024."""
CNI: Final = Path("/usr/lib/cni")
# kubelet wants the kernel otherwise than it is. The machine is not its own: it gets files to write to.
SYSCTLS: Final = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


class NodeError(Exception):
    """The node did not do what it should; the text says what it did."""


def run(*command: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, **options: Any) -> str:
    """What it printed. Raises NodeError with what it complained about."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        **options,
    )
    if done.returncode != 0:
        shown = " ".join(str(part) for part in command)
        raise NodeError(
            f"`{shown[:200]}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def until(
    what: str, look: Callable[[], Any], timeout_s: float = START_TIMEOUT_S, every_s: float = 0.5
) -> Any:
    """The first result of `look` that is true. A NodeError is a "not yet" until the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        why = ""
        try:
            if found := look():
                return found
        except NodeError as error:
            why = f": {error}"
        if time.monotonic() > deadline:
            raise NodeError(f"not within {timeout_s:.0f} s: {what}{why}")
        time.sleep(every_s)


class Node:
    """`start` and use. It ends with the process that started it, the first one of its namespaces."""

    def __init__(self, programs: Path, folder: Path) -> None:
        """`programs`: where scripts/cluster/build put them. `folder`: for all that is written."""
        self._programs = programs
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._containerd = folder / "containerd.sock"

    def start(self) -> None:
        self._mounts()
        self._network()
        self._certificates()
        self._control_plane()
        self._runtime()
        self._kubelet()
        self._addons()

    def kubectl(
        self, *arguments: str, manifests: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> str:
        return run(
            self._programs / "kubectl",
            "--kubeconfig",
            self.kubeconfig("admin"),
            *arguments,
            timeout_s=timeout_s,
            input=manifests,
        )

    def command(self, *arguments: str) -> list[str]:
        """For a kubectl that goes on: port-forward."""
        return [str(self._programs / "kubectl"), "--kubeconfig", str(self.kubeconfig("admin")), *arguments]

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output=json", "--namespace", NAMESPACE))

    def alive(self) -> None:
        """Raises NodeError when a part of the node has ended."""
        dead = [name for name, process in self._processes.items() if process.poll() is not None]
        if dead:
            raise NodeError(f"{', '.join(dead)} ended:\n{self.log(dead[0])}")

    def log(self, name: str, lines: int = 12) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def versions(self) -> str:
        server = json.loads(self.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
        info = json.loads(self.kubectl("get", "node", NAME, "--output=json"))["status"]["nodeInfo"]
        return (
            f"Kubernetes {server}, kubelet {info['kubeletVersion']}, {info['containerRuntimeVersion']}, "
            f"{run('runc', '--version').splitlines()[0]}, Linux {info['kernelVersion']}"
        )

    # -- parts

    def _mounts(self) -> None:
        for folder in ("/run", "/var/lib/cni", "/var/log"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "tmpfs", "tmpfs", folder)
        own = self.folder / "sysctl"
        own.mkdir()
        for name in SYSCTLS:
            there = Path("/proc/sys") / name
            if there.exists():
                copy = own / there.name
                copy.write_text(there.read_text())
                run("mount", "--bind", copy, there)
        # The node's own programs find services as pods do, so the guide's calls can name them.
        resolver = self.folder / "resolv.conf"
        resolver.write_text(
            f"nameserver {DNS}\nsearch {NAMESPACE}.svc.cluster.local svc.cluster.local cluster.local\n"
        )
        run("mount", "--bind", resolver, Path("/etc/resolv.conf").resolve())

    def _network(self) -> None:
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "node", "type", "bridge")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", "node")
        run("ip", "link", "set", "node", "up")
        # Services' addresses need a way out of the node, on which kube-proxy turns them.
        run("ip", "route", "add", "default", "dev", "node")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        if bridged.exists():
            bridged.write_text("1")
        plugins = self.folder / "cni"
        plugins.mkdir()
        (plugins / "10-pods.conflist").write_text(
            json.dumps(
                {
                    "cniVersion": "0.4.0",
                    "name": "pods",
                    "plugins": [
                        {
                            "type": "bridge",
                            "bridge": "pods",
                            "isGateway": True,
                            "ipMasq": False,
                            "hairpinMode": True,
                            "ipam": {
                                "type": "host-local",
                                "ranges": [[{"subnet": PODS}]],
                                "routes": [{"dst": "0.0.0.0/0"}],
                            },
                        }
                    ],
                }
            )
        )

    def _certificates(self) -> None:
        here = self.folder / "certificates"
        here.mkdir(mode=0o700)
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        run(
            "openssl",
            "req",
            "-x509",
            *key,
            "-days",
            "2",
            "-subj",
            "/CN=cluster",
            "-keyout",
            here / "ca.key",
            "-out",
            here / "ca.crt",
        )

        def sign(name: str, subject: str, names: str = "") -> None:
            run(
                "openssl",
                "req",
                *key,
                "-subj",
                subject,
                "-keyout",
                here / f"{name}.key",
                "-out",
                here / f"{name}.csr",
            )
            extensions = here / f"{name}.ext"
            extensions.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
            run(
                "openssl",
                "x509",
                "-req",
                "-in",
                here / f"{name}.csr",
                "-CA",
                here / "ca.crt",
                "-CAkey",
                here / "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                extensions,
                "-out",
                here / f"{name}.crt",
            )

        own = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost"
        sign("server", "/CN=kube-apiserver", f"{own},IP:{API},IP:{ADDRESS},IP:127.0.0.1")
        sign("kubelet-server", f"/CN={NAME}", f"DNS:{NAME},IP:{ADDRESS}")
        for name, subject in {
            "admin": "/O=system:masters/CN=admin",
            "to-kubelet": "/O=system:masters/CN=kube-apiserver",
            "controllers": "/CN=system:kube-controller-manager",
            "scheduler": "/CN=system:kube-scheduler",
            "proxy": "/CN=system:kube-proxy",
            "kubelet": f"/O=system:nodes/CN=system:node:{NAME}",
        }.items():
            sign(name, subject)
            self.kubeconfig(name).write_text(
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "current-context": name,
                        "clusters": [
                            {
                                "name": name,
                                "cluster": {
                                    "server": f"https://{ADDRESS}:6443",
                                    "certificate-authority": str(here / "ca.crt"),
                                },
                            }
                        ],
                        "users": [
                            {
                                "name": name,
                                "user": {
                                    "client-certificate": str(here / f"{name}.crt"),
                                    "client-key": str(here / f"{name}.key"),
                                },
                            }
                        ],
                        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
                    }
                )
            )
        run("openssl", "genrsa", "-out", here / "accounts.key", "2048")
        run("openssl", "rsa", "-in", here / "accounts.key", "-pubout", "-out", here / "accounts.pub")

    def kubeconfig(self, name: str) -> Path:
        return self.folder / "certificates" / f"{name}.kubeconfig"

    def _control_plane(self) -> None:
        here = self.folder / "certificates"
        self._run("etcd", f"--data-dir={self.folder / 'etcd'}", "--log-level=error", "--unsafe-no-fsync")
        self._run(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={ADDRESS}",
            f"--client-ca-file={here / 'ca.crt'}",
            "--enable-admission-plugins=NodeRestriction",
            f"--tls-cert-file={here / 'server.crt'}",
            f"--tls-private-key-file={here / 'server.key'}",
            f"--kubelet-client-certificate={here / 'to-kubelet.crt'}",
            f"--kubelet-client-key={here / 'to-kubelet.key'}",
            f"--kubelet-certificate-authority={here / 'ca.crt'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={here / 'accounts.pub'}",
            f"--service-account-signing-key-file={here / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={SERVICES}",
        )
        until(
            "the API server is ready",
            lambda: self._turns() and self.kubectl("get", "--raw", "/readyz") == "ok",
        )
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('controllers')}",
            "--leader-elect=false",
            f"--service-account-private-key-file={here / 'accounts.key'}",
            f"--root-ca-file={here / 'ca.crt'}",
            "--use-service-account-credentials",
            "--bind-address=127.0.0.1",
        )
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('scheduler')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )

    def _runtime(self) -> None:
        """containerd, with every image that pods may ask for: nothing is pulled."""
        configuration = self.folder / "containerd.toml"
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        configuration.write_text(f"""version = 2
root = "{self.folder / "containerd"}"
state = "/run/containerd"
[grpc]
  address = "{self._containerd}"
[{cri}]
  sandbox_image = "mini-visa-addons:latest"
  restrict_oom_score_adj = true
[{cri}.containerd]
  default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
  bin_dir = "{CNI}"
  conf_dir = "{self.folder / "cni"}"
""")
        self._run("containerd", "--config", configuration, program="containerd")
        ctr = ("ctr", "--address", self._containerd, "--namespace", "k8s.io")
        until("containerd answers", lambda: self._turns() and run(*ctr, "version"))
        run(*ctr, "images", "import", "--snapshotter=overlayfs", self.folder / "images.tar", timeout_s=600)

    def _kubelet(self) -> None:
        here, group = self.folder / "certificates", self.folder.name
        roots = [one for one in Path("/sys/fs/cgroup").iterdir() if (one / "cgroup.procs").exists()]
        if not (
            Path("/sys/fs/cgroup") / "cgroup.controllers"
        ).exists():  # version 1: a tree for each controller
            for root in roots:
                (root / group).mkdir(exist_ok=True)
            cpus = Path("/sys/fs/cgroup/cpuset")
            # All pods together would otherwise count as much as any one process of the machine.
            (Path("/sys/fs/cgroup/cpu") / group / "cpu.shares").write_text(str(CPU_SHARES))
            for name in ("cpuset.cpus", "cpuset.mems"):  # an empty set lets nothing in
                (cpus / group / name).write_text((cpus / name).read_text())
        configuration = self.folder / "kubelet.yaml"
        configuration.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "address": ADDRESS,
                    "containerRuntimeEndpoint": f"unix://{self._containerd}",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{group}",
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": True},
                        "x509": {"clientCAFile": str(here / "ca.crt")},
                    },
                    "authorization": {"mode": "Webhook"},
                    "tlsCertFile": str(here / "kubelet-server.crt"),
                    "tlsPrivateKeyFile": str(here / "kubelet-server.key"),
                    "clusterDNS": [DNS],
                    "clusterDomain": "cluster.local",
                    "resolvConf": "",
                    "podLogsDir": str(self.folder / "pods"),
                    "enforceNodeAllocatable": [],
                    # The machine's disk is not the node's own, and may be nearly full.
                    "evictionHard": {
                        "memory.available": "100Mi",
                        "nodefs.available": "1%",
                        "imagefs.available": "1%",
                    },
                    "imageGCHighThresholdPercent": 99,
                    "imageGCLowThresholdPercent": 98,
                }
            )
        )
        self._run(
            "kubelet",
            f"--config={configuration}",
            f"--kubeconfig={self.kubeconfig('kubelet')}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={here}",
        )
        self._run(
            "kube-proxy",
            f"--kubeconfig={self.kubeconfig('proxy')}",
            f"--hostname-override={NAME}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={PODS}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        ready = ("wait", f"node/{NAME}", "--for=condition=Ready", "--timeout=5s")
        until("the node is ready", lambda: self._turns() and self.kubectl(*ready))

    def _addons(self) -> None:
        """Names, and volumes."""
        volumes = self.folder / "volumes"
        made = []
        for number in range(VOLUMES):
            (volumes / f"{number}").mkdir(parents=True)
            made.append(_volume(number, volumes / f"{number}"))
        everything = [*_names(), _STORAGE_CLASS, *made]
        self.kubectl(
            "apply",
            "--server-side",
            "-f",
            "-",
            manifests=json.dumps({"apiVersion": "v1", "kind": "List", "items": everything}),
        )
        self.kubectl("rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=120s")

    def _run(self, name: str, *arguments: str | Path, program: str = "") -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [program or str(self._programs / name), *map(str, arguments)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ,
                start_new_session=True,
            )

    def _turns(self) -> bool:
        self.alive()
        return True


_STORAGE_CLASS: Final = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/no-provisioner",
    "volumeBindingMode": "WaitForFirstConsumer",
    "reclaimPolicy": "Retain",
}


def _volume(number: int, path: Path) -> dict[str, Any]:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"local-{number}"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


_COREFILE: Final = """.:1053 {
    errors
    health :1080
    ready :1081
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 5
    }
    cache 5
}
"""


def _names() -> list[dict[str, Any]]:
    """CoreDNS, under the labels that network policies know it by."""
    label = {"k8s-app": "kube-dns"}
    here = {"name": "coredns", "namespace": "kube-system"}
    rules = [
        {
            "apiGroups": [""],
            "resources": ["endpoints", "services", "pods", "namespaces"],
            "verbs": ["list", "watch"],
        },
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"}
    container = {
        "name": "coredns",
        "image": "mini-visa-addons:latest",
        "imagePullPolicy": "IfNotPresent",
        "command": ["/dns", "-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 1053, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 1053, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 1081}, "periodSeconds": 1},
        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "containers": [container],
        "volumes": [{"name": "configuration", "configMap": {"name": "coredns"}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **here}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": here, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": here,
            "spec": {
                "selector": {"matchLabels": label},
                "template": {"metadata": {"labels": label}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": DNS,
                "selector": label,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 1053},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 1053},
                ],
            },
        },
    ]
