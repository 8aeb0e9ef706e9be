"""What is shown on a real node, step by step; run by `scripts/cluster/node` in namespaces of its own.

The local overlay as docs/deployment.md has it: applied, called, its pods deleted and killed under load,
scaled and upgraded; at the end the auditor accounts for every payment that a client was told about.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from mini_visa.broker.embedded import free_port
from tests.cluster.node import NAMESPACE, Node, NodeError, until
from tests.faults.client import Client

ROOT: Final = Path(__file__).parents[2]
WORKERS: Final = ("risk", "authorization", "ledger", "clearing", "reversal", "connector", "projection")
STATEFUL: Final = ("kafka", "postgresql", "clearing-house", *WORKERS)
PARTITIONS: Final = 2
SESSION_S: Final = 15
SHOPPERS: Final = 3
READY_S: Final = 300
DECIDED_S: Final = 150.0
CAUGHT_UP_S: Final = 120.0
WARM_UP_MAX: Final = 30
IN_TIME_S: Final = 2.0
NOT_ASKED: Final = re.compile(r" -w\b|port-forward|apply|create|diff|rollout|kustomize|\.\.\.")
NOT_LOCAL: Final = re.compile(
    r"doesn't have a resource type|\(NotFound\)|could not find the requested resource|not found|"
    r"Metrics API not available|is not valid for pod"
)
"""What kubectl says where a component of other overlays, or an operator, is missing."""
OPEN: Final = {"request_id": "open-1", "pan": "4111111111111111", "limit": "1000.00"}
AUTHORIZE: Final = "/payments/authorize"
OPENED: Final = {"response_code": "00"}
PAY: Final = {"request_id": "test123", "pan": "4111111111111111", "amount": "10.00"}
"""The calls of docs/deployment.md."""
BEGAN: Final = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def curl(url: str, body: dict[str, str]) -> tuple[int, bytes]:
    """As the guide has it: the status, and what was answered."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", "--write-out", "%{http_code}",
         "-X", "POST", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise NodeError(f"curl {url}: {done.stderr.decode(errors='replace')}")
    return int(done.stdout[-3:]), done.stdout[:-3]


