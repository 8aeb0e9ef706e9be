"""The overlays' users and topics, given to a real broker that enforces them: every service works with exactly
the rights that its KafkaUser has, uses all of them, and has no other service's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError
from kafka_admin import add_users, allow, log_level
from manifests import Manifest, manifests_of, of_kind
from whole_system import mini_visa

from mini_visa import topics
from mini_visa.broker import EmbeddedBroker
from mini_visa.broker.embedded import free_port
from mini_visa.broker.properties import Node
from mini_visa.kafka import TopicPlan, apply_topics
from mini_visa.settings import Settings

pytestmark = [pytest.mark.broker, pytest.mark.exercise, pytest.mark.timeout(600)]

OVERLAY = "production"
ENVIRONMENT = "live"
PARTITIONS = 2
READY_S = 120.0
WITHIN_S = 90.0
PAN = "4111111111111111"
AUDITED = re.compile(
    r"Principal = User:(\S+) is (Allowed|Denied) operation = (\w+) from host = \S+ "
    r"on resource = (\w+):(\w+):(\S+) for request = (\w+)"
)
KINDS = {"Topic": "topic", "Group": "group", "TransactionalId": "transactionalId", "Cluster": "cluster"}
NO_REFUSAL = ("Metadata", "InitProducerId")
"""Who asks for all topics is shown its own. Who may write to any topic may write idempotently: Kafka finds
that out by asking two other questions first."""
RULE = {"version": 2, "metric": "count", "window_s": 60, "threshold": 2, "outcome": "decline", "score": 60}

Right = tuple[str, str, str]
"""(kind, name, operation)"""


def users() -> dict[str, list[dict[str, Any]]]:
    return {
        one["metadata"]["name"]: one["spec"]["authorization"]["acls"]
        for one in of_kind(manifests_of(OVERLAY), "KafkaUser")
    }


def plan_of(resource: Manifest) -> TopicPlan:
    """As Strimzi makes the topic, but for one broker."""
    config = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in resource["spec"]["config"].items()
    }
    return TopicPlan(resource["metadata"]["name"], PARTITIONS, 1, config | {"min.insync.replicas": "1"})


class Guarded:
    """A broker that knows the overlay's users and lets them do what their rights say, and its log of that."""

    def __init__(self, folder: Path, jars_cache: Path) -> None:
        self.plain, self.secure, controller = free_port(), free_port(), free_port()
        self.passwords = {user: secrets.token_hex(12) for user in users()}
        extra = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.plain},CONTROLLER://127.0.0.1:{controller},"
            f"SECURE://127.0.0.1:{self.secure}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.plain},SECURE://127.0.0.1:{self.secure}",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT"
            ),
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The broker itself, and this test: whoever comes by the other listener.
            "super.users": "User:ANONYMOUS",
        }
        self.broker = EmbeddedBroker(
            folder / "broker", libs_cache=jars_cache, port=self.plain, controller_port=controller,
            node=Node(extra=extra),
        )  # fmt: skip

    async def prepare(self) -> None:
        address = f"127.0.0.1:{self.plain}"
        made = [plan_of(one) for one in of_kind(manifests_of(OVERLAY), "KafkaTopic")]
        await apply_topics(Settings(broker=f"kafka://{address}", partitions=PARTITIONS), made)
        await add_users(address, self.passwords)
        for user, rules in users().items():
            await allow(address, user, rules)
        await log_level(address, 1, kafka_authorizer_logger="TRACE")

    def options(self, user: str) -> dict[str, Any]:
        return {
            "bootstrap_servers": f"127.0.0.1:{self.secure}", "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": user,
            "sasl_plain_password": self.passwords[user],
        }  # fmt: skip

    def seen(self) -> tuple[dict[str, set[Right]], list[str]]:
        """(user -> what it was allowed and did, what was denied)"""
        allowed: dict[str, set[Right]] = defaultdict(set)
        denied = []
        for log in sorted(self.broker.log.parent.glob(f"{self.broker.log.name}*"), reverse=True):
            for line in log.read_text(errors="replace").splitlines():
                if match := AUDITED.search(line):
                    user, verdict, operation, kind, _, name, request = match.groups()
                    operation = operation.title().replace("_", "")
                    if verdict == "Allowed":
                        allowed[user].add((KINDS[kind], name, operation))
                    elif request not in NO_REFUSAL:
                        denied.append(f"{user}: {operation} on {kind} {name} ({request})")
        return allowed, denied


