"""What can go wrong with a broker, said so that the reader knows what to do."""

from __future__ import annotations

from mini_visa.errors import UserError


class BrokerError(UserError):
    """The broker cannot be started, found or reached; the message names the remedy."""


class MissingProgramError(BrokerError):
    """A program of the machine (Java, Maven, Docker) is missing or too old."""
