"""How Kafka clients are configured from the settings: addresses, TLS, SASL."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError

from mini_visa import kafka
from mini_visa.broker import BrokerError
from mini_visa.kafka import bootstrap_servers, client_options


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=kafka",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_every_address_of_a_cluster_is_used(settings_for):
    settings = settings_for(broker="kafka-1:9092, kafka-2:9092")
    assert bootstrap_servers(settings) == ["kafka-1:9092", "kafka-2:9092"]


def test_plain_connections_need_nothing_else(settings_for):
    assert client_options(settings_for(broker="k:9092")) == {
        "bootstrap_servers": ["k:9092"],
        "security_protocol": "PLAINTEXT",
    }


def test_tls_verifies_the_broker_and_its_name(settings_for, certificate):
    settings = settings_for(broker="k:9092", kafka_security="SSL", kafka_ca_file=certificate[0])
    options = client_options(settings)
    assert options["security_protocol"] == "SSL"
    context = options["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert [authority["subject"] for authority in context.get_ca_certs()] == [((("commonName", "kafka"),),)]


def test_a_client_certificate_is_loaded(settings_for, certificate):
    settings = settings_for(
        broker="k:9092", kafka_security="SSL", kafka_ca_file=certificate[0],
        kafka_cert_file=certificate[0], kafka_key_file=certificate[1],
    )  # fmt: skip
    assert isinstance(client_options(settings)["ssl_context"], ssl.SSLContext)


def test_a_certificate_that_cannot_be_read_is_named(settings_for, tmp_path):
    missing = tmp_path / "none.pem"
    settings = settings_for(broker="k:9092", kafka_security="SASL_SSL", kafka_ca_file=missing)
    with pytest.raises(BrokerError, match=r"MINI_VISA_KAFKA_CA_FILE.*No such file"):
        client_options(settings)
    missing.write_text("not a certificate")
    with pytest.raises(BrokerError, match="MINI_VISA_KAFKA_CA_FILE"):
        client_options(settings)


def test_sasl_names_the_mechanism_and_who_logs_in(settings_for):
    settings = settings_for(
        broker="k:9092", kafka_security="SASL_PLAINTEXT", kafka_username="app", kafka_password="secret"
    )
    options = client_options(settings)
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("app", "secret")
    assert "secret" not in repr(settings)


def test_sasl_without_a_password_is_an_error_that_names_the_settings(settings_for):
    settings = settings_for(broker="k:9092", kafka_security="SASL_PLAINTEXT", kafka_username="app")
    with pytest.raises(BrokerError, match="MINI_VISA_KAFKA_PASSWORD"):
        client_options(settings)


@pytest.fixture
def nobody() -> Iterator[str]:
    """HOST:PORT of somebody who says nothing to whoever would connect, as a machine that is gone."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):  # Linux drops what asks for a connection beyond these
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"


async def test_a_broker_that_is_gone_is_not_waited_for_as_long_as_for_an_answer(nobody, monkeypatch):
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.3)
    client = AIOKafkaClient(bootstrap_servers=nobody, request_timeout_ms=20_000)
    began = time.monotonic()
    with pytest.raises(KafkaConnectionError):
        await client.bootstrap()
    assert 0.2 < time.monotonic() - began < 5
    await client.close()
