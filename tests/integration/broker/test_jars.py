"""Java, Maven and the jars: what is missing is named, an interrupted download is repaired."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mini_visa.broker import BrokerError, MissingProgramError, jars


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it, to which a test may add programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return programs


def _program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_missing_java_is_an_error_that_says_what_to_install(empty_path):
    with pytest.raises(MissingProgramError, match=r"Java is missing.*apt-get install openjdk-17"):
        jars.java()


def test_java_that_is_too_old_is_an_error_that_says_which_it_is(empty_path):
    _program(empty_path, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    with pytest.raises(MissingProgramError, match=r"is Java 11; Kafka needs 17"):
        jars.java()


def test_java_home_comes_before_the_path(empty_path, tmp_path, monkeypatch):
    _program(empty_path, "java", "echo 'openjdk version \"17.0.1\"' >&2")
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    _program(tmp_path / "jdk" / "bin", "java", "echo 'openjdk version \"21\" 2023-09-19' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert jars.java().version == 21


def test_missing_maven_is_an_error_that_says_what_to_install(empty_path, tmp_path):
    with pytest.raises(MissingProgramError, match=r"Maven is missing.*apt-get install"):
        jars.libraries(tmp_path / "cache")


def test_missing_maven_does_not_matter_once_the_jars_are_there(empty_path, tmp_path):
    there = tmp_path / f"libs-{jars.kafka_version()}"
    there.mkdir()
    assert jars.libraries(tmp_path) == there


def test_what_maven_complains_about_is_shown_and_nothing_is_left(empty_path, tmp_path):
    _program(empty_path, "mvn", "echo '[ERROR] Unknown host repo.example'; exit 1")
    with pytest.raises(BrokerError, match=r"Unknown host repo\.example"):
        jars.libraries(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("libs-*.*.*[0-9]"))


@pytest.mark.broker
def test_an_interrupted_download_is_repaired_and_two_at_once_do_one(tmp_path):
    """The real Maven: two at once, over what an interrupted download left."""
    left = tmp_path / f"libs-{jars.kafka_version()}.partial"
    left.mkdir()
    (left / "half-a.jar").write_bytes(b"PK")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(jars.libraries, [tmp_path, tmp_path])
    assert first == second
    names = {path.name for path in first.iterdir()}
    assert f"kafka_2.13-{jars.kafka_version()}.jar" in names
    assert "half-a.jar" not in names
    assert not left.exists()
