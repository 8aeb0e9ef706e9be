"""Putting a rule in force: what a gateway does until every partition has it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mini_visa import topics
from mini_visa.domain.risk import DEFAULT_RULES, Rule
from mini_visa.gateway import rules
from mini_visa.gateway.problems import Problem
from mini_visa.gateway.recent import Recent
from mini_visa.settings import Settings

BODY = {
    "version": 2, "metric": "count", "window_s": 60, "threshold": 3, "outcome": "decline", "score": None,
    "retired": None, "thresholds": {},
}  # fmt: skip


class Model:
    """A read model in which the version is in force on all partitions from the look `after` on."""

    def __init__(self, after: float) -> None:
        self.looks = 0
        self._after = after

    async def rules(self) -> list[tuple[Rule, int]]:
        self.looks += 1
        rule = rules._proposed(a_call(self))[1]
        return [(rule, 6 if self.looks >= self._after else 5)]

    async def lag_ms(self, _: str) -> int:
        return 0


def a_call(model: Model) -> Any:
    async def tell(*_: object, **__: object) -> None:
        pass

    exchange = SimpleNamespace(tell=tell, partitions={topics.CARD_REQUESTS.name: 6})
    gateway = SimpleNamespace(
        settings=Settings(gateway_deadline_s=1.0), read_model=model, recent=Recent(), exchange=exchange
    )
    return SimpleNamespace(gateway=gateway, headers={}, path={"rule": DEFAULT_RULES[0].id}, values=dict(BODY))


async def test_it_is_answered_when_the_last_partition_has_it() -> None:
    model = Model(after=4)
    assert (await rules.put_rule(a_call(model))).status == 200
    assert model.looks == 4


async def test_the_read_model_is_asked_less_and_less_often() -> None:
    model = Model(after=float("inf"))
    begun = asyncio.get_running_loop().time()
    with pytest.raises(Problem, match="504 outcome-unknown"):
        await rules.put_rule(a_call(model))
    assert asyncio.get_running_loop().time() - begun >= 1.0
    assert model.looks < 15, "after 20, 30, 45 ms and so on, up to half a second"
