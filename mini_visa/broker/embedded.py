"""A real Apache Kafka of one's own: one KRaft process from Kafka's published jars.

On disk, all under one directory (HOME/broker): libs-VERSION (jars), data (the log), broker.json (port,
cluster id, process), server.properties, broker.log, jvm.log.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mini_visa.broker import jars
from mini_visa.broker.errors import BrokerError
from mini_visa.broker.process import Identity
from mini_visa.broker.wire import brokers_known, is_free

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
DISK_FREE_BYTES_MIN = 1 << 30
PORTS = range(20_000, 30_000)  # below the range from which systems take ports of outgoing connections
_START_ATTEMPTS = 3
_HOST = "127.0.0.1"
_LAUNCHER = Path(__file__).with_name("launcher.py")
_LOGGING = Path(__file__).with_name("log4j2.properties")


@dataclass(frozen=True)
class Node:
    """What differs between the brokers of a cluster; the default is a cluster of one."""

    id: int = 1
    voters: str = ""
    """controller.quorum.voters of the whole cluster; "": this node alone."""
    cluster_id: str = ""
    replication: int = 1


@dataclass(frozen=True)
class Health:
    """A broker as it is now. `answers` is what counts: it served a Kafka request."""

    running: bool
    answers: bool
    address: str | None
    pid: int | None
    version: str
    memory_bytes: int | None
    log: str


@dataclass
class _State:
    """broker.json: what the next start, or another process, needs to know."""

    port: int
    controller_port: int
    cluster_id: str
    version: str
    pid: int = 0
    started: str = ""

    def process(self) -> Identity | None:
        identity = Identity(self.pid, self.started)
        return identity if self.pid and identity.alive() else None


class EmbeddedBroker:
    """One broker whose state is under `home`; any process may attach to it by naming the same `home`.

    `port` of None: the one it had before if that is free, else a free one. `libs_cache` is where the
    jars are kept (default: `home`)."""

    def __init__(
        self,
        home: Path,
        *,
        libs_cache: Path | None = None,
        port: int | None = None,
        controller_port: int | None = None,
        heap_bytes: int = 384 << 20,
        node: Node | None = None,
    ) -> None:
        self.home = home
        self.libs_cache = libs_cache or home
        self.node = node or Node()
        self._fixed_port = port
        self._fixed_controller_port = controller_port
        self._heap_bytes = heap_bytes
        self._launcher: subprocess.Popen[bytes] | None = None

    # -- what others ask ------------------------------------------------------------------------

    @property
    def address(self) -> str | None:
        """HOST:PORT of the running broker; None when it does not run."""
        state = self._read()
        return f"{_HOST}:{state.port}" if state and state.process() else None

    @property
    def log(self) -> Path:
        return self.home / "broker.log"

    def health(self) -> Health:
        state = self._read()
        process = state.process() if state else None
        return Health(
            running=process is not None,
            answers=bool(state and process and brokers_known(_HOST, state.port)),
            address=f"{_HOST}:{state.port}" if state and process else None,
            pid=process.pid if process else None,
            version=state.version if state else jars.kafka_version(),
            memory_bytes=_memory_bytes(process.pid) if process else None,
            log=str(self.log),
        )

    def logs(self, lines: int = 50) -> list[str]:
        """The last lines of the broker's log (of the JVM's own when there is no other)."""
        for path in (self.log, self.home / "jvm.log"):
            with contextlib.suppress(FileNotFoundError):
                found = path.read_text(errors="replace").splitlines()[-lines:] if lines > 0 else []
                if found:
                    return found
        return []

    # -- start and stop -------------------------------------------------------------------------

    def start(self, *, detach: bool = False, wait: bool = True) -> bool:
        """Starts the broker, or attaches to the one that runs already. True: this call started it.

        It ends when this process ends, however that is; with `detach` it stays until `stop`.
        `wait` of False returns before it answers (the nodes of a cluster wait for one another).
        Raises BrokerError with the reason and what to do."""
        program = jars.java()
        libs = jars.libraries(self.libs_cache)
        with jars.locked(self.home / "lock"):
            state = self._read()
            if state and state.process():
                self._must_answer(state)
                return False
            self._check_disk()
            for attempt in range(1, _START_ATTEMPTS + 1):
                state = self._plan(state)
                self._format(program, libs, state)
                self._launch(program, libs, state, detach=detach)
                try:
                    if wait:
                        self.await_ready()
                    return True
                except BrokerError:
                    self.stop()
                    # Somebody took the port between our look and Kafka's bind.
                    if "Address already in use" not in "\n".join(self.logs(200)) or self._fixed_port:
                        raise
                    if attempt == _START_ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    def await_ready(self, brokers: int = 1, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when the broker answers and knows of at least `brokers` live ones.

        Raises BrokerError with the end of the log when it ended or the time is up."""
        state = self._read()
        assert state is not None, "await_ready before start"
        deadline = time.monotonic() + timeout_s
        while brokers_known(_HOST, state.port) < brokers or not state.process():
            if not state.process():
                raise BrokerError(self._why("The Kafka broker ended while it started"))
            if time.monotonic() > deadline:
                raise BrokerError(self._why(f"The Kafka broker was not ready within {timeout_s:.0f} s"))
            time.sleep(0.05)

    def stop(self, grace_s: float = STOP_GRACE_S) -> bool:
        """SIGTERM, then SIGKILL after `grace_s`. True: it was running, whoever started it."""
        state = self._read()
        process = state.process() if state else None
        if process:
            process.end(grace_s)
        if state and state.pid:
            state.pid, state.started = 0, ""
            self._write(state)
        if self._launcher:
            if self._launcher.stdin:
                self._launcher.stdin.close()
            self._launcher.wait(grace_s)
            self._launcher = None
        return process is not None

    def kill(self) -> None:
        """SIGKILL, as a crash would be; the log stays, `start` brings it back on the same port."""
        state = self._read()
        if state and (process := state.process()):
            process.end(0.0)
        self.stop()

    def __enter__(self) -> EmbeddedBroker:
        self._started_here = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._started_here:
            self.stop()

    # -- the steps of a start -------------------------------------------------------------------

    def _must_answer(self, state: _State) -> None:
        """Attach: the process is there; another process may have started it a moment ago."""
        if self._fixed_port not in (None, state.port):
            raise BrokerError(
                f"The embedded broker runs already, on port {state.port}: "
                "use it, or stop it first (`mini-visa broker stop`)."
            )
        self.await_ready()

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.home).free
        if free < DISK_FREE_BYTES_MIN:
            raise BrokerError(
                f"Only {free >> 20} MB are free on the disk of {self.home}; Kafka needs "
                f"{DISK_FREE_BYTES_MIN >> 20}. Free some, or set MINI_VISA_HOME to a directory elsewhere."
            )

    def _plan(self, state: _State | None) -> _State:
        """Ports, cluster id and version of the coming start, kept from the last one where possible."""
        version = jars.kafka_version()
        if state and _order(state.version) > _order(version):
            raise BrokerError(
                f"{self.home / 'data'} was written by Kafka {state.version}, newer than this one "
                f"({version}), which cannot read it. Update Mini-Visa, or move that directory away "
                "to start empty."
            )
        port = self._fixed_port
        if port is None:
            port = state.port if state and is_free(state.port) else _free_port()
        elif not is_free(port):
            raise BrokerError(
                f"Port {port} is in use by another program. Choose another with --port, "
                "or leave --port out for a free one."
            )
        controller_port = self._fixed_controller_port
        if controller_port is None:
            kept = state.controller_port if state else 0
            controller_port = kept if kept and is_free(kept) else _free_port(but=port)
        cluster_id = self.node.cluster_id or (state.cluster_id if state else "") or new_cluster_id()
        planned = _State(port, controller_port, cluster_id, version)
        (self.home / "server.properties").write_text(self._properties(planned, self.home / "data"))
        self._write(planned)
        return planned

    def _properties(self, state: _State, data: Path) -> str:
        """Kafka's own defaults stand unless a line here says why not."""
        replication = self.node.replication
        min_in_sync = max(1, replication - 1)
        voters = self.node.voters or f"{self.node.id}@{_HOST}:{state.controller_port}"
        lines = {
            "process.roles": "broker,controller",
            "node.id": self.node.id,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{_HOST}:{state.port},CONTROLLER://{_HOST}:{state.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{_HOST}:{state.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": data,
            # Safety: topics are made by `topics apply` only; a replica that lags never leads.
            "auto.create.topics.enable": "false",
            "unclean.leader.election.enable": "false",
            "default.replication.factor": replication,
            "min.insync.replicas": min_in_sync,
            # A record from the future would move a partition's time and expire its holds.
            "log.message.timestamp.after.max.ms": 60_000,
            # One machine: few and small internal partitions, created and loaded quickly.
            "offsets.topic.replication.factor": replication,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": replication,
            "transaction.state.log.min.isr": min_in_sync,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": replication,
            "share.coordinator.state.topic.min.isr": min_in_sync,
            # A service that restarts rejoins at once; tests use sessions shorter than 6 s.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1_000,
            # A laptop that is closed for a month must find its consumers' positions again.
            "offsets.retention.minutes": 60 * 24 * 365,
            # A dead worker's open transaction hides what follows it: look for expired ones every second.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
            "transaction.max.timeout.ms": 300_000,
            # Retention is checked often enough that a bound on disk is a bound.
            "log.retention.check.interval.ms": 60_000,
            "log.segment.bytes": 256 << 20,
            "log.index.size.max.bytes": 1 << 20,
            # Memory: the cleaner's default buffer alone is 128 MB.
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 4,
            "controlled.shutdown.enable": "true",
        }
        return "".join(f"{key}={value}\n" for key, value in lines.items())

    def _format(self, java: str, libs: Path, state: _State) -> None:
        """Makes the data directory once; in a directory of its own first, so half of one never counts."""
        data, partial = self.home / "data", self.home / "data.partial"
        if (data / "meta.properties").exists():
            return
        if data.exists() and any(data.iterdir()):
            raise BrokerError(
                f"{data} holds files but no meta.properties: it is not a Kafka data directory, "
                "or a damaged one. Move it away to start empty."
            )
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
        properties = self.home / "format.properties"
        properties.write_text(self._properties(state, partial))
        done = subprocess.run(
            [java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", f"-Dmini_visa.log={self.home / 'format.log'}",
             f"-Dlog4j2.configurationFile={_LOGGING}", "-cp", f"{libs}/*", "kafka.tools.StorageTool",
             "format", "-t", state.cluster_id, "-c", str(properties)],
            capture_output=True, text=True, timeout=START_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()[-6:]
            raise BrokerError("Kafka could not format its data directory:\n  " + "\n  ".join(said))
        partial.rename(data)
        properties.unlink()

    def _launch(self, java: str, libs: Path, state: _State, *, detach: bool) -> None:
        heap_mb = self._heap_bytes >> 20
        command = [
            java, f"-Xms{min(128, heap_mb)}m", f"-Xmx{heap_mb}m", "-XX:MaxDirectMemorySize=128m",
            "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
            f"-Dmini_visa.log={self.log}", f"-Dlog4j2.configurationFile={_LOGGING}",
            "-cp", f"{libs}/*", "kafka.Kafka", str(self.home / "server.properties"),
        ]  # fmt: skip
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.last"))
        with (self.home / "jvm.log").open("wb") as jvm_log:
            if detach:
                java_process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=jvm_log, stderr=jvm_log, start_new_session=True
                )
                pid = java_process.pid
            else:
                pid = self._launch_guarded(command, jvm_log)
        identity = Identity.of(pid)
        if identity is None:
            raise BrokerError(self._why("The Kafka broker ended at once"))
        state.pid, state.started = identity.pid, identity.started
        self._write(state)

    def _launch_guarded(self, command: list[str], jvm_log: IO[bytes]) -> int:
        """Starts the command under the launcher, which ends it when this process is gone. Its pid."""
        self._launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=jvm_log,
            start_new_session=True,
        )
        assert self._launcher.stdout is not None
        with self._launcher.stdout as said:
            first = said.readline()
        if not first.strip().isdigit():
            raise BrokerError(self._why("The Kafka broker could not be started"))
        return int(first)

    # -- state and diagnosis --------------------------------------------------------------------

    def _read(self) -> _State | None:
        try:
            return _State(**json.loads((self.home / "broker.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as broken:
            raise BrokerError(
                f"{self.home / 'broker.json'} cannot be read ({broken}). "
                "Delete it: only the port is forgotten."
            ) from broken

    def _write(self, state: _State) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        fresh = self.home / f"broker.json.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self.home / "broker.json")

    def _why(self, what: str) -> str:
        """`what`, the remedy where the log tells it, and the log's end."""
        logs = [*self._jvm_log(), *self.logs(400)]
        text = "\n".join(logs)
        remedy = next((advice for sign, advice in _REMEDIES if sign in text), "")
        last = "\n  ".join(line[:300] for line in logs[-12:]) or "(nothing)"
        return f"{what}.{' ' + remedy if remedy else ''} Its log, {self.log}, ends with:\n  {last}"

    def _jvm_log(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.home / "jvm.log").read_text(errors="replace").splitlines()[-20:]
        return []


_REMEDIES = (
    ("Address already in use", "Its port was taken by another program: start it again for another one."),
    (
        "No space left on device",
        "The disk is full: free some, or set MINI_VISA_HOME to a directory elsewhere.",
    ),
    (
        "Failed to acquire lock on file .lock",
        "Another Kafka process uses its data directory: end that one first.",
    ),
    (
        "Invalid cluster.id",
        "Its data directory belongs to another cluster: move HOME/broker/data away to start empty.",
    ),
    ("OutOfMemoryError", "It ran out of memory: raise MINI_VISA_BROKER_HEAP_BYTES."),
    ("Could not reserve enough space", "There is not enough memory for it: end other programs."),
)


def new_cluster_id() -> str:
    """A random id in Kafka's form: 16 bytes, URL-safe base64 without padding, not starting with '-'."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text


def _free_port(but: int = 0) -> int:
    for _ in range(200):
        port = random.choice(PORTS)  # noqa: S311 (no secret)
        if port != but and is_free(port):
            return port
    raise BrokerError(f"No free port between {PORTS.start} and {PORTS.stop} was found.")


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _memory_bytes(pid: int) -> int | None:
    """Resident memory of a process; None when it is gone, or the system is not Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:")), None)
