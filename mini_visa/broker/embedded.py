"""A real Apache Kafka of one's own: one KRaft process from Kafka's published jars.

On disk, all under one directory (HOME/broker): libs-VERSION (jars), data (the log), broker.json (port,
cluster id, process), server.properties, broker.log, jvm.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mini_visa.broker import jars
from mini_visa.broker.errors import BrokerError
from mini_visa.broker.process import Identity
from mini_visa.broker.properties import Node, new_cluster_id, properties
from mini_visa.broker.wire import at_rest, brokers_known, is_free

START_TIMEOUT_S = 90.0
STOP_GRACE_S = 15.0
QUIET_S = 1.2
"""Workers that run but have nothing to do make a transaction a second (the setting `tick_interval_s`)."""
SETTLE_TIMEOUT_S = 3.0
DISK_FREE_BYTES_MIN = 1 << 30
PORTS = range(20_000, 30_000)
"""Below the range from which systems take the ports of outgoing connections: a port stays free."""
HEAP_BYTES = 384 << 20
_START_ATTEMPTS = 3
_HOST = "127.0.0.1"
_LAUNCHER = Path(__file__).with_name("launcher.py")
_LOGGING = Path(__file__).with_name("log4j2.properties")


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
        heap_bytes: int = HEAP_BYTES,
        node: Node | None = None,
    ) -> None:
        self.home = home
        self.libs_cache = libs_cache or home
        self.node = node or Node()
        self._fixed_port = port
        self._fixed_controller_port = controller_port
        self._heap_bytes = heap_bytes
        self._launcher: subprocess.Popen[bytes] | None = None
        self._archive_options: Sequence[str] | None = None

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
        state = self._read()
        if state and state.process():  # attaching needs no Java
            self._must_answer(state)
            return False
        java = jars.java()
        self._check_disk()
        libs = jars.libraries(self.libs_cache)
        if self._archive_options is None:
            self._archive_options = self._class_archive(java, libs)
        with jars.locked(self.home / "lock"):
            state = self._read()
            if state and state.process():
                self._must_answer(state)
                return False
            for attempt in range(1, _START_ATTEMPTS + 1):
                state = self._plan(state)
                self._format(java, libs, state)
                self._launch(java, libs, state, detach=detach)
                try:
                    if wait:
                        self.await_ready()
                    return True
                except BrokerError:
                    self.stop()
                    # Somebody took the port between our look and Kafka's bind.
                    taken = "Address already in use" in "\n".join(self.logs(200))
                    if not taken or self._fixed_port or attempt == _START_ATTEMPTS:
                        raise
                except BaseException:  # Ctrl-C while it starts
                    self.stop()
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

    def stop(self, grace_s: float = STOP_GRACE_S, *, quiet_s: float = QUIET_S) -> bool:
        """In order when no transaction was open for `quiet_s`: SIGTERM, then SIGKILL after `grace_s`.
        Otherwise, when somebody still works with it, SIGKILL. True: it was running, whoever started it.

        A commit is answered before its markers are in the partitions. A single Kafka that shuts down in order
        while it still writes them gives up its partitions first, takes those without a leader for deleted
        ones, and drops their markers (4.4, KRaftMetadataCache.getPartitionLeaderEndpoint): the transaction
        hangs in them for ever (see transactions.py). A crash drops nothing: what was acknowledged is in the
        log, and the next start, some seconds longer, goes on from there."""
        state = self._read()
        process = state.process() if state else None
        if state and process:
            alone = self.node.voters == ""
            if alone and not at_rest(_HOST, state.port, quiet_s, quiet_s + SETTLE_TIMEOUT_S):
                process.kill()
            else:
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
            process.kill()
        self.stop()  # forgets the process

    # -- the steps of a start -------------------------------------------------------------------

    def _must_answer(self, state: _State) -> None:
        """Attach: the process is there; another process may have started it a moment ago."""
        if self._fixed_port not in (None, state.port):
            raise BrokerError(
                f"The embedded broker runs already, on port {state.port}: "
                "use it, or stop it first (`mini-visa broker stop`)."
            )
        self.await_ready()

    def _class_archive(self, java: jars.Java, libs: Path) -> Sequence[str]:
        """JVM options for a class archive (JEP 350), which halves a start's time: its classes need not be
        parsed and verified again. Made once, from a broker that is started and stopped for it."""
        archive = libs / f"classes-{java.build}.jsa"
        with jars.locked(self.libs_cache / "archive.lock"):
            if not archive.exists():
                with tempfile.TemporaryDirectory(dir=self.libs_cache, prefix="archive-") as scratch:
                    made = Path(scratch, "classes.jsa")
                    trainee = EmbeddedBroker(Path(scratch, "broker"), libs_cache=self.libs_cache)
                    trainee._archive_options = (f"-XX:ArchiveClassesAtExit={made}",)
                    # Without an archive a start only takes longer; what is really wrong, it will say.
                    with contextlib.suppress(BrokerError):
                        trainee.start()
                        trainee.stop(START_TIMEOUT_S)
                        made.rename(archive)
        return (f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off") if archive.exists() else ()

    def _check_disk(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
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
            port = state.port if state and is_free(state.port) else free_port()
        elif not is_free(port):
            raise BrokerError(
                f"Port {port} is in use by another program. Choose another with --port, "
                "or leave --port out for a free one."
            )
        controller_port = self._fixed_controller_port
        if controller_port is None:
            kept = state.controller_port if state else 0
            controller_port = kept if kept and is_free(kept) else free_port(but=port)
        cluster_id = self.node.cluster_id or (state.cluster_id if state else "") or new_cluster_id()
        planned = _State(port, controller_port, cluster_id, version)
        self._write_properties(self.home / "server.properties", planned, self.home / "data")
        self._write(planned)
        return planned

    def _write_properties(self, path: Path, state: _State, data: Path) -> None:
        values = properties(self.node, port=state.port, controller_port=state.controller_port, data=str(data))
        path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))

    def _format(self, java: jars.Java, libs: Path, state: _State) -> None:
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
        configuration = self.home / "format.properties"
        self._write_properties(configuration, state, partial)
        archived = [option for option in self._archive_options or () if "ArchiveClassesAtExit" not in option]
        done = subprocess.run(
            [java.program, *archived, "-XX:TieredStopAtLevel=1",
             f"-Dmini_visa.log={self.home / 'format.log'}", f"-Dlog4j2.configurationFile={_LOGGING}",
             "-cp", jars.class_path(libs), "kafka.tools.StorageTool",
             "format", "-t", state.cluster_id, "-c", str(configuration)],
            capture_output=True, text=True, timeout=START_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()[-6:]
            raise BrokerError("Kafka could not format its data directory:\n  " + "\n  ".join(said))
        partial.rename(data)
        configuration.unlink()

    def _launch(self, java: jars.Java, libs: Path, state: _State, *, detach: bool) -> None:
        heap_mb = self._heap_bytes >> 20
        command = [
            java.program, *(self._archive_options or ()),
            f"-Xms{min(128, heap_mb)}m", f"-Xmx{heap_mb}m", "-XX:MaxDirectMemorySize=128m",
            "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
            f"-Dmini_visa.log={self.log}", f"-Dlog4j2.configurationFile={_LOGGING}",
            "-cp", jars.class_path(libs), "kafka.Kafka", str(self.home / "server.properties"),
        ]  # fmt: skip
        if self.log.exists():  # so that what this start says is told apart from the last run's end
            self.log.replace(self.log.with_suffix(".log.last"))
        with (self.home / "jvm.log").open("wb") as jvm_log:
            if detach:
                pid = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=jvm_log, stderr=jvm_log, start_new_session=True
                ).pid
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
                "Delete it, and first end the broker if one runs: only its port is forgotten."
            ) from broken

    def _write(self, state: _State) -> None:
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
    ("No space left on device", "The disk is full: free some, or set MINI_VISA_HOME elsewhere."),
    ("Failed to acquire lock on file .lock", "Another Kafka uses its data directory: end that one first."),
    ("Invalid cluster.id", "Its data directory is another cluster's: move HOME/broker/data away."),
    ("OutOfMemoryError", "It ran out of memory: raise MINI_VISA_BROKER_HEAP_BYTES."),
    ("Could not reserve enough space", "There is not enough memory for it: end other programs."),
)


def free_port(but: int = 0) -> int:
    """A port of PORTS that is free now. Raises BrokerError when none is found."""
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
