"""Java, Maven, and the broker's jars: fetched once, kept in a directory named after the Kafka version."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mini_visa.broker.errors import BrokerError, MissingProgramError

POM = Path(__file__).with_name("pom.xml")
JAVA_MIN = 17
DOWNLOAD_TIMEOUT_S = 900
JAVA_ANSWER_TIMEOUT_S = 30
_INSTALL = (
    "on Debian or Ubuntu: apt-get install openjdk-17-jre-headless maven; "
    "on macOS: brew install openjdk@17 maven"
)
_ELSEWHERE = "or set MINI_VISA_BROKER=kafka://HOST:PORT to use a Kafka that is already running"


@dataclass(frozen=True)
class Java:
    """A Java of this machine. `build` tells it apart from every other build, in eight characters."""

    program: str
    version: int
    build: str


def kafka_version() -> str:
    """The Kafka version of the package's pom.xml."""
    found = ElementTree.parse(POM).getroot().find(".//{*}kafka.version")  # noqa: S314 (our own file)
    assert found is not None and found.text
    return found.text


def java() -> Java:
    """JAVA_HOME's Java, else the first on PATH. Raises MissingProgramError unless it is 17 or newer."""
    home = os.environ.get("JAVA_HOME")
    beside_home = Path(home, "bin", "java") if home else None
    program = str(beside_home) if beside_home and beside_home.exists() else shutil.which("java")
    if program is None:
        raise MissingProgramError(f"Java is missing. Install it ({_INSTALL}) {_ELSEWHERE}.")
    try:
        said = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=JAVA_ANSWER_TIMEOUT_S
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise MissingProgramError(
            f"{program} does not run ({failure}). Install Java: {_INSTALL}."
        ) from failure
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    version = int(found.group(1)) if found else 0
    if version < JAVA_MIN:
        raise MissingProgramError(
            f"{program} is Java {version or 'of an unknown version'}; Kafka needs {JAVA_MIN} or newer. "
            f"Install it ({_INSTALL}) {_ELSEWHERE}."
        )
    return Java(program, version, hashlib.sha256(said.encode()).hexdigest()[:8])


def maven() -> str:
    """Path of Maven. Raises MissingProgramError when there is none."""
    program = shutil.which("mvn")
    if program is None:
        raise MissingProgramError(
            f"Maven is missing; it fetches Kafka's jars once. Install it ({_INSTALL}) {_ELSEWHERE}."
        )
    return program


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` among all processes of this machine. The system lets
    go of it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def libraries(cache: Path) -> Path:
    """The directory with the broker's jars under `cache`, fetched if it is not there yet.

    A download goes to a directory of its own that is renamed when complete: an interrupted one leaves
    nothing that looks like the jars. Two processes at once: the second waits for the first."""
    target = cache / f"libs-{kafka_version()}"
    if target.exists():
        return target
    program = maven()
    with locked(cache / "libs.lock"):
        if target.exists():
            return target
        partial = cache / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        command = [
            program, "-B", "-q", "-f", str(POM), "dependency:copy-dependencies",
            "-DincludeScope=runtime", f"-DoutputDirectory={partial}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired as late:
            raise BrokerError(f"Maven did not fetch Kafka's jars within {DOWNLOAD_TIMEOUT_S} s.") from late
        if done.returncode != 0:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise BrokerError(
                "Maven could not fetch Kafka's jars. Is the network there, and ~/.m2/settings.xml right? "
                "It said:\n  " + "\n  ".join(said[:6])
            )
        partial.rename(target)
    return target


def class_path(libs: Path) -> str:
    """The jars in a fixed order: a class archive is only used with the very class path it was made with."""
    return ":".join(str(jar) for jar in sorted(libs.glob("*.jar")))
