"""Real containers of the project's own images. `make containers` runs what is here."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import docker
import pytest
from testcontainers.core.config import testcontainers_config

from tests.containers.engine import ROOT, Engine, Unavailable, answers

BUILD_S = 600.0
HEALTH = ["/opt/mini-visa/bin/python3", "-I", "-S", "/opt/mini-visa/health.py"]
"""The application image's own check."""
# What testcontainers removes left-overs with is an image to be pulled; here every fixture removes its own.
testcontainers_config.ryuk_disabled = True


@dataclass(frozen=True)
class Images:
    """Names with tags."""

    application: str = "mini-visa:latest"
    kafka: str = "mini-visa-kafka:latest"
    postgresql: str = "mini-visa-postgresql:latest"


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A Docker engine. Where none runs and none can be started: skipped; in CI that is an error."""
    own = None
    if not answers():
        own = Engine()
        try:
            own.start()
        except Unavailable as why:
            missing = f"no Docker engine runs here, and none of its own could be started: {why}"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
    client = docker.from_env(timeout=120)
    try:
        yield client
    finally:
        client.close()
        if own is not None:
            own.stop()
            assert own.left() == [], "the engine left something behind"


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> Images:
    """The three images, built from this checkout."""
    begun = time.monotonic()
    done = subprocess.run(
        [ROOT / "docker" / "build"], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    print(f"\n{done.stdout}images in {time.monotonic() - begun:.0f} s")
    return Images()
