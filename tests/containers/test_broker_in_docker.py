"""MINI_VISA_BROKER=docker for real: the broker of this machine in a container of the project's image."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import NotFound

from mini_visa.broker import DockerBroker
from mini_visa.kafka import apply_topics, end_offsets
from mini_visa.settings import Settings
from tests.containers.conftest import Images
from tests.whole_system import Up, mini_visa

pytestmark = [pytest.mark.exercise, pytest.mark.timeout(300)]


@pytest.fixture
def home(tmp_path: Path, engine: docker.DockerClient) -> Iterator[Path]:
    """A home whose broker's container and volume are removed afterwards."""
    yield tmp_path / "home"
    name = DockerBroker(tmp_path / "home" / "broker").name
    for remove in (
        lambda: engine.containers.get(name).remove(force=True),
        lambda: engine.volumes.get(name).remove(),
    ):
        with contextlib.suppress(NotFound):
            remove()


async def test_it_starts_is_found_again_stops_and_keeps_its_data(home: Path, images: Images):
    settings = Settings(home=home, broker="docker", broker_image=images.kafka)
    broker = DockerBroker(home / "broker", image=images.kafka)
    assert broker.address is None and not broker.health().running
    assert broker.start()
    assert not DockerBroker(home / "broker", image=images.kafka).start(), "a second start finds the first"
    health = broker.health()
    assert health.answers and health.pid and health.address == broker.address
    assert any("Kafka Server started" in line for line in broker.logs(200))
    created = await apply_topics(settings)
    assert len(created) > 10 and await apply_topics(settings) == []

    address = broker.address
    assert broker.stop() and not broker.stop()
    assert broker.address is None
    assert broker.start() and broker.address == address
    assert await apply_topics(settings) == [], "the topics are still there"
    assert set((await end_offsets(settings, ["payment.events"])).values()) == {0}


def test_up_runs_on_it(home: Path, images: Images):
    home.mkdir(parents=True)
    up = Up(home, MINI_VISA_BROKER="docker", MINI_VISA_BROKER_IMAGE=images.kafka)
    try:
        up.until("Ready: ")
        done = subprocess.run(
            mini_visa("authorize", "10.00", "--pan", "4111111111111111", "--url", up.state().gateway_url),
            capture_output=True, text=True, env={**os.environ, "MINI_VISA_HOME": str(home)}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and "declined" in done.stdout, done.stdout + done.stderr
    finally:
        up.process.terminate()
        assert up.process.wait(60) == 0, up.output.read_text()
    assert not DockerBroker(home / "broker").health().running, "what up started, up stopped"