class Services:
    """Each service of the system as a process with the identity that its pod has."""

    def __init__(self, guarded: Guarded, folder: Path) -> None:
        self._guarded = guarded
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = {name: free_port() for name in ("gateway", "clearing-house", *topics.SERVICES)}
        self.url = f"http://127.0.0.1:{self._ports['gateway']}"

    def start(self, *, lost: bool = False) -> None:
        """`lost`: with nothing on the workers' disks."""
        for service in topics.SERVICES if lost else ():
            shutil.rmtree(self._folder / service)
        self._run("clearing-house", "clearing-house")
        for service in topics.SERVICES:
            self._run(service, "worker", service)
        self._run("gateway", "gateway")
        for name, port in self._ports.items():
            self.until_ready(name, port, "healthz" if name == "clearing-house" else "readyz")

    async def conduct(self, session: ClientSession, **changes: float) -> None:
        """How the clearing house behaves from now on."""
        url = f"http://127.0.0.1:{self._ports['clearing-house']}/conduct"
        async with session.put(url, json=changes) as answer:
            assert answer.status == 200, await answer.text()

    def stop(self) -> dict[str, int]:
        """Exit codes."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {}
        for name, process in self._processes.items():
            try:
                codes[name] = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes

    def run_as(self, user: str, *command: str, seconds: float) -> tuple[int | None, str]:
        """Exit code, None if it goes on, and log of a service that has another's identity."""
        name = f"{user}-as-another"
        self._ports[name] = free_port()
        self._run(name, *command, user=user)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[name].wait(seconds)
        code = self._processes[name].poll()
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        return code, self.log(name)

    def until_ready(self, name: str, port: int, path: str) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5),
            ):
                return
            assert self._processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, f"{name} is not ready:\n{self.log(name)}"
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def _run(self, name: str, *command: str, user: str = "") -> None:
        home, user = self._folder / name, user or name
        home.mkdir(exist_ok=True)
        variables = {
            "MINI_VISA_HOME": home, "MINI_VISA_ENVIRONMENT": ENVIRONMENT, "MINI_VISA_PARTITIONS": PARTITIONS,
            "MINI_VISA_REPLIES_PARTITIONS": PARTITIONS, "MINI_VISA_INSTANCE": f"{name}-0",
            "MINI_VISA_WEB_PORT": self._ports[name], "MINI_VISA_GATEWAY_PORT": self._ports["gateway"],
            "MINI_VISA_CLEARING_HOUSE_PORT": self._ports["clearing-house"], "MINI_VISA_CLEARING_CYCLE_S": 2,
            "MINI_VISA_CLEARING_DEADLINE_S": 15,
            "MINI_VISA_CLEARING_HOUSE_URL": f"http://127.0.0.1:{self._ports['clearing-house']}",
            "MINI_VISA_DATABASE_URL": f"sqlite:///{self._folder}/readmodel.sqlite",
            "MINI_VISA_BROKER": f"kafka://127.0.0.1:{self._guarded.secure}",
            "MINI_VISA_KAFKA_SECURITY": "SASL_PLAINTEXT", "MINI_VISA_KAFKA_USERNAME": user,
            "MINI_VISA_KAFKA_PASSWORD": self._guarded.passwords.get(user, "has none"),
        }  # fmt: skip
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                mini_visa(*command), stdout=log, stderr=log,
                env=os.environ | {key: str(value) for key, value in variables.items()},
            )  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"), jars_cache)
    made.broker.start()
    try:
        asyncio.run(made.prepare())
        yield made
    finally:
        made.broker.kill()


