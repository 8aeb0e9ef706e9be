"""What clients see: payments, accounts and refusals as JSON. The fields are fixed by docs/http-api.md.

Pure functions: the same stored outcome gives the same bytes, so a replay equals its first answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from mini_visa.domain.answers import Outcome, Refusal
from mini_visa.domain.money import exponent_of, format_amount
from mini_visa.domain.payment import (
    NO_TIME,
    Account,
    Capture,
    CaptureState,
    Chargeback,
    DisputeState,
    Payment,
    Refund,
    RefundState,
    RuleHit,
    held_of,
)
from mini_visa.domain.response_codes import TEXTS
from mini_visa.gateway.problems import FieldError, Problem

_CLEARING_PROGRESS: Final = (CaptureState.SUBMITTED, CaptureState.CLEARED, CaptureState.SETTLED)
_KINDS: Final = {
    400: "bad-input",
    404: "not-found",
    409: "conflict",
    422: "request-id-reused",
}


def time_view(ms: int) -> str | None:
    """RFC 3339, UTC, milliseconds; None for no time."""
    if ms == NO_TIME:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def clearing_status(captures: Iterable[Capture]) -> CaptureState | None:
    """That of the least advanced capture; rejected or compensated ones count when there is no other."""
    states = {capture.state for capture in captures}
    for state in (*_CLEARING_PROGRESS, CaptureState.REJECTED, CaptureState.COMPENSATED):
        if state in states:
            return state
    return None


def refund_status(refunds: Iterable[Refund]) -> RefundState | None:
    """Reserved while any refund waits for its clearing; cancelled when all are."""
    states = {refund.state for refund in refunds}
    for state in (RefundState.RESERVED, RefundState.POSTED, RefundState.CANCELLED):
        if state in states:
            return state
    return None


def dispute_status(chargebacks: tuple[Chargeback, ...]) -> DisputeState | None:
    """Open while any chargeback is; else the latest one's."""
    if not chargebacks:
        return None
    if any(chargeback.state is DisputeState.OPEN for chargeback in chargebacks):
        return DisputeState.OPEN
    return chargebacks[-1].state


def rule_view(hit: RuleHit) -> dict[str, Any]:
    return {
        "rule": hit.rule,
        "version": hit.version,
        "outcome": hit.outcome,
        "metric": hit.metric,
        "value": hit.value,
        "threshold": hit.threshold,
        "window_s": hit.window_s,
    }


def payment_view(payment: Payment) -> dict[str, Any]:
    """The payment as it stands."""
    exponent = exponent_of(payment.currency)

    def amount(minor: int) -> str:
        return format_amount(minor, exponent)

    view: dict[str, Any] = {
        "payment_id": payment.payment_id,
        "request_id": payment.request_id,
        "account_id": payment.account,
        "status": payment.status,
        "response_code": payment.response_code,
        "response_text": TEXTS.get(payment.response_code, ""),
        "amount": amount(payment.amount),
        "approved_amount": amount(payment.authorized),
        "currency": payment.currency,
        "authorization_code": payment.authorization_code or None,
        "card": {"token": payment.card.token, "bin": payment.card.bin, "last4": payment.card.last4},
        "risk": {
            "score": payment.verdict.score,
            "rules": [rule_view(hit) for hit in payment.verdict.hits],
        },
        "amounts": {
            "authorized": amount(payment.authorized),
            "captured": amount(payment.captured),
            "reversed": amount(payment.reversed),
            "refunded": amount(payment.refunded),
            "charged_back": amount(payment.charged_back),
            "held": amount(held_of(payment)),
            "cleared": amount(payment.cleared),
            "refund_reserved": amount(payment.refund_reserved),
        },
        "clearing_status": clearing_status(payment.captures),
        "refund_status": refund_status(payment.refunds),
        "dispute_status": dispute_status(payment.chargebacks),
        "forced": payment.forced,
        "expires_at": time_view(payment.expires_at),
        "created_at": time_view(payment.created_at),
    }
    merchant = payment.merchant
    if merchant.id or merchant.mcc or merchant.terminal_id or merchant.country:
        view["merchant"] = {
            "id": merchant.id,
            "mcc": merchant.mcc,
            "terminal_id": merchant.terminal_id,
            "country": merchant.country,
        }
    if payment.metadata:
        view["metadata"] = payment.metadata
    if payment.captures:
        view["captures"] = [
            {
                "n": capture.n,
                "amount": amount(capture.amount),
                "status": capture.state,
                "forced": capture.forced,
                "at": time_view(capture.at),
            }
            for capture in payment.captures
        ]
    if payment.refunds:
        view["refunds"] = [
            {
                "n": refund.n,
                "amount": amount(refund.amount),
                "posted": amount(refund.posted),
                "status": refund.state,
                "at": time_view(refund.at),
            }
            for refund in payment.refunds
        ]
    if payment.chargebacks:
        view["chargebacks"] = [
            {
                "n": chargeback.n,
                "amount": amount(chargeback.amount),
                "reason_code": chargeback.reason_code,
                "status": chargeback.state,
                "at": time_view(chargeback.at),
            }
            for chargeback in payment.chargebacks
        ]
    return view


def account_view(account: Account) -> dict[str, Any]:
    """The account as it stands; `available = limit - posted - held`, which may be negative."""
    exponent = exponent_of(account.currency)
    return {
        "account_id": account.account_id,
        "bin": account.bin,
        "last4": account.last4,
        "currency": account.currency,
        "limit": format_amount(account.limit, exponent),
        "held": format_amount(account.held, exponent),
        "posted": format_amount(account.posted, exponent),
        "available": format_amount(account.available, exponent),
        "status": account.status,
        "expiry": account.expiry or None,
        "opened_at": time_view(account.opened_at),
    }


def outcome_bytes(outcome: Outcome) -> bytes:
    """The body of a 200. The account is not part of it on payment operations."""
    if outcome.payment is not None:
        view = payment_view(outcome.payment)
        view["operation"] = {"request_id": outcome.request_id, "response_code": outcome.response_code}
    else:
        assert outcome.account is not None, "an outcome of 200 has a payment or an account"
        view = account_view(outcome.account)
        view["request_id"] = outcome.request_id
    return orjson.dumps(view)


def refusal_problem(outcome: Outcome) -> Problem:
    """The problem of an outcome that is not 200."""
    refusal = outcome.refusal or Refusal(reason="The request was refused.")
    more: dict[str, Any] = {}
    if refusal.state:
        more["state"] = refusal.state
    if refusal.left is not None:
        more["left"] = format_amount(refusal.left, exponent_of(refusal.currency))
        more["currency"] = refusal.currency
    errors = [FieldError("amount", refusal.reason)] if outcome.status == 400 else []
    kind = _KINDS.get(outcome.status, "refused")
    return Problem(outcome.status, kind, refusal.reason, errors=errors, more=more)
