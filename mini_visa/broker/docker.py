"""The broker of this machine in a container: for a machine with Docker and without Java."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

from mini_visa.broker import jars
from mini_visa.broker.embedded import HEAP_BYTES, QUIET_S, SETTLE_TIMEOUT_S, Health, free_port
from mini_visa.broker.errors import BrokerError, MissingProgramError
from mini_visa.broker.properties import Node, new_cluster_id, properties
from mini_visa.broker.wire import at_rest, brokers_known, is_free

PULL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
STOP_GRACE_S = 15
_CONTROLLER_PORT = 9093
_DATA = "/var/lib/kafka/data"


class DockerBroker:
    """The container that belongs to `home`: its name is made from it, its data are in a volume of the
    same name. Unlike the embedded broker it outlives a process that was killed; the next start attaches
    to it."""

    def __init__(
        self, home: Path, *, image: str = "", port: int | None = None, heap_bytes: int = HEAP_BYTES
    ) -> None:
        """`image`: "" for the Apache project's own, of the version that is embedded elsewhere."""
        self.home = home
        self.image = image or f"apache/kafka:{jars.kafka_version()}"
        self.name = f"mini-visa-kafka-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]}"
        self._fixed_port = port
        self._heap_bytes = heap_bytes

    @property
    def log(self) -> Path:
        return self.home / "broker.log"

    @property
    def address(self) -> str | None:
        """HOST:PORT of the running container; None when it does not run."""
        port = self._port() if self._running() else None
        return f"127.0.0.1:{port}" if port else None

    def health(self) -> Health:
        address = self.address
        pid = self._docker("inspect", "--format", "{{.State.Pid}}", self.name) if address else ""
        return Health(
            running=address is not None,
            answers=bool(address and brokers_known("127.0.0.1", int(address.rpartition(":")[2]))),
            address=address,
            pid=int(pid) if pid.isdigit() else None,
            version=self.image.rpartition(":")[2],
            memory_bytes=None,
            log=f"docker logs {self.name}",
        )

    def logs(self, lines: int = 50) -> list[str]:
        """The last lines of the container's output."""
        done = subprocess.run(
            [self._program(), "logs", "--tail", str(lines), self.name],
            capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S,
        )  # fmt: skip
        return (done.stdout + done.stderr).splitlines() if done.returncode == 0 else []

    def start(self, *, detach: bool = False, wait: bool = True) -> bool:
        """Starts the container, or attaches to the one that runs. True: this call started it.

        `detach` makes no difference: a container is always apart. Raises BrokerError."""
        with jars.locked(self.home / "lock"):
            if self._running():
                self._await_ready()
                return False
            if not self._docker("images", "--quiet", self.image):
                self._docker("pull", "--quiet", self.image, timeout_s=PULL_TIMEOUT_S)
            port = self._fixed_port or self._remembered_port()
            if not is_free(port):
                raise BrokerError(f"Port {port} is in use by another program. Choose another with --port.")
            cluster_id = str(self._remembered().get("cluster_id") or new_cluster_id())
            (self.home / "docker.json").write_text(json.dumps({"port": port, "cluster_id": cluster_id}))
            self._docker("rm", "--force", self.name)
            self._docker(*self.run_arguments(port, cluster_id))
            try:
                if wait:
                    self._await_ready()
            except BaseException:
                self.stop()
                raise
        return True

    def stop(self, grace_s: float = STOP_GRACE_S, *, quiet_s: float = QUIET_S) -> bool:
        """As `EmbeddedBroker.stop`. True: it was running. Its data stay in the volume."""
        if not self._running():
            return False
        port = self._port()
        if port and at_rest("127.0.0.1", port, quiet_s, quiet_s + SETTLE_TIMEOUT_S):
            self._docker("stop", "--time", str(int(grace_s)), self.name)
        else:
            self._docker("kill", self.name)
        return True

    def run_arguments(self, port: int, cluster_id: str) -> list[str]:
        """`docker run ...`: the image takes Kafka's properties as KAFKA_ variables."""
        values = properties(
            Node(), port=port, controller_port=_CONTROLLER_PORT, data=f"{_DATA}/log", bind="0.0.0.0"  # noqa: S104
        )  # fmt: skip
        heap_mb = self._heap_bytes >> 20
        variables = {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in values.items()}
        variables |= {"CLUSTER_ID": cluster_id, "KAFKA_HEAP_OPTS": f"-Xms128m -Xmx{heap_mb}m"}
        arguments = ["run", "--detach", "--name", self.name, "--volume", f"{self.name}:{_DATA}"]
        # Only this machine may connect: there is no authentication.
        arguments += ["--publish", f"127.0.0.1:{port}:{port}", "--memory", f"{heap_mb + 512}m"]
        for key, value in variables.items():
            arguments += ["--env", f"{key}={value}"]
        return [*arguments, self.image]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        port = self._port()
        while not (port and brokers_known("127.0.0.1", port)):
            if not self._running() or time.monotonic() > deadline:
                last = "\n  ".join(self.logs(12)) or "(nothing)"
                raise BrokerError(f"The Kafka container {self.name} did not start. It said:\n  {last}")
            time.sleep(0.2)
            port = self._port()

    def _running(self) -> bool:
        listed = self._docker(
            "ps", "--quiet", "--filter", f"name=^{self.name}$", "--filter", "status=running"
        )
        return bool(listed)

    def _port(self) -> int | None:
        found = self._remembered().get("port")
        return found if isinstance(found, int) else None

    def _remembered_port(self) -> int:
        kept = self._port()
        return kept if kept and is_free(kept) else free_port()

    def _remembered(self) -> dict[str, object]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads((self.home / "docker.json").read_text())
            if isinstance(found, dict):
                return found
        return {}

    def _program(self) -> str:
        program = shutil.which("docker")
        if program is None:
            raise MissingProgramError(
                "Docker is missing. Install it, or use the embedded broker (MINI_VISA_BROKER=embedded: "
                "Java 17 and Maven) or a Kafka that is already running (MINI_VISA_BROKER=kafka://HOST:PORT)."
            )
        return program

    def _docker(self, *arguments: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """What `docker ARGUMENTS` prints. Raises BrokerError with what it complains about."""
        try:
            done = subprocess.run(
                [self._program(), *arguments], capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as late:
            raise BrokerError(f"`docker {arguments[0]}` did not end within {timeout_s:.0f} s.") from late
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:] or ["(nothing)"]
            raise BrokerError(
                f"`docker {arguments[0]}` failed. Is the Docker engine running? It said: {said[0]}"
            )
        return done.stdout.strip()
