"""What faults happen to: a broker or three, all services, a database, and the means to hurt each of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Container, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest_v2
from aiokafka.protocol.api import Request

from mini_visa.broker import EmbeddedBroker
from mini_visa.broker.cluster import Cluster
from mini_visa.broker.embedded import free_port
from mini_visa.broker.properties import Node
from mini_visa.readmodel.database import LIVE
from mini_visa.settings import Settings
from mini_visa.supervisor.system import SERVICES, Part, Service, System
from mini_visa.supervisor.warm import Child
from tests.faults.fencing import Fences, fences_of
from tests.faults.network import Proxy
from tests.postgresql import Server

READY_S_MAX: Final = 180.0
PAUSE_S: Final = 0.05
QUIET_S_MAX: Final = 600.0
HOLD_FUEL_S: Final = 5.0
"""So that some holds expire under fire."""
EXPIRED_S: Final = HOLD_FUEL_S + 5.0
"""After a request its hold has been released: ticks come every second."""
NO_TABLES: Final = frozenset({"gateway", "projection", "connector", "clearing-house"})
"""Services without RocksDB."""
ENDS: Final[dict[int, Container[int]]] = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (0, -signal.SIGTERM),
}
"""Signals that end a process, and the exit codes of one that they have ended."""
ANY_CODE: Final = range(-64, 256)


def postgresql_binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class _Members(Request[DescribeGroupsRequest_v2]):
    """DescribeGroups, version 2: aiokafka's own answer of version 3 does not always decode."""

    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[DescribeGroupsRequest_v2]) -> DescribeGroupsRequest_v2:
        return request_struct_class(self._groups)


class Unasked(NamedTuple):
    """A process that ended though no fault had told it to."""

    at: float
    """Seen then: monotonic seconds."""
    service: str
    code: int | None
    during: str
    """The fault at that moment; "": between two."""


