"""The whole system, a container a service: to be started, killed, cut off and replaced by tests."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from mini_visa.broker.embedded import free_port
from mini_visa.broker.properties import Node, new_cluster_id, properties
from mini_visa.settings import Settings
from mini_visa.supervisor.system import SERVICES
from tests.containers.conftest import HEALTH, Images
from tests.faults.client import Client

READY_S = 240.0
"""On a machine that does other things too."""
POLL_S = 0.25
GRACE_S = 35
SESSION_S = 8.0
"""Of the workers' group membership: whoever is silent for longer has lost its partitions."""
SHOPPERS = 4
ENVIRONMENT = "containers"
HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "pids_limit": 256,
    "mem_limit": "512m",
    "healthcheck": {"test": ["NONE"]},  # asked for here, and oftener
}


@dataclass
class Part:
    """A service's container. A new one of the same name has its volume, its identity and its address."""

    name: str
    image: str
    command: list[str]
    health: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)
    """Volume or path -> where it is mounted; a path is read-only."""
    more: dict[str, Any] = field(default_factory=dict)
    container: DockerContainer | None = None

    @property
    def inside(self) -> Any:
        """docker-py's container."""
        assert self.container is not None, f"{self.name} was not started"
        return self.container.get_wrapped_container()


class System:
    """`start`, use, `stop`; `stop` removes everything that was made, whatever happened before."""

    def __init__(self, client: docker.DockerClient, images: Images, folder: Path) -> None:
        self._client = client
        self._images = images
        self._id = secrets.token_hex(4)
        self._network = Network()
        self._volumes: set[str] = set()
        kafka_port, self.gateway_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.gateway_port}"
        self.settings = Settings(
            home=folder, broker=f"kafka://127.0.0.1:{kafka_port}", environment=ENVIRONMENT
        )
        password = secrets.token_hex(16)
        password_file = folder / "password"
        password_file.write_text(password)
        values = properties(Node(), port=9092, controller_port=9093, data="/var/lib/kafka/data/log") | {
            "listeners": f"INSIDE://:9092,OUTSIDE://:{kafka_port},CONTROLLER://127.0.0.1:9093",
            "advertised.listeners": f"INSIDE://kafka:9092,OUTSIDE://127.0.0.1:{kafka_port}",
            "listener.security.protocol.map": "INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INSIDE",
        }
        kafka = Part(
            "kafka", images.kafka, [], ["/opt/kafka/kafka-health"],
            {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in values.items()}
            | {"CLUSTER_ID": new_cluster_id()},
            {kafka_port: kafka_port}, {self._volume("kafka"): "/var/lib/kafka/data"}, {"mem_limit": "1g"},
        )  # fmt: skip
        postgresql = Part(
            "postgresql", images.postgresql, [], ["pg_isready", "--quiet", "--host", "127.0.0.1"],
            {"POSTGRES_USER": "mini_visa", "POSTGRES_PASSWORD_FILE": "/run/password"},
            volumes={self._volume("postgresql"): "/var/lib/postgresql/data",
                     str(password_file): "/run/password"},
        )  # fmt: skip
        self._common = {
            "MINI_VISA_BROKER": "kafka://kafka:9092",
            "MINI_VISA_ENVIRONMENT": ENVIRONMENT,
            "MINI_VISA_ROCKSDB_MEMORY_BYTES": str(64 << 20),
            "MINI_VISA_SESSION_TIMEOUT_S": str(SESSION_S),
            "MINI_VISA_CLEARING_CYCLE_S": "2",
            "MINI_VISA_CLEARING_HOUSE_URL": "http://clearing-house:8090",
            "MINI_VISA_DATABASE_URL": f"postgresql://mini_visa:{password}@postgresql:5432/mini_visa",
        }
        self.backbone = [kafka, postgresql]
        self.services = [self._service(service.name, list(service.command)) for service in SERVICES]
        self.part("gateway").ports = {8080: self.gateway_port}

    def part(self, name: str) -> Part:
        return next(part for part in [*self.backbone, *self.services] if part.name == name)

    def add(self, name: str, command: list[str], **environment: str) -> Part:
        """One more service, started and ready."""
        part = self._service(name, command)
        part.environment |= environment
        self.services.append(part)
        self.run([part])
        return part

    def start(self) -> None:
        self._network.create()
        self.run(self.backbone)
        code, said = self.once("topics", "apply")
        assert code == 0, said
        self.run(self.services)

    def run(self, parts: Iterable[Part]) -> None:
        """Starts them at once; returns when all are ready."""
        parts = list(parts)
        self.at_once(self._start, parts)
        self.at_once(self.until_ready, parts)

    def once(self, *command: str, files: dict[str, str] | None = None) -> tuple[int, str]:
        """`mini-visa COMMAND` in a container of its own: exit code, and what it printed. `files`: path here
        -> path there."""
        volumes = {source: {"bind": target, "mode": "ro"} for source, target in (files or {}).items()}
        container = self._client.containers.run(
            self._images.application, list(command), environment=self._common, network=self._network.name,
            detach=True, tmpfs={"/tmp": "size=64m"}, volumes=volumes, **HARDENED,
        )  # fmt: skip
        try:
            code: int = container.wait(timeout=READY_S)["StatusCode"]
            return code, container.logs(stderr=code != 0).decode()
        finally:
            container.remove(force=True)

    def ready(self, part: Part) -> bool:
        try:
            return part.inside.exec_run(part.health).exit_code == 0
        except APIError:  # it does not run, or is paused
            return False

    def until_ready(self, part: Part, timeout_s: float = READY_S) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        while not self.ready(part):
            if time.monotonic() - begun > timeout_s:
                raise AssertionError(f"{part.name} is not ready after {timeout_s:.0f} s:\n{self.log(part)}")
            time.sleep(POLL_S)
        return time.monotonic() - begun

    def log(self, part: Part, lines: int = 30) -> str:
        return part.inside.logs(tail=lines).decode(errors="replace")

    def replace(self, part: Part, image: str) -> int:
        """SIGTERM, and when it has ended a new container of `image` in its place. The old one's exit code."""
        code = self.end(part)
        part.image = image
        self.run([part])
        return code

    def end(self, part: Part) -> int:
        """SIGTERM; removed when it has ended. Its exit code; 137 when it had to be killed."""
        inside = part.inside
        # Otherwise its policy would start it again.
        inside.update(restart_policy={"Name": "no"})
        inside.stop(timeout=GRACE_S)
        code: int = inside.wait()["StatusCode"]
        if code != 0:
            print(f"{part.name} ended with {code}:\n{self.log(part)}")
        inside.remove()
        part.container = None
        return code

    def cut_off(self, part: Part) -> None:
        self._client.networks.get(self._network.name).disconnect(part.inside.id)

    def connect(self, part: Part) -> None:
        self._network.connect(part.inside.id, [part.name])

    def stop(self) -> None:
        for part in [*self.services, *self.backbone]:
            if part.container is not None:
                try:
                    part.inside.remove(force=True, v=True)
                except (APIError, NotFound) as error:
                    print(f"{part.name}: {error}")
        for name in self._volumes:
            try:
                self._client.volumes.get(name).remove(force=True)
            except (APIError, NotFound) as error:
                print(f"{name}: {error}")
        self._network.remove()

    def at_once(self, work: Callable[[Part], Any], parts: Iterable[Part]) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, parts))

    def _service(self, name: str, command: list[str]) -> Part:
        environment = self._common | {"MINI_VISA_INSTANCE": name}
        volume = {self._volume(name): "/var/lib/mini-visa"}
        return Part(name, self._images.application, command, HEALTH, environment, volumes=volume)

    def _volume(self, name: str) -> str:
        volume = f"mini-visa-{self._id}-{name}"
        self._volumes.add(volume)
        return volume

    def _start(self, part: Part) -> None:
        container = DockerContainer(part.image).with_name(f"mini-visa-{self._id}-{part.name}")
        container.with_network(self._network).with_network_aliases(part.name).with_envs(**part.environment)
        container.with_tmpfs_mount("/tmp", "size=64m,mode=1777")
        if part.command:
            container.with_command(part.command)
        for source, target in part.volumes.items():
            container.with_volume_mapping(source, target, "ro" if source.startswith("/") else "rw")
        # A process that ended by itself with an error is started again, as every orchestrator does.
        options = HARDENED | {"restart_policy": {"Name": "on-failure"}} | part.more
        # testcontainers publishes on every address of the machine; this is for this machine alone.
        ports = {str(inner): ("127.0.0.1", outer) for inner, outer in part.ports.items()}
        container.ports = ports  # type: ignore[assignment]
        part.container = container.with_kwargs(**options)
        container.start()


