"""The worked payment lives through all services: after every step the ledger's balances table, the fold of
its journals and the account are what an independent model says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.testing import MIDNIGHT, Pipeline
from mini_visa.domain.commands import Authorize
from mini_visa.domain.money import exponent_of, format_amount, parse_amount
from mini_visa.domain.payment import AccountStatus, CaptureState, Card, Merchant

LIVES = json.loads((Path(__file__).parents[2] / "golden" / "lives.json").read_text())["lives"]


def take(flow: Pipeline, step: dict[str, Any], payments: dict[str, str]) -> None:
    flow.at = MIDNIGHT + step["at_s"] * 1000
    amount, payment = step.get("amount"), payments.get(step.get("payment", ""), "")
    match step["do"]:
        case "authorize":
            currency = step.get("currency", flow.currency)
            if currency != flow.currency:
                amount = f"{amount}.00"  # The vector leaves the decimals of a foreign amount out.
            before = set(flow.payments)
            flow.command(
                Authorize,
                amount=parse_amount(amount, exponent_of(currency)),
                currency=currency,
                currency_given="currency" in step,
                card=Card(token=flow.account_id, bin="411111", last4="1111"),
                merchant=Merchant(id="m1"),
                partial_approval=step.get("partial", False),
            )
            (payments[step["payment"]],) = set(flow.payments) - before
        case "increment":
            flow.increment(payment, amount)
        case "capture":
            flow.capture(payment, amount, final=step.get("final", True))
        case "reverse":
            flow.reverse(payment, amount)
        case "refund":
            flow.refund(payment, amount)
        case "chargeback":
            flow.charge_back(payment, amount)
        case "represent":
            flow.represent(payment, step["n"])
        case "accept":
            flow.accept(payment, step["n"])
        case "clear":
            captures = flow.payments[payment].captures
            oldest = next(one.n for one in captures if one.state is CaptureState.SUBMITTED)
            flow.clear(payment, oldest, accepted=step.get("ok", True))
        case "set":
            changes: dict[str, Any] = {}
            if "limit" in step:
                changes["limit"] = flow.minor(step["limit"])
            if "status" in step:
                changes["status"] = AccountStatus(step["status"])
            flow.change(**changes)
        case "pay":
            flow.pay(amount)
        case "tick":
            flow.tick()
        case other:
            raise AssertionError(f"a step that this test does not know: {other}")


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life["life"].replace(" ", "-"))
def test_a_life_leaves_in_the_ledger_what_the_independent_model_says(life: dict[str, Any]) -> None:
    flow = Pipeline(**life["account"])
    exponent = exponent_of(flow.currency)
    payments: dict[str, str] = {}
    for step in life["steps"]:
        take(flow, step, payments)
        ledger = {
            name.removesuffix(f":{flow.account_id}"): format_amount(balance, exponent)
            for name, balance in flow.ledger.items()
        }
        where = f"{step['do']} at {step['at_s']} s"
        assert ledger == step["after"]["ledger"], where
        assert format_amount(flow.account.held, exponent) == step["after"]["held"], where
        assert format_amount(flow.account.posted, exponent) == step["after"]["posted"], where