class Grounds:
    """async with Grounds(...) as grounds: everything runs."""

    def __init__(self, home: Path, jars: Path, *, brokers: int, postgresql: bool, **settings: Any) -> None:
        self.home = home
        self.detour: Proxy | None = None
        """Between the services in `detoured` and the broker; None with three brokers."""
        self.detoured: set[str] = set()
        """Services whose next start goes through the proxy."""
        self.wipe: set[str] = set()
        """Services whose disk is removed before their next start."""
        self.small_disks: set[str] = set()
        """Services that get a small file system of their own before their next start."""
        self.cluster: Cluster | None = None
        self.broker: EmbeddedBroker | None = None
        if brokers > 1:
            self.cluster = Cluster(home / "cluster", brokers, libs_cache=jars)
        else:
            listens, advertised = free_port(), free_port()
            self.detour = Proxy(advertised, listens)
            self.broker = EmbeddedBroker(
                home / "broker", libs_cache=jars, node=Node(detour=(listens, advertised))
            )
        self.database: Server | None = None
        if postgresql:
            binaries = postgresql_binaries()
            assert binaries is not None, "no PostgreSQL on this machine"
            self.database = Server(Path(tempfile.mkdtemp(prefix="mini-visa-postgresql-")), binaries)
        self._given = {
            "home": home, "gateway_port": 0, "replication": brokers, "session_timeout_s": 6.0,
            "partitions": 3,  # one for each of three workers
            "clearing_cycle_s": 4.0, "clearing_present_again_s": 4.0, "compensation_retry_s": 5.0,
            "clearing_rejections": 0.05, "clearing_lost_answers": 0.05, "connector_tries_max": 3,
            "hold_fuel_s": HOLD_FUEL_S,
            "gateway_answer_target_s": 0.0,  # after each fault answers are late: none is refused for it
            **settings,
        }  # fmt: skip
        self.system: System
        self.settings: Settings
        self.zombies: Counter[str] = Counter()
        """What became of workers that were frozen beyond their session."""
        self.clock_ahead_until = 0.0
        """When the time will have come that requests were given by a clock ahead: monotonic seconds."""
        self.fault = ""
        """What is being done to all this at the moment."""
        self.unasked: list[Unasked] = []
        self._may_end: dict[Child, Container[int]] = {}
        """Processes that a fault has ended, or may, and the exit codes that they may have of it."""
        self._extra: dict[str, Child] = {}
        self.mounted: set[Path] = set()

    # -- life

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        if self.cluster is not None:
            await asyncio.to_thread(self.cluster.start)
            self.address = self.cluster.addresses
        else:
            assert self.broker is not None and self.detour is not None
            await asyncio.to_thread(self.broker.start)
            self.address = str(self.broker.address)
            await self.detour.start()
        if self.database is not None:
            await asyncio.to_thread(self.database.create)
            await asyncio.to_thread(self.database.start)
            self._given["database_url"] = self.database.url
        else:
            self._given["database_url"] = f"sqlite:///{self.home / 'readmodel.sqlite'}"
        settings = Settings(**self._given, broker=f"kafka://{self.address}")
        self.system = System(settings, before_start=self._before_start, environment=self._environment)
        await self.system.start()
        self.settings = self.system.settings

    async def _stop(self) -> None:
        with contextlib.suppress(AttributeError):
            await self.stop_services()
        if self.detour is not None:
            await self.detour.stop()
        if self.database is not None:
            await asyncio.to_thread(self.database.stop)
            shutil.rmtree(self.database.folder, ignore_errors=True)
        broker = self.cluster or self.broker
        assert broker is not None
        await asyncio.to_thread(broker.stop)
        for path in self.mounted:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", path], check=False)

    async def stop_services(self) -> None:
        """All of them, in order; the broker and the database go on."""
        for name in list(self._extra):
            await self.dismiss(name)
        await self.system.stop()

    def _before_start(self, service: Service) -> None:
        name = service.name
        if (before := self.part(name).child) is not None:
            self._ended(name, before)
        state = self.home / "state" / self._environment_name / name
        if name in self.wipe:
            self.wipe.discard(name)
            if name == "projection":
                targets = list(self.home.glob("readmodel.sqlite*"))
            else:
                targets = list(state.iterdir()) if state in self.mounted else [state]
            for target in targets:
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
        if name in self.small_disks:
            self.small_disks.discard(name)
            state.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", state], check=True)
            self.mounted.add(state)

    @property
    def _environment_name(self) -> str:
        return str(self._given.get("environment", "dev"))

    def _environment(self, service: Service) -> dict[str, str]:
        if service.name in self.detoured:
            assert self.detour is not None
            return {"MINI_VISA_BROKER": f"kafka://127.0.0.1:{self.detour.port}"}
        return {}

    # -- parts

    @property
    def services(self) -> list[str]:
        return [service.name for service in SERVICES]

    @property
    def with_tables(self) -> list[str]:
        return [name for name in self.services if name not in NO_TABLES]

    @property
    def gateway(self) -> tuple[str, int]:
        return self.settings.gateway_host, self.settings.gateway_port

    def part(self, name: str) -> Part:
        return self.system.part(name)

    async def process(self, name: str) -> Child:
        """Of a service. While it is being restarted there is none: waits for the next."""
        part = self.part(name)
        while part.child is None or part.child.code is not None:  # noqa: ASYNC110 - as in `replaced`
            await asyncio.sleep(PAUSE_S)
        return part.child

    async def hit(self, name: str, number: signal.Signals) -> Child:
        """Sends a signal to a service; returns the process that got it."""
        while not self.signal(child := await self.process(name), number):  # noqa: ASYNC110 - as there
            await asyncio.sleep(PAUSE_S)
        if number in ENDS:
            self._may_end[child] = ENDS[number]
        return child

    def signal(self, child: Child, number: signal.Signals) -> bool:
        """Whether it was there to get it."""
        if child.code is not None:
            return False
        try:
            os.kill(child.pid, number)
        except ProcessLookupError:
            return False
        return True

    @contextlib.contextmanager
    def may_end(self, child: Child) -> Iterator[None]:
        """If it ends meanwhile, that is what the present fault is for."""
        self._may_end[child] = ANY_CODE
        try:
            yield
        finally:
            if child.code is None:
                del self._may_end[child]

    def _ended(self, name: str, child: Child) -> None:
        if child.code not in self._may_end.get(child, ()):
            self.unasked.append(Unasked(time.monotonic(), name, child.code, self.fault))

    async def replaced(self, name: str, child: Child) -> None:
        """Returns when another process is there instead of that one and all are ready."""
        await child.ended.wait()
        if self._may_end.get(child) == ENDS[signal.SIGKILL]:
            assert child.code == -signal.SIGKILL, f"{name} had ended, with {child.code}, before it was killed"
        while self.part(name).child is child:  # noqa: ASYNC110 - the supervisor has no event for it
            await asyncio.sleep(PAUSE_S)
        await self.ready()

    async def ready(self) -> None:
        """Returns when every part is, and stays so for a moment."""
        async with asyncio.timeout(READY_S_MAX):
            while True:
                await asyncio.gather(*(part.ready.wait() for part in self.system.parts))
                await asyncio.sleep(0.2)
                if all(part.ready.is_set() for part in self.system.parts):
                    return

    async def end(self, name: str, number: signal.Signals) -> None:
        """Ends a service by a signal; returns when it is up again."""
        await self.replaced(name, await self.hit(name, number))

    # -- more workers

    async def hire(self, service: str, number: int) -> str:
        """One more worker of a service, with a home of its own. Returns its name when it is ready."""
        name = f"{service}-{number}"
        home = self.home / "extra" / f"{name}-{time.monotonic_ns()}"
        home.mkdir(parents=True)
        port = free_port()
        changes = {"home": home, "instance": name, "web_port": port, "broker": f"kafka://{self.address}"}
        settings = self.settings.model_copy(update=changes)
        variables = {
            f"MINI_VISA_{key.upper()}": str(value)
            for key, value in settings.model_dump().items()
            if value is not None
        }
        self._extra[name] = await self.system.nursery.fork(
            name, ("worker", service), variables, self.home / "logs" / f"{name}.log"
        )
        deadline = time.monotonic() + READY_S_MAX
        while not await self.is_ready(port):
            assert time.monotonic() < deadline, f"{name} is not ready after {READY_S_MAX:.0f} s"
            if self._extra[name].code is not None:
                raise RuntimeError(f"{name} ended before it was ready, with {self._extra[name].code}")
            await asyncio.sleep(0.1)
        return name

    async def is_ready(self, port: int) -> bool:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                line = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return b" 200 " in line

    async def dismiss(self, name: str) -> None:
        """SIGTERM; kills what does not end."""
        child = self._extra.pop(name)
        if child.code is not None:
            self._ended(name, child)
        self.system.nursery.signal(child, signal.SIGTERM)
        try:
            await asyncio.wait_for(child.ended.wait(), self.settings.drain_timeout_s + 10)
        except TimeoutError:
            self.system.nursery.signal(child, signal.SIGKILL)
            await child.ended.wait()

    @contextlib.contextmanager
    def gateway_with_clock(self, file: Path) -> Iterator[tuple[subprocess.Popen[bytes], tuple[str, int]]]:
        """A second gateway whose clock is off by what `file` says."""
        port = free_port()
        settings = self.settings.model_copy(
            update={"gateway_port": port, "gateway_id": 1, "broker": f"kafka://{self.address}"}
        )
        variables = {
            f"MINI_VISA_{key.upper()}": str(value)
            for key, value in settings.model_dump().items()
            if value is not None
        }
        with (self.home / "logs" / "gateway-clock.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.clock", str(file), "gateway"],
                env={**os.environ, **variables}, stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        try:
            yield process, ("127.0.0.1", port)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- Kafka and SQL

    async def poison(self, topic: str, partition: int, values: list[bytes]) -> list[int]:
        """Offsets of records that make no sense."""
        producer = AIOKafkaProducer(bootstrap_servers=self.address)
        await producer.start()
        try:
            sent = [await producer.send(topic, value, key=b"poison", partition=partition) for value in values]
            return [int((await one).offset) for one in sent]
        finally:
            await producer.stop()

    async def leader_of(self, topic: str, partition: int) -> int:
        """Index in `cluster.nodes`."""
        async with self._admin() as admin:
            (found,) = await admin.describe_topics([topic])
            return (
                int(next(one["leader"] for one in found["partitions"] if one["partition"] == partition)) - 1
            )

    async def members(self, service: str) -> set[str]:
        """Ids of all members of the service's consumer groups: given anew with each join."""
        async with self._admin() as admin:
            return await self._members(admin, service)

    async def joined(self, service: str, before: set[str]) -> None:
        """Returns when the groups have a member that is not among those `before`."""
        async with self._admin() as admin:
            while not await self._members(admin, service) - before:  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(PAUSE_S)

    async def _members(self, admin: AIOKafkaAdminClient, service: str) -> set[str]:
        """A coordinator that is still loading, after its broker was killed, is asked again."""
        while True:
            try:
                return await self._members_now(admin, service)
            except KafkaError as error:
                if not error.retriable:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _members_now(self, admin: AIOKafkaAdminClient, service: str) -> set[str]:
        start = f"{self.settings.environment}.{service}"
        groups = [group for group, *_ in await admin.list_consumer_groups() if group.startswith(start)]
        found = set()
        for group in groups:
            node = await admin.find_coordinator(group)
            answer = await admin._send_request(_Members([group]), node)
            ((_, _, _, _, _, members),) = answer.groups
            found |= {member_id for member_id, *_ in members}
        return found

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    def fences(self) -> Fences:
        """Of all that one broker has on its disk; with three each has all."""
        broker = self.broker or self.cluster.nodes[0]  # type: ignore[union-attr]
        return fences_of(broker.home / "data")

    async def quiet(self) -> None:
        """Returns when every hold that expires soon has done so, every consumer has read all but ticks, and
        every capture has its outcome. Nobody may send requests any more."""
        deadline = time.monotonic() + QUIET_S_MAX
        await asyncio.sleep(EXPIRED_S + max(0.0, self.clock_ahead_until - time.monotonic()))
        why = "nothing was asked yet"
        while time.monotonic() < deadline:
            try:
                why = await self._unrest()
            except (KafkaError, OSError, sqlite3.Error, asyncpg.PostgresError) as error:
                why = f"{type(error).__name__}: {error}"
            if not why:
                return
            await asyncio.sleep(1.0)
        raise TimeoutError(f"no rest after {QUIET_S_MAX:.0f} s: {why}")

    async def _unrest(self) -> str:
        """What is still to do; "" when nothing is. Looks twice, so that what was under way has arrived."""
        for look in (1, 2):
            captured = await asyncio.to_thread(self.count, "payment_captured/1")
            ended = sum(
                [await asyncio.to_thread(self.count, f"capture_{how}/1") for how in ("cleared", "rejected")]
            )
            if "clearing" in self.services and captured != ended:
                return f"{captured - ended} captures have no outcome"
            behind = await self._behind()
            if behind:
                return behind
            if look == 1:
                await asyncio.sleep(2.0)
        return ""

    def count(self, kind: str) -> int:
        """Events of a kind in the read model."""
        if self.database is None:
            with contextlib.closing(sqlite3.connect(self.home / "readmodel.sqlite", timeout=30)) as database:
                return int(
                    database.execute(
                        "SELECT count(*) FROM payment_events WHERE type = ?", (kind,)
                    ).fetchone()[0]
                )

        async def ask(url: str) -> int:
            connection = await asyncpg.connect(url, server_settings={"search_path": LIVE})
            try:
                return int(
                    await connection.fetchval("SELECT count(*) FROM payment_events WHERE type = $1", kind)
                )
            finally:
                await connection.close()

        return asyncio.run(ask(self.database.url))

    async def _behind(self) -> str:
        """A consumer group that is further behind than a few ticks; "" when none is."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.address, isolation_level="read_committed")
        await admin.start()
        await consumer.start()
        try:
            for group, *_ in await admin.list_consumer_groups():
                offsets = await admin.list_consumer_group_offsets(group)
                ends = await consumer.end_offsets(list(offsets)) if offsets else {}
                for place, committed in offsets.items():
                    left = ends[place] - committed.offset
                    if left > 20:
                        return f"{group} is {left} behind on {place.topic}/{place.partition}"
        finally:
            await consumer.stop()
            await admin.close()
        return ""
