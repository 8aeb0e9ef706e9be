"""What clients see: payments, accounts and refusals as JSON. The fields are fixed by docs/http-api.md.

Pure functions: the same stored outcome gives the same bytes, so a replay equals its first answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from mini_visa import topics
from mini_visa.domain.answers import Outcome, Refusal
from mini_visa.domain.commands import FraudAlert
from mini_visa.domain.journal import JournalEntry
from mini_visa.domain.lifecycle import clearing_status, dispute_status, refund_status
from mini_visa.domain.money import exponent_of, format_amount
from mini_visa.domain.payment import (
    NO_TIME,
    Account,
    Payment,
    RuleHit,
    held_of,
)
from mini_visa.domain.response_codes import TEXTS
from mini_visa.domain.risk import Rule
from mini_visa.gateway.problems import FieldError, Problem
from mini_visa.readmodel import Cycle, Entry, LedgerBalance, Line, OpenSaga, TrialBalance

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
        "clearing_status": clearing_status(payment),
        "refund_status": refund_status(payment),
        "dispute_status": dispute_status(payment),
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
    if outcome.account is not None and outcome.payment is None:
        return orjson.dumps({**account_view(outcome.account), "request_id": outcome.request_id})
    if outcome.payment is not None:
        view = payment_view(outcome.payment)
    else:
        # A reversal before its request: no payment yet, and the request will be answered `reversed`.
        view = {"payment_id": None, "request_id": outcome.request_id, "status": "reversed"}
    view["operation"] = {"request_id": outcome.request_id, "response_code": outcome.response_code}
    return orjson.dumps(view)


def refusal_problem(outcome: Outcome) -> Problem:
    """The problem of an outcome that is not 200."""
    refusal = outcome.refusal or Refusal(reason="The request was refused.")
    more: dict[str, Any] = {}
    if refusal.state:
        more["state"] = refusal.state
    if refusal.left is not None and refusal.currency:
        more["left"] = format_amount(refusal.left, exponent_of(refusal.currency))
        more["currency"] = refusal.currency
    errors = []
    if outcome.status == 400:  # the reason begins with the field's name: amount or limit
        errors = [FieldError(refusal.reason.partition(" ")[0], refusal.reason)]
    elif outcome.status == 422:
        errors = [FieldError("request_id", refusal.reason)]
    kind = _KINDS.get(outcome.status, "refused")
    return Problem(outcome.status, kind, refusal.reason, errors=errors, more=more)


# -- what happened ------------------------------------------------------------------------------------


def event_view(event: Mapping[str, Any], exponent: int, *, own: bool) -> dict[str, Any]:
    """One event of a payment. `event` is as the log has it: without the fields at their defaults. What the
    card had available comes of payments of others too: who sees only its own (`own`) is not shown it."""
    view: dict[str, Any] = {
        "type": event["type"].partition("/")[0],
        "at": time_view(event["at"]),
        "request_id": event.get("request_id") or None,
        "log": {
            "topic": topics.PAYMENT_EVENTS.name,
            "partition": event["partition"],
            "offset": event["offset"],
        },
    }
    if "account" in event:  # it changed the account
        view["seq"] = event["seq"]
        view["amount"] = format_amount(event.get("amount", 0), exponent)
        view["response_code"] = event.get("response_code", "00")
        if not own:
            view["available_before"] = format_amount(event.get("available_before", 0), exponent)
    if "http_status" in event:
        view["http_status"] = event["http_status"]
    for name in ("n", "forced", "reason", "reason_code"):
        if event.get(name):
            view[name] = event[name]
    return view


def payment_record_view(payment: Payment, log: Sequence[Mapping[str, Any]], *, own: bool) -> dict[str, Any]:
    """The payment with its events, in order."""
    exponent = exponent_of(payment.currency)
    return {**payment_view(payment), "events": [event_view(event, exponent, own=own) for event in log]}


def explanation_view(payment: Payment, log: Sequence[Mapping[str, Any]], *, own: bool) -> dict[str, Any]:
    """Why: the rules that were evaluated and the numbers they saw, what was available before (not `own`, see
    `event_view`), and where in the log the decision and its reason can be found."""
    exponent = exponent_of(payment.currency)
    decided = next((event for event in log if "payment" in event), None)
    view: dict[str, Any] = {
        "payment_id": payment.payment_id,
        "risk": {
            "score": payment.verdict.score,
            "evaluated": list(payment.verdict.evaluated),
            "rules": [rule_view(hit) for hit in payment.verdict.hits],
        },
        "decision": None,
    }
    if decided is not None:
        code = decided["payment"]["response_code"]
        account = None if own else decided.get("account")
        view["decision"] = {
            "status": decided["payment"]["status"],
            "response_code": code,
            "response_text": TEXTS.get(code, ""),
            "at": time_view(decided["at"]),
            "amount": format_amount(payment.amount, exponent),
            "available_before": (
                format_amount(decided.get("available_before", 0), exponent) if account else None
            ),
            "limit": format_amount(account["limit"], exponent) if account else None,
            "command": {
                "topic": topics.ACCOUNT_COMMANDS.name,
                "partition": decided["partition"],
                "offset": decided["position"],
            },
            "event": {
                "topic": topics.PAYMENT_EVENTS.name,
                "partition": decided["partition"],
                "offset": decided["offset"],
            },
        }
    return view


def entry_view(entry: Entry) -> dict[str, Any]:
    """A line of a statement; held, posted, limit and available are as it left them."""
    exponent = exponent_of(entry.currency)
    return {
        "seq": entry.seq,
        "at": time_view(entry.at),
        "type": entry.type.partition("/")[0],
        "amount": format_amount(entry.amount, exponent),
        "currency": entry.currency,
        "held": format_amount(entry.held, exponent),
        "posted": format_amount(entry.posted, exponent),
        "limit": format_amount(entry.limit, exponent),
        "available": format_amount(entry.available, exponent),
        "payment_id": entry.payment_id or None,
        "request_id": entry.request_id or None,
        "response_code": entry.response_code or None,
    }


def trial_balance_view(trial: TrialBalance) -> dict[str, Any]:
    """`difference` is 0: each entry of the journals balances. `positions` say what it is true for."""
    return {
        "currencies": [
            {
                "currency": total.currency,
                "debits": format_amount(total.debits, exponent_of(total.currency)),
                "credits": format_amount(total.credits, exponent_of(total.currency)),
                "difference": format_amount(total.difference, exponent_of(total.currency)),
            }
            for total in trial.currencies
        ],
        "positions": [
            {"topic": place.topic, "partition": place.partition, "offset": place.next_offset}
            for place in trial.positions
        ],
    }


def balance_view(balance: LedgerBalance) -> dict[str, Any]:
    """Of a ledger account in one currency; debit > 0."""
    exponent = exponent_of(balance.currency)
    return {
        "currency": balance.currency,
        "debits": format_amount(balance.debits, exponent),
        "credits": format_amount(balance.credits, exponent),
        "balance": format_amount(balance.balance, exponent),
    }


def _entry_place(entry: JournalEntry) -> dict[str, Any]:
    return {"journal": entry.journal, "partition": entry.partition, "number": entry.number}


def line_view(line: Line) -> dict[str, Any]:
    """A posting on a ledger account; debit > 0."""
    entry = line.entry
    return {
        "at": time_view(entry.at),
        "kind": entry.kind,
        "amount": format_amount(line.amount, exponent_of(line.currency)),
        "currency": line.currency,
        "payment_id": entry.payment_id or None,
        "merchant_id": entry.merchant_id or None,
        "reference": entry.reference or None,
        "entry": _entry_place(entry),
    }


def journal_entry_view(entry: JournalEntry) -> dict[str, Any]:
    """An entry with its postings and its place in its chain of hashes."""
    return {
        **_entry_place(entry),
        "at": time_view(entry.at),
        "kind": entry.kind,
        "postings": [
            {
                "account": posting.account,
                "currency": posting.currency,
                "amount": format_amount(posting.amount, exponent_of(posting.currency)),
            }
            for posting in entry.postings
        ],
        "payment_id": entry.payment_id or None,
        "reference": entry.reference or None,
        "previous": entry.previous,
        "hash": entry.hash,
    }


def cycle_view(cycle: Cycle) -> dict[str, Any]:
    return {
        "cycle": cycle.cycle,
        "partitions": cycle.partitions,
        "positions": cycle.positions,
        "closed_at": time_view(cycle.closed_at),
    }


def saga_view(saga: OpenSaga, now: int) -> dict[str, Any]:
    """A payment some step of which has still to take place; its age is in seconds."""
    return {
        "payment_id": saga.payment_id,
        "account_id": saga.account,
        "state": saga.state,
        "step": saga.step,
        "captures": list(saga.waiting),
        "tries": saga.tries,
        "since": time_view(saga.since),
        "age_s": max(0, now - saga.since) // 1000,
    }


def whole_rule_view(rule: Rule) -> dict[str, Any]:
    """A risk rule. Thresholds of amounts are minor units."""
    return {
        "rule": rule.id,
        "version": rule.version,
        "metric": rule.metric,
        "window_s": rule.window_s,
        "threshold": rule.threshold,
        "thresholds": rule.thresholds,
        "outcome": rule.outcome,
        "response_code": rule.response_code or None,
        "score": rule.score,
        "retired": rule.retired,
    }


def alert_view(alert: FraudAlert) -> dict[str, Any]:
    """A rule that fired. What is not about one amount (a count of declines) has no currency."""
    amount = format_amount(alert.amount, exponent_of(alert.currency)) if alert.currency else None
    return {
        "alert_id": alert.alert_id,
        "at": time_view(alert.at),
        "account_id": alert.account,
        "request_id": alert.request_id,
        "amount": amount,
        "currency": alert.currency or None,
        "merchant_id": alert.merchant_id or None,
        "score": alert.score,
        "rule": rule_view(alert.hit),
    }
