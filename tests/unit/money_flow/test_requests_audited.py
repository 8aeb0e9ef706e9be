"""The auditor agrees with authorization on what a request may do: ids that come again, for the same and for
other things, reversals and time-outs in any order, attempts that were answered and given up, for days."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agents.testing import ACCOUNT, DAY, HOUR, Pipeline
from audit.auditor import Audit
from mini_visa import topics
from mini_visa.domain.commands import (
    Authorize,
    CapturePayment,
    ChangeAccount,
    Increment,
    OpenAccount,
    OpenChargeback,
    PayAccount,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
    TimeOutReversal,
)
from mini_visa.domain.payment import AccountStatus, Card, Merchant, Verdict
from tests.unit.money_flow.test_lives_audited import Left

NOT_HERE = ("velocity", "sagas")
"""Risk is no part of this pipeline, and nothing is seen to its end."""
STRANGER = "tok_1nobody"


def some_command(flow: Pipeline, choose: random.Random) -> Any:
    """One of few requests, so that most come again; of few amounts, so that all limits are met."""
    account = choose.choice((*[ACCOUNT] * 9, STRANGER))
    amount = choose.choice((None, 0, 100, 100, 100, 200, 300, 5_000))
    payment = choose.choice([*flow.payments, "pay_1testcard_0"][-6:])
    request_id = choose.choice("abcdefgh") + str(len(flow.payments) // 6)
    of_request: dict[str, Any] = {
        "account": account, "request_id": request_id, "client": choose.choice((*["local"] * 9, "shop")),
        "fingerprint": choose.choice((*["one"] * 8, "other", "")), "attempt": choose.choice("1234"),
    }  # fmt: skip
    authorize = {
        "amount": amount or 0, "currency": choose.choice(("USD", "USD", "USD", "USD", "EUR", "JPY")),
        "card": Card(token=account, bin="411111", last4="1111"), "merchant": Merchant(id="m", mcc="5812"),
        "currency_given": choose.random() < 0.3, "capture": choose.random() < 0.3,
        "partial_approval": choose.random() < 0.3, "cvv_match": choose.choice((*[None] * 4, True, False)),
        "metadata": choose.choice(({}, {"order": "7"})),
        "verdict": Verdict(response_code=choose.choice((*[""] * 9, "65")), evaluated=("a/1",)),
    }  # fmt: skip
    on_payment = {"payment_id": payment}
    part = on_payment | (
        {} if amount is None else {"amount": amount, "exponent": choose.choice((2, 2, 2, 0))}
    )
    kind, fields = choose.choice((
        (Authorize, authorize), (Authorize, authorize), (Authorize, authorize), (Authorize, authorize),
        (TimeOutReversal, {}), (TimeOutReversal, {}), (TimeOutReversal, {}),
        (ReversePayment, {"original_request_id": choose.choice("abcdefgh") + request_id[1:]}),
        (ReversePayment, part), (CapturePayment, part | {"final": choose.random() < 0.5}),
        (Increment, on_payment | {"amount": amount or 0, "exponent": 2, "verdict": authorize["verdict"]}),
        (RefundPayment, part), (OpenChargeback, part | {"reason_code": "10.4"}),
        (RepresentChargeback, on_payment | {"n": 1}),
        (PayAccount, {"amount": amount or 0, "currency": "USD"}),
        (OpenAccount, {"bin": "411111", "last4": "1111", "currency": "USD", "limit": 10_000}),
        (ChangeAccount, {"limit": 9_000}), (ChangeAccount, {"status": AccountStatus.ACTIVE}),
    ))  # fmt: skip
    if kind is ChangeAccount and choose.random() < 0.2:
        fields = {"status": AccountStatus.BLOCKED, "limit": 8_000, "currency": "USD"}
    if kind is OpenAccount and account == STRANGER and choose.random() < 0.8:
        account = of_request["account"] = ACCOUNT
    return kind(**of_request, **fields)


def clear_something(flow: Pipeline, choose: random.Random) -> None:
    captured = [payment for payment, one in flow.payments.items() if one.captures]
    if captured:
        flow.clear(choose.choice(captured), accepted=choose.random() < 0.7)


@pytest.mark.parametrize("seed", range(30))
def test_the_auditor_agrees_on_what_a_request_may_do(seed: int) -> None:
    choose, flow = random.Random(seed), Pipeline(limit="100.00")
    for _ in range(150):
        command = some_command(flow, choose)
        flow.put(topics.ACCOUNT_COMMANDS, command, command.account.encode())
        if choose.random() < 0.1:
            clear_something(flow, choose)
        if choose.random() < 0.1:
            flow.at += choose.choice((1, HOUR, 23 * HOUR, DAY))
            flow.tick()
    findings = Audit(Left(flow)).run()
    assert not [line for line in findings.violations if not line.startswith(NOT_HERE)]
    assert findings["command-decided-once"].looked_at > 100