@pytest.fixture(scope="module")
def services(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    made = Services(guarded, tmp_path_factory.mktemp("services"))
    try:
        made.start()
        yield made
    finally:
        codes = made.stop()
    assert set(codes.values()) == {0}, codes


async def call(session: ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with session.post(path, json=body) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200, found
        return found


async def until(session: ClientSession, path: str, **wanted: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        async with session.get(path) as answer:
            found = await answer.json()
        if answer.status == 200 and all(found.get(key) == value for key, value in wanted.items()):
            return
        assert time.monotonic() < deadline, (path, wanted, found)
        await asyncio.sleep(0.2)


async def nonsense(guarded: Guarded) -> None:
    """A record that no service can read, into every topic that one reads: it has to be set aside."""
    read = {
        rule["resource"]["name"]
        for user, rules in users().items() if user in topics.SERVICES
        for rule in rules if rule["resource"]["type"] == "topic" and "Read" in rule["operations"]
    }  # fmt: skip
    async with AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{guarded.plain}") as producer:
        for topic in sorted(name for name in read if not name.endswith(".changelog")):
            await producer.send_and_wait(topic, b"nonsense", b"nonsense", partition=0)


async def test_every_service_works_with_its_rights_and_needs_all_of_them(
    guarded: Guarded, services: Services
):
    async with ClientSession(services.url) as session:
        await call(session, "/accounts", request_id="open", pan=PAN, limit="1000.00")
        purchase = {"pan": PAN, "amount": "10.00", "merchant_id": "shop-1", "capture": True}
        payment = await call(session, "/payments/authorize", request_id="a", **purchase)
        assert payment["status"] == "captured"
        await until(session, f"/payments/{payment['payment_id']}", clearing_status="settled")
        # A part that is refused: the rest is released. One that is not answered in time: it is cancelled.
        await services.conduct(session, rejections=1.0)
        refused = await call(session, "/payments/authorize", request_id="b", **purchase | {"capture": False})
        path = f"/payments/{refused['payment_id']}"
        await call(session, f"{path}/captures", request_id="c", amount="4.00", final=False)
        await until(session, path, clearing_status="compensated")
        await services.conduct(session, late=1.0, late_s=600.0)
        await call(session, "/payments/authorize", request_id="d", **purchase)
        # A rule is tried on what was, and put in force.
        rule = "/rules/velocity-count-60s"
        async with session.post(f"{rule}/backtest", json=RULE) as answer:
            assert answer.status == 200, await answer.text()
        async with session.put(rule, json=RULE) as answer:
            assert answer.status == 200, await answer.text()
        async with session.get("/alerts/stream") as stream:
            for number in range(6):  # more than a card may in a minute: an alert
                await call(session, "/payments/authorize", request_id=f"many-{number}", **purchase)
            await asyncio.wait_for(stream.content.readuntil(b"data:"), WITHIN_S)
    await nonsense(guarded)
    # A worker that has lost its disk reads its changelog.
    assert set((await asyncio.to_thread(services.stop)).values()) == {0}
    await asyncio.to_thread(services.start, lost=True)
    deadline = time.monotonic() + WITHIN_S
    while unused := missing_of(guarded):
        assert time.monotonic() < deadline, "granted and never used:\n" + "\n".join(unused)
        await asyncio.sleep(1)
    _, denied = guarded.seen()
    assert not denied, "denied:\n" + "\n".join(sorted(set(denied)))


def missing_of(guarded: Guarded) -> list[str]:
    """Rights of the overlay that nobody has used."""
    allowed, _ = guarded.seen()
    unused = []
    for user, rules in users().items():
        for rule in rules:
            kind, name, pattern = (rule["resource"][key] for key in ("type", "name", "patternType"))
            used = {
                operation for found_kind, found, operation in allowed[user]
                if found_kind == kind and (found.startswith(name) if pattern == "prefix" else found == name)
            }  # fmt: skip
            # To read or write a thing is to be allowed to describe it; who may only describe it must have.
            wanted = set(rule["operations"]) - ({"Describe"} if len(rule["operations"]) > 1 else set())
            unused += [f"{user}: {operation} on {kind} {name}" for operation in sorted(wanted - used)]
    return unused


@pytest.mark.parametrize(
    ("user", "topic"),
    [("risk", "payment.events"), ("projection", "payment.events"), ("gateway", "payment.events"),
     ("ledger", "account.commands"), ("connector", "gateway.replies")],
)  # fmt: skip
async def test_what_another_service_writes_it_may_not(guarded: Guarded, user: str, topic: str):
    with pytest.raises(TopicAuthorizationFailedError):
        async with AIOKafkaProducer(**guarded.options(user)) as producer:
            await producer.send_and_wait(topic, b"{}", b"key")


@pytest.mark.parametrize(
    ("user", "group", "topic", "refusal"),
    [("gateway", None, "payment.events", TopicAuthorizationFailedError),
     ("risk", "live.authorization.decide", "account.commands", GroupAuthorizationFailedError),
     ("clearing", None, "account.commands", TopicAuthorizationFailedError)],
)  # fmt: skip
async def test_what_another_service_reads_it_may_not(
    guarded: Guarded, user: str, group: str | None, topic: str, refusal: type[KafkaError]
):
    consumer = AIOKafkaConsumer(topic, group_id=group, auto_offset_reset="earliest", **guarded.options(user))
    with pytest.raises(refusal):
        await consumer.start()
        await asyncio.wait_for(consumer.getone(), 20)
    with contextlib.suppress(KafkaError):
        await consumer.stop()


async def test_a_transaction_of_another_service_cannot_be_begun(guarded: Guarded):
    name = "live.authorization.decide.0"
    producer = AIOKafkaProducer(transactional_id=name, **guarded.options("risk"))
    with pytest.raises(KafkaError, match=r"(?i)transactional.?id|authoriz"):
        await producer.start()
    with contextlib.suppress(KafkaError, AttributeError):
        await producer.stop()


async def test_a_service_that_has_anothers_identity_is_refused_in_clear_words(
    guarded: Guarded, services: Services
):
    code, log = await asyncio.to_thread(services.run_as, "risk", "worker", "ledger", seconds=60.0)
    assert code not in (0, None), f"it goes on:\n{log}"
    assert re.search(r"(?i)author", log), log
    assert not json.dumps(log).count(guarded.passwords["risk"])
