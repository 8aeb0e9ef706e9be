"""The broker of a development machine: a real Kafka, started and found again by its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mini_visa.broker.cluster import Cluster
from mini_visa.broker.docker import DockerBroker
from mini_visa.broker.embedded import EmbeddedBroker, Health
from mini_visa.broker.errors import BrokerError, MissingProgramError


class Broker(Protocol):
    """What a broker of this machine can do, whichever way it runs."""

    @property
    def address(self) -> str | None:
        """HOST:PORT while it runs, else None."""

    @property
    def log(self) -> Path: ...

    def health(self) -> Health: ...

    def logs(self, lines: int = 50) -> list[str]: ...

    def start(self, *, detach: bool = False, wait: bool = True) -> bool:
        """True: this call started it. Raises BrokerError with the reason and what to do."""

    def stop(self, grace_s: float = ..., *, quiet_s: float = ...) -> bool:
        """In order once no transaction was open for `quiet_s`, else as a crash. True: it was running."""


__all__ = [
    "Broker",
    "BrokerError",
    "Cluster",
    "DockerBroker",
    "EmbeddedBroker",
    "Health",
    "MissingProgramError",
]
