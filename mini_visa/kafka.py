"""How every Kafka client of this project reaches the cluster: addresses, TLS and SASL from the settings."""

from __future__ import annotations

import ssl
from typing import Any

from mini_visa.settings import Settings, settings


class NoBroker(RuntimeError):
    """The setting `broker` names no reachable kind of broker. The text says what to set."""


def bootstrap_servers(configuration: Settings) -> list[str]:
    """["HOST:PORT", ...] of the setting `broker`. Raises `NoBroker`."""
    scheme, separator, rest = configuration.broker.partition("://")
    addresses = [address.strip() for address in rest.split(",") if address.strip()]
    if not separator or scheme != "kafka" or not addresses:
        raise NoBroker(
            f"MINI_VISA_BROKER is {configuration.broker!r}: set it to kafka://HOST:PORT of a running cluster"
        )
    return addresses


def client_options(configuration: Settings | None = None) -> dict[str, Any]:
    """Keyword arguments for every aiokafka client: where the brokers are and how to log in."""
    configuration = configuration or settings()
    security = configuration.kafka_security
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(configuration),
        "security_protocol": security,
    }
    if security in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=configuration.kafka_ca_file)
        if configuration.kafka_cert_file is not None:
            context.load_cert_chain(configuration.kafka_cert_file, configuration.kafka_key_file)
        options["ssl_context"] = context
    if security in ("SASL_PLAINTEXT", "SASL_SSL"):
        options["sasl_mechanism"] = configuration.kafka_sasl_mechanism
        options["sasl_plain_username"] = configuration.kafka_username
        options["sasl_plain_password"] = configuration.kafka_password
    return options
