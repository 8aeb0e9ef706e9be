"""The broker of a development machine: a real Kafka, started and found again by its directory."""

from mini_visa.broker.embedded import EmbeddedBroker, Health
from mini_visa.broker.errors import BrokerError, MissingProgramError

__all__ = ["BrokerError", "EmbeddedBroker", "Health", "MissingProgramError"]
