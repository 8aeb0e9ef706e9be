"""What `make` says on a machine that lacks something."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "prerequisites"
TOOLS = ("bash", "env", "sed", "head", "id")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The PATH of a machine with a shell's tools, and nothing else."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    return tmp_path


def install(machine: Path, name: str, script: str) -> None:
    (machine / name).write_text(f"#!/bin/bash\n{script}\n")
    (machine / name).chmod(0o755)


def ask(machine: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine), "HOME": str(machine), **more}
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)


def this_python(machine: Path) -> None:
    (machine / "python3").symlink_to(sys.executable)


@pytest.mark.parametrize("old", [False, True], ids=["none", "an old one"])
def test_without_a_python_that_is_new_enough_it_says_which_one(machine: Path, old: bool) -> None:
    if old:
        install(machine, "python3", "exit 1")
    done = ask(machine)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Python 3.11 or newer is missing. Install it")


def test_without_java_and_maven_it_names_the_command_that_installs_both(machine: Path) -> None:
    this_python(machine)
    done = ask(machine)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Missing: openjdk-17-jre-headless maven.")
    assert "apt-get install openjdk-17-jre-headless maven" in done.stderr
    assert "MINI_VISA_BROKER=kafka://HOST:PORT" in done.stderr


def test_an_old_java_is_as_none(machine: Path) -> None:
    this_python(machine)
    install(machine, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    install(machine, "mvn", "exit 0")
    assert ask(machine).stderr.startswith("Missing: openjdk-17-jre-headless.")


def test_with_everything_it_prints_the_python(machine: Path) -> None:
    this_python(machine)
    install(machine, "java", "echo 'openjdk version \"21.0.1\" 2023-10-17' >&2")
    install(machine, "mvn", "exit 0")
    done = ask(machine)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).samefile(sys.executable)


def test_with_a_kafka_elsewhere_neither_java_nor_maven_is_needed(machine: Path) -> None:
    this_python(machine)
    assert ask(machine, MINI_VISA_BROKER="kafka://somewhere:9092").returncode == 0
