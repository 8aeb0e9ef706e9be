"""The broker in Docker: how it is asked for, and what is said where there is no Docker."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest

from mini_visa.broker import BrokerError, DockerBroker, MissingProgramError
from mini_visa.broker.properties import Node, properties
from mini_visa.kafka import broker_of


def test_missing_docker_is_an_error_that_names_the_other_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgramError, match=r"Docker is missing.*MINI_VISA_BROKER=kafka://"):
        DockerBroker(tmp_path).start()


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs Docker's client")
def test_an_engine_that_does_not_run_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BrokerError, match="Is the Docker engine running"):
        DockerBroker(tmp_path).start()


def test_the_container_is_configured_as_the_embedded_broker_is(tmp_path):
    arguments = DockerBroker(tmp_path, heap_bytes=256 << 20).run_arguments(20_001, "a-cluster-id")
    given = [value for option, value in pairwise(arguments) if option == "--env"]
    variables = dict(value.split("=", 1) for value in given)
    expected = properties(
        Node(), port=20_001, controller_port=9093, data="/var/lib/kafka/data/log", bind="0.0.0.0"
    )
    assert {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in expected.items()} | {
        "CLUSTER_ID": "a-cluster-id",
        "KAFKA_HEAP_OPTS": "-Xms128m -Xmx256m",
    } == variables
    assert variables["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://127.0.0.1:20001"
    assert variables["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_only_this_machine_can_connect_and_the_data_outlive_the_container(tmp_path):
    broker = DockerBroker(tmp_path)
    arguments = broker.run_arguments(20_001, "x")
    assert arguments[arguments.index("--publish") + 1] == "127.0.0.1:20001:20001"
    assert arguments[arguments.index("--volume") + 1].startswith(f"{broker.name}:")


def test_two_homes_have_two_containers_and_one_home_always_the_same(tmp_path):
    names = [DockerBroker(tmp_path / name).name for name in ("a", "b", "a")]
    assert names[0] == names[2] != names[1]


def test_the_settings_choose_it_and_its_image(settings_for):
    broker = broker_of(settings_for().model_copy(update={"broker": "docker"}))
    assert isinstance(broker, DockerBroker) and broker.image.startswith("apache/kafka:4.")
    settings = settings_for().model_copy(
        update={"broker": "docker", "broker_image": "registry.example/kafka:1"}
    )
    assert broker_of(settings).image == "registry.example/kafka:1"
