"""Every processor there is does the same with the same log: in other batches, after restarts, elsewhere."""

from __future__ import annotations

import importlib
import random

import pytest

from agents.risk import assess
from agents.testing import ACCOUNT, DAY, MIDNIGHT, Pipeline
from mini_visa import topics
from mini_visa.domain.commands import Authorize
from mini_visa.domain.payment import Card, Merchant
from mini_visa.streams import Processor
from mini_visa.streams.app import App
from mini_visa.streams.determinism import assert_deterministic
from mini_visa.streams.testing import Driver


def processors() -> dict[str, Processor]:
    """By "module:name", every processor of every service."""
    found = {}
    for service in topics.SERVICES:
        module = importlib.import_module(f"agents.{service}")
        app = getattr(module, "app", None)
        for name, value in vars(module).items():
            if isinstance(value, Processor) and isinstance(app, App) and value in app.processors.values():
                found[f"agents.{service}:{name}"] = value
    return found


PROCESSORS = processors()


@pytest.fixture(scope="module")
def drivers() -> dict[str, Driver]:
    """What a month of one account's life leaves in every processor's source."""
    flow, chance = Pipeline(limit="5000.00"), random.Random(20261123)
    risk = Driver(assess, partitions=1)
    for day in range(30):
        flow.at = MIDNIGHT + day * DAY
        merchant = Merchant(id=f"m{day % 3}", mcc="5411")
        payment = flow.authorize(f"{chance.randrange(1, 90)}.00", merchant)
        request = Authorize(
            account=ACCOUNT,
            request_id=f"risk-{day}",
            amount=chance.randrange(100, 90_000),
            currency="USD",
            card=Card(token=ACCOUNT, bin="411111", last4="1111"),
            merchant=merchant,
        )
        for repeat in range(1 + day % 4):
            risk.send(request, key=ACCOUNT.encode(), at=flow.at + repeat * 1_000)
        match day % 5:
            case 0:
                flow.reverse(payment)
            case 1:
                flow.capture(payment)
                flow.clear(payment)
            case 2:
                flow.increment(payment, "1.00")
                flow.capture(payment, "0.50")
                flow.clear(payment, accepted=False)
            case 3:
                flow.capture(payment)
                flow.clear(payment)
                flow.refund(payment, "0.25")
        flow.tick(60)
        risk.send_raw(flow.drivers["decide"].log[-1].value, key=b"", at=flow.at)
    return {**flow.drivers, assess.name: risk}


def test_every_service_is_looked_at() -> None:
    assert len(PROCESSORS) >= 7
    assert {path.split(":")[0] for path in PROCESSORS} >= {
        "agents.risk", "agents.authorization", "agents.ledger", "agents.clearing", "agents.reversal"
    }  # fmt: skip


@pytest.mark.parametrize("path", PROCESSORS)
def test_a_processor_is_a_function_of_its_log(path: str, drivers: dict[str, Driver]) -> None:
    driver = drivers[PROCESSORS[path].name]
    assert len(driver.log) >= 20, "nothing to tell it from another by"
    staged = assert_deterministic(driver.processor, driver.log, path=path, partitions=1)
    assert staged.rows, "it remembered nothing"
