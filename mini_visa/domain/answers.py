"""Answers: what a command's sender is told. They travel on gateway.replies; the first answer to a
request is remembered with it, so that a retry gets the same one.
"""

from __future__ import annotations

from mini_visa.domain.messages import Message
from mini_visa.domain.payment import Account, Data, Payment


class Refusal(Data, frozen=True, kw_only=True):
    """Why a request was refused: the problem behind a 404, 409 or 422."""

    reason: str
    """One sentence a client can act on."""
    state: str = ""
    left: int | None = None
    """Minor units of `currency` that would have been possible."""
    currency: str = ""


class Outcome(Data, frozen=True, kw_only=True):
    """The stored part of an answer: independent of the attempt that asked."""

    status: int
    """200, 400, 404, 409 or 422: the HTTP status this maps to."""
    request_id: str
    response_code: str = ""
    payment: Payment | None = None
    account: Account | None = None
    """Set on answers to account commands only."""
    refusal: Refusal | None = None


class Answer(Message, frozen=True, kw_only=True, omit_defaults=True, tag="answer/1"):
    attempt: str
    outcome: Outcome
    replayed: bool = False
    partition: int
    position: int
    """With `partition`: the command's place in account.commands, and so the consistency token."""