class Shopping:
    """Shoppers in a thread of their own, who give up on nothing and write down all that happens to them."""

    def __init__(self, system: System, folder: Path, seed: int = 1) -> None:
        self.history = folder / "history.jsonl"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.client = self._call(self._client(system, seed))
        self._load = asyncio.run_coroutine_threadsafe(self.client.run(), self._loop)

    async def _client(self, system: System, seed: int) -> Client:
        gateway = ("127.0.0.1", system.gateway_port)
        return Client(
            gateway, self.history, seed=seed, shoppers=SHOPPERS, partitions=system.settings.partitions
        )

    def decided(self, timeout_s: float = 120.0) -> float:
        """Seconds from now until on every partition a payment was decided that was sent from now on."""

        async def wait() -> float:
            _, everywhere = self.client.expect()
            async with asyncio.timeout(timeout_s):
                return await everywhere

        if self._load.done():
            self._load.result()
        seconds: float = self._call(wait(), timeout_s + 10)
        return seconds

    def end(self) -> None:
        """What is under way is seen to its end, and all is in the history."""
        self.client.stop()
        self._load.result(300)
        self.history.chmod(0o644)  # the auditor's container reads it as another user

    def close(self) -> None:
        self.client.stop()
        self._load.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _call(self, work: Any, timeout_s: float = 60.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)
