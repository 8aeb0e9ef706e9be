"""Worked payment lives, made by an independent model: after every step the answer, the account's sums,
every payment's amounts and every ledger account that is not zero."""

import json
from pathlib import Path
from typing import Any

import pytest

from mini_visa.domain.account import Decision
from mini_visa.domain.commands import AcceptChargeback, RepresentChargeback
from mini_visa.domain.money import exponent_of, format_amount
from mini_visa.domain.payment import AccountStatus, CaptureState, Merchant, Payment, held_of
from mini_visa.domain.testing import NOON, Host

LIVES = json.loads((Path(__file__).parent / "lives.json").read_text())["lives"]
MERCHANT = Merchant(id="m1")


class Life:
    """Takes the steps of one life on a host, and shows it as the vectors do."""

    def __init__(self, account: dict[str, str]) -> None:
        self.host = Host(**account)
        self.payments: dict[str, Payment] = {}

    def take(self, step: dict[str, Any]) -> Decision | None:
        host = self.host
        host.at = NOON + step["at_s"] * 1000
        amount = step.get("amount")
        payment = self.payments.get(step.get("payment", ""))
        match step["do"], payment:
            case "authorize", _:
                given = {"currency": step["currency"]} if "currency" in step else {}
                if given:
                    amount = f"{amount}.00"  # The vector leaves the decimals of a foreign amount out.
                decision = host.authorize(
                    amount, merchant=MERCHANT, partial_approval=step.get("partial", False), **given
                )
                self.payments[step["payment"]] = decision.outcome.payment
                return decision
            case "increment", Payment():
                return host.increment(payment, amount)
            case "capture", Payment():
                return host.capture(payment, amount, final=step.get("final", True))
            case "reverse", Payment():
                return host.reverse(payment, amount)
            case "refund", Payment():
                return host.refund(payment, amount)
            case "chargeback", Payment():
                return host.charge_back(payment, amount)
            case ("represent" | "accept") as do, Payment():
                kind = RepresentChargeback if do == "represent" else AcceptChargeback
                return host.send(
                    kind(account=host.account_id, request_id=f"r-{host.position}", n=step["n"],
                         payment_id=payment.payment_id)
                )  # fmt: skip
            case "clear", Payment():
                captures = host.payment(payment).captures
                oldest = next(one.n for one in captures if one.state is CaptureState.SUBMITTED)
                return host.clear(payment, oldest, accepted=step.get("ok", True))
            case "set", None:
                status = {"status": AccountStatus(step["status"])} if "status" in step else {}
                return host.change(limit=step.get("limit"), **status)
            case "pay", None:
                return host.pay(amount)
            case "tick", None:
                host.tick()
                return None
        raise AssertionError(f"a step that this test does not know: {step['do']}")

    def money(self, minor: int) -> str:
        return format_amount(minor, exponent_of(self.host.currency))

    def shown(self) -> dict[str, Any]:
        account = self.host.account
        return {
            "available": self.money(account.available),
            "held": self.money(account.held),
            "posted": self.money(account.posted),
            "ledger": {
                name.removesuffix(f":{account.account_id}"): self.money(balance)
                for (name, _), balance in self.host.ledger.items()
            },
            "payments": {name: self.payment(payment) for name, payment in self.payments.items()},
        }

    def payment(self, former: Payment) -> dict[str, str]:
        payment = self.host.payment(former)
        sums = (
            "authorized",
            "captured",
            "reversed",
            "refunded",
            "refund_reserved",
            "charged_back",
            "cleared",
        )
        return {
            "status": payment.status.value,
            "held": self.money(held_of(payment)),
            **{name: self.money(getattr(payment, name)) for name in sums},
        }


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life["life"].replace(" ", "-"))
def test_a_life_goes_as_the_independent_model_says(life: dict[str, Any]) -> None:
    lived = Life(life["account"])
    for step in life["steps"]:
        decision = lived.take(step)
        where = f"{step['do']} at {step['at_s']} s"
        answer = step["answer"]
        if decision is not None:
            outcome = decision.outcome
            assert outcome.status == answer["http"], where
            if "response_code" in answer:
                assert outcome.response_code == answer["response_code"], where
            if "left" in answer:
                assert outcome.refusal is not None and outcome.refusal.left is not None, where
                assert lived.money(outcome.refusal.left) == answer["left"], where
        assert lived.shown() == step["after"], where


def test_there_are_26_lives_of_119_steps() -> None:
    assert (len(LIVES), sum(len(life["steps"]) for life in LIVES)) == (26, 119)
