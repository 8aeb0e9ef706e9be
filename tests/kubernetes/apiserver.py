"""A real Kubernetes API server with its etcd, on loopback ports: started for a test, or by `make cluster`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from checkers import ROOT, cache, definitions
from manifests import Manifest, read

BUILD: Final = ROOT / "scripts" / "cluster" / "build"
START_TIMEOUT_S: Final = 120.0
COMMAND_TIMEOUT_S: Final = 180.0
NAMES: Final = ("etcd", "kube-apiserver", "kubectl")


def binaries() -> Path:
    """The folder of the programs. Skips the test where they are not built and nobody asked for it: it takes
    many minutes, once (`make cluster`, or MINI_VISA_CLUSTER=build)."""
    built = [
        folder for folder in (cache() / "cluster").glob("v*") if all((folder / n).exists() for n in NAMES)
    ]
    if os.environ.get("MINI_VISA_CLUSTER") == "build" or built:
        done = subprocess.run([BUILD], capture_output=True, text=True, timeout=3_000, check=False)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.splitlines()[-1])
    pytest.skip(
        "level 2, a real API server, is not run: it is not built here. Build and run it: make cluster"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Done:
    """A command's end."""

    code: int
    out: str
    err: str


class ApiServer:
    """Use as a context manager. Nobody but its own user can read its token."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="mini-visa-cluster-"))
        self.kubeconfig = self.folder / "kubeconfig"

    def __enter__(self) -> ApiServer:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()  # there is nothing to save, and an orderly end takes 20 s
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        clients, peers, secure = _free_port(), _free_port(), _free_port()
        self._run("etcd", f"--data-dir={self.folder / 'etcd'}", "--log-level=error", "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{clients}", f"--advertise-client-urls=http://127.0.0.1:{clients}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}")  # fmt: skip
        key, public = self.folder / "accounts.key", self.folder / "accounts.pub"
        subprocess.run(
            ["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60
        )
        subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public],
            check=True, capture_output=True, timeout=60)  # fmt: skip
        token, tokens = secrets.token_hex(24), self.folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{token},admin,admin,"system:masters"\n')
        certificates = self.folder / "certificates"
        self._run("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{clients}", "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1", f"--secure-port={secure}", f"--cert-dir={certificates}",
            f"--service-account-key-file={public}", f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16")  # fmt: skip
        authority = certificates / "apiserver.crt"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": f"https://127.0.0.1:{secure}", "certificate-authority": str(authority)}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }))  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (authority.exists() and self.kubectl("get", "--raw", "/readyz").code == 0):
            dead = [process.args[0] for process in self._processes if process.poll() is not None]  # type: ignore[index]
            assert not dead, f"{dead} ended:\n{self._log()}"
            assert time.monotonic() < deadline, f"no API server after {START_TIMEOUT_S:.0f} s:\n{self._log()}"
            time.sleep(0.3)

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([self._programs / name, *arguments], stdout=log, stderr=log, cwd=self.folder)
            )

    def _log(self) -> str:
        return "\n".join(
            line
            for path in self.folder.glob("*.log")
            for line in path.read_text(errors="replace").splitlines()[-8:]
        )

    def kubectl(self, *arguments: str, manifests: str = "") -> Done:
        done = subprocess.run(
            [self._programs / "kubectl", "--kubeconfig", self.kubeconfig, *arguments],
            input=manifests, text=True, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def must(self, *arguments: str, manifests: str = "") -> str:
        done = self.kubectl(*arguments, manifests=manifests)
        assert done.code == 0, f"kubectl {' '.join(arguments)}:\n{done.err}"
        return done.out

    def define(self, wanted: set[tuple[str, str]]) -> None:
        """The CustomResourceDefinitions of (group, kind)s."""
        found = [
            one for file in sorted((definitions() / "crds").glob("*.yaml")) for one in read(file.read_text())
        ]
        chosen = [one for one in found if _defines(one) in wanted]
        missing = wanted - {_defines(one) for one in chosen}
        assert not missing, f"no definition of {missing}"
        self.must("apply", "--server-side", "-f", "-", manifests=json.dumps(_list(chosen)))
        self.must("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


def _defines(one: Manifest) -> tuple[str, str] | None:
    if one["kind"] != "CustomResourceDefinition":
        return None
    return one["spec"]["group"], one["spec"]["names"]["kind"]


def _list(items: list[Any]) -> Manifest:
    return {"apiVersion": "v1", "kind": "List", "items": items}