class Exercise:
    """Each step says what it saw, or raises NodeError."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._client: Client | None = None
        self._load: asyncio.Task[None] | None = None
        self._history = node.folder / "history.jsonl"

    async def run(self) -> None:
        await asyncio.to_thread(self.apply)
        await asyncio.to_thread(self.call)
        await asyncio.to_thread(self.table)
        try:
            await self.shop()
            for service in ("risk", "authorization", "ledger", "projection"):
                await self.lose(service, "deleted", "--wait=false")
            await self.lose(
                "authorization", "killed (no grace)", "--grace-period=0", "--force", "--wait=false"
            )
            await self.lose("gateway", "killed (no grace)", "--grace-period=0", "--force", "--wait=false")
            await self.lose("kafka", "deleted", "--wait=false")
            await self.scale("authorization")
            await self.upgrade()
            await self.roll_back("authorization")
            await self.end_shopping()
        finally:
            if self._load is not None:
                self._load.cancel()
        await asyncio.to_thread(self.audit)
        await asyncio.to_thread(self.summary)

    # -- steps

    def apply(self) -> None:
        began = time.monotonic()
        applied = self._node.kubectl("apply", "-k", str(ROOT / "deploy" / "k8s")).splitlines()
        say(f"kubectl apply -k deploy/k8s: {len(applied)} objects")
        for kind, name in (*(("statefulset", one) for one in STATEFUL), ("deployment", "gateway")):
            self.rolled_out(f"{kind}/{name}")
            say(f"{kind}/{name} is ready")
        say(f"everything is ready {time.monotonic() - began:.1f} s after it was applied")
        for line in self.kubectl("get", "pods,pvc").splitlines():
            say(f"    {line}")

    def post(self, address: str, body: dict[str, str], path: str = AUTHORIZE) -> dict[str, Any]:
        """A call of the guide, again while the outcome is open, as a client must. Written down as the
        shoppers' are: the auditor looks at it too."""
        deadline = time.monotonic() + CAUGHT_UP_S
        while True:
            sent = time.time()
            status, raw = curl(f"http://{address}{path}", body)
            answer: dict[str, Any] = json.loads(raw)
            line = {"sent": sent, "ended": time.time(), "path": path, "body": body, "status": status,
                    "account": answer.get("account_id", "")}  # fmt: skip
            if status == 200:
                line |= {"code": answer.get("operation", OPENED)["response_code"],
                         "payment_id": answer.get("payment_id", ""),
                         "digest": blake2b(raw, digest_size=8).hexdigest()}  # fmt: skip
            else:
                line["problem"] = answer.get("type", "").rpartition(":")[2]
            with self._history.open("a") as history:
                history.write(json.dumps(line) + "\n")
            if status == 200:
                return answer
            if status not in (503, 504) or time.monotonic() > deadline:
                raise NodeError(f"{path}: {status} {answer}")
            say(f"POST {path}: {status}, so it is sent again")

    def call(self) -> None:
        """The guide's: to the Service by its name and by its address, and by port-forward as it does."""
        self.warm_up()
        opened = self.post("gateway:8080", OPEN, "/accounts")
        payment = self.post("gateway:8080", PAY)
        say(f"the guide's calls to http://gateway:8080: account {opened['status']}; payment {shown(payment)}")
        expect(payment["status"] == "authorized" and payment["response_code"] == "00", payment)
        service = self._node.get("service/gateway")["spec"]["clusterIP"]
        again = self.post(f"{service}:8080", PAY)
        say(f"again to its address {service}: the same payment, {again['payment_id']}")
        expect(again["payment_id"] == payment["payment_id"], again)
        port = free_port()
        forward = self._node.command("port-forward", "--namespace", NAMESPACE, "svc/gateway", f"{port}:8080")
        with subprocess.Popen(forward, stdout=subprocess.DEVNULL) as forwarding:
            try:
                until("the port is forwarded", lambda: listens(port), 30)
                more = self.post(f"127.0.0.1:{port}", PAY | {"request_id": "test124"})
            finally:
                forwarding.terminate()
        say(f"kubectl port-forward svc/gateway, as the guide does: {shown(more)}")
        expect(more["status"] == "authorized", more)
        path = f"http://gateway:8080/payments/{payment['payment_id']}"
        found = until("the read model has it", lambda: read(path), 60)
        say(f"GET /payments/{payment['payment_id']} from the read model: {found['status']}")
        doctor = self.kubectl("exec", "gateway", "mini-visa", "doctor", kind="deployment")
        say(f"kubectl exec deploy/gateway -- mini-visa doctor: {len(doctor.splitlines())} lines, exit code 0")

    def warm_up(self) -> None:
        """Until it decides in time: what is late is reversed, also when it is asked for again."""
        self.post("gateway:8080", OPEN | {"request_id": "warm", "pan": "5555555555554444"}, "/accounts")
        for number in range(WARM_UP_MAX):
            began = time.monotonic()
            body = PAY | {"request_id": f"warm-{number}", "pan": "5555555555554444", "amount": "0.10"}
            self.post("gateway:8080", body)
            if (took_s := time.monotonic() - began) < IN_TIME_S:
                return
            say(f"a decision took {took_s:.1f} s; warming up")
            time.sleep(1)
        raise NodeError(f"no decision within {IN_TIME_S} s")

    def table(self) -> None:
        """The commands with which docs/deployment.md checks its items, but those that change something."""
        page = (ROOT / "docs" / "deployment.md").read_text()
        rows = re.findall(r"^\|.*\|$", page, re.M)
        commands = {one for row in rows for one in re.findall(r"`(kubectl [^`]+)`", row.rsplit("|", 2)[1])}
        answered, elsewhere = [], []
        for command in sorted(one for one in commands if not NOT_ASKED.search(one)):
            try:
                shown = self._node.kubectl(*shlex.split(command)[1:])
                (answered if shown else elsewhere).append(command)
            except NodeError as error:
                if not NOT_LOCAL.search(str(error)):
                    raise
                elsewhere.append(command)
        say(
            f"{len(answered)} commands of the table in docs/deployment.md answered; "
            f"{len(elsewhere)} ask for what only staging and production have"
        )
        expect(len(answered) > 10, answered)

    async def shop(self) -> None:
        # As one host name, so that attempts go wherever the Service leads now.
        self._client = Client(
            ("gateway", 8080), self._history, seed=8, shoppers=SHOPPERS, partitions=PARTITIONS
        )
        self._load = asyncio.create_task(self._client.run())
        decided_s = await self.decided()
        say(f"{SHOPPERS} shoppers from now on; a decision on each partition after {decided_s:.1f} s")

    async def lose(self, service: str, how: str, *options: str) -> None:
        (pod, *_) = self.pods(service)
        with self.attempts() as seen:
            began = time.monotonic()
            await asyncio.to_thread(self.kubectl, "delete", "pod", pod["metadata"]["name"], *options)
            decided_s = await self.decided()
            uid = pod["metadata"]["uid"]
            ready_s = await self.within(lambda: self.replaced(service, uid), began)
        say(
            f"{pod['metadata']['name']} {how}: a decision on every partition {decided_s:.1f} s later, "
            f"ready again after {ready_s:.1f} s; {seen()}"
        )

    async def scale(self, service: str) -> None:
        with self.attempts() as seen:
            began = time.monotonic()
            await asyncio.to_thread(self.kubectl, "scale", f"statefulset/{service}", "--replicas=2")
            await asyncio.to_thread(self.rolled_out, f"statefulset/{service}")
            shares = await self.shares(service, 2)
            decided_s = await self.decided()
        say(
            f"{service} scaled 1 -> 2: ready after {time.monotonic() - began - decided_s:.1f} s, "
            f"partitions {shares}, every partition decides {decided_s:.1f} s later; {seen()}"
        )
        with self.attempts() as seen:
            began = time.monotonic()
            await asyncio.to_thread(self.kubectl, "scale", f"statefulset/{service}", "--replicas=1")
            await self.within(lambda: len(self.pods(service)) == 1, began)
            gone_s = time.monotonic() - began
            decided_s = await self.decided()
            shares = await self.shares(service, 1)
        say(
            f"{service} scaled 2 -> 1: gone after {gone_s:.1f} s, partitions {shares}, every partition "
            f"decides {decided_s:.1f} s later (session time-out {SESSION_S} s); {seen()}"
        )

    async def upgrade(self) -> None:
        """To mini-visa:next, one service after the other."""
        for service in WORKERS:
            await self._roll(service, "set", "image", f"statefulset/{service}", "*=mini-visa:next")
        await self._roll("gateway", "set", "image", "deployment/gateway", "*=mini-visa:next")
        for service in (*WORKERS, "gateway"):
            await self.runs(service, "next")

    async def roll_back(self, service: str) -> None:
        await self._roll(service, "rollout", "undo", f"statefulset/{service}")
        await self.runs(service, "latest")

    async def _roll(self, service: str, *command: str) -> None:
        kind = "deployment" if service == "gateway" else "statefulset"
        with self.attempts() as seen:
            began = time.monotonic()
            await asyncio.to_thread(self.kubectl, *command)
            await asyncio.to_thread(self.rolled_out, f"{kind}/{service}")
            rolled_s = time.monotonic() - began
            decided_s = await self.decided()
        say(
            f"{service}: {' '.join(command[:2])}, rolled out after {rolled_s:.1f} s, every partition decides "
            f"{decided_s:.1f} s later; {seen()}"
        )

    async def end_shopping(self) -> None:
        if self._client is None or self._load is None:
            return
        self._client.stop()
        await asyncio.wait_for(self._load, 300)
        client = self._client
        say(
            f"{client.requests} requests, {client.acknowledged} acknowledged, {client.unknown} hung up on, "
            f"{client.attempts} attempts: {dict(sorted(client.statuses.items()))}"
        )
        expect(client.acknowledged > 500, "too little happened")

    def audit(self) -> None:
        """By a program that shares no code with what it audits. What is under way is waited for."""
        password = base64.b64decode(self._node.get("secret/database")["data"]["password"]).decode()
        environment = {
            **os.environ,
            "MINI_VISA_BROKER": "kafka://kafka:9092",
            "MINI_VISA_ENVIRONMENT": "live",
            "MINI_VISA_DATABASE_URL": f"postgresql://mini_visa:{password}@postgresql:5432/mini_visa",
            "MINI_VISA_HOME": str(self._node.folder / "home"),
        }
        deadline = time.monotonic() + CAUGHT_UP_S
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "mini_visa.cli", "audit", "--history", self._history, "--json"],
                env=environment,
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=300,
                check=False,
            )
            if done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(3)
        expect(done.stdout, f"exit code {done.returncode}: {done.stderr}")
        report = json.loads(done.stdout)
        looked_at = sum(check["looked_at"] for check in report["checks"])
        wrong = {check["name"]: check["examples"] for check in report["checks"] if check["wrong"]}
        say(
            f"mini-visa audit: {len(report['checks'])} checks, {looked_at} things looked at, "
            f"{report['lost']} lost, {report['duplicated']} twice, wrong: {wrong or 'nothing'}"
        )
        expect(not wrong and (report["lost"], report["duplicated"]) == (0, 0), wrong)

    def summary(self) -> None:
        for line in self.kubectl("get", "pods").splitlines():
            say(f"    {line}")
        warnings = [one for one in self._node.get("events")["items"] if one["type"] == "Warning"]
        reasons = sorted({(one["reason"], one["involvedObject"]["name"]) for one in warnings})
        say(f"the cluster's warnings: {'; '.join(f'{why} ({name})' for why, name in reasons) or 'none'}")

    # -- looking

    def kubectl(self, *arguments: str, kind: str = "") -> str:
        if kind:  # exec
            verb, name, *command = arguments
            arguments = (verb, f"{kind}/{name}", "--", *command)
        where = ("--namespace", NAMESPACE)
        return self._node.kubectl(arguments[0], *where, *arguments[1:])

    def rolled_out(self, what: str) -> None:
        self.kubectl("rollout", "status", what, f"--timeout={READY_S}s")

    def pods(self, service: str) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = self._node.get("pods", f"--selector=app.kubernetes.io/name={service}")[
            "items"
        ]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def replaced(self, service: str, uid: str) -> bool:
        """Whether every pod is ready, and the one of `uid` is gone."""
        pods = self.pods(service)
        conditions = [
            {one["type"]: one["status"] for one in pod["status"].get("conditions", ())} for pod in pods
        ]
        gone = all(pod["metadata"]["uid"] != uid for pod in pods)
        return bool(pods) and gone and all(found.get("Ready") == "True" for found in conditions)

    async def runs(self, service: str, tag: str) -> None:
        """Waits until all of its pods, also those that are on their way out, are of that version."""

        def look() -> bool:
            statuses = [one for pod in self.pods(service) for one in pod["status"]["containerStatuses"]]
            return bool(statuses) and all(one["image"].endswith(f"/mini-visa:{tag}") for one in statuses)

        await asyncio.to_thread(until, f"{service} runs mini-visa:{tag}", look, 60.0)

    async def shares(self, service: str, pods: int) -> str:
        """Partitions of each pod, when all have an owner and each pod some."""

        def look() -> list[int]:
            owned = [assigned(f"http://{pod['status']['podIP']}:8081/metrics") for pod in self.pods(service)]
            return owned if len(owned) == pods and sum(owned) == PARTITIONS and all(owned) else []

        found = await asyncio.to_thread(until, "every partition has an owner", look, 90.0)
        return " + ".join(str(count) for count in found)

    async def decided(self) -> float:
        """Seconds from now until a payment that is sent from now on was decided on every partition."""
        assert self._client is not None and self._load is not None
        if self._load.done():
            self._load.result()
        _, everywhere = self._client.expect()
        try:
            async with asyncio.timeout(DECIDED_S):
                return await everywhere
        except TimeoutError:
            raise NodeError(f"no decision on every partition within {DECIDED_S:.0f} s") from None

    async def within(self, look: Callable[[], bool], began: float) -> float:
        await asyncio.to_thread(until, "it is as it should be", look, float(READY_S))
        return time.monotonic() - began

    @contextlib.contextmanager
    def attempts(self) -> Iterator[Callable[[], str]]:
        """Says how many attempts were answered meanwhile, and how."""
        assert self._client is not None
        client, before = self._client, dict(self._client.statuses)

        def seen() -> str:
            new = {status: count - before.get(status, 0) for status, count in sorted(client.statuses.items())}
            return ", ".join(f"{count} of {status or 'no answer'}" for status, count in new.items() if count)

        yield seen


def expect(true: object, otherwise: object) -> None:
    if not true:
        raise NodeError(f"not as it should be: {otherwise}")


def shown(payment: dict[str, Any]) -> str:
    return f"{payment['payment_id']} {payment['status']} {payment['response_code']}"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def read(url: str) -> dict[str, Any]:
    """{} while it is not there."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except OSError:
        return {}


def assigned(url: str) -> int:
    """Partitions that a worker owns."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return 0
    return sum(
        int(float(value)) for value in re.findall(r"^mini_visa_assigned_partitions\{.*\} (\S+)$", text, re.M)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--revision", default="unknown")
    given = parser.parse_args()
    node = Node(given.programs, given.folder)
    try:
        node.start()
        say(node.versions())
        say(
            f"images of revision {given.revision}; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
        )
        asyncio.run(Exercise(node).run())
        say("passed")
        return 0
    except NodeError as error:
        say(f"FAILED: {error}")
        with contextlib.suppress(NodeError):
            print(node.kubectl("get", "pods,events", "--all-namespaces"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
