"""Ticks go to the partitions that run, whatever a rebalance does meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from counting import Item, a_plan, become_running, count

from mini_visa.streams import runtime
from mini_visa.streams.ownership import Ownership, State
from mini_visa.streams.runtime import Runtime


class WaitsForMetadata:
    """As a producer does when it does not know a partition's leader; `meanwhile` happens then."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.meanwhile = lambda: None
        self.enough = asyncio.Event()

    async def send(self, topic: str, value: bytes, *, partition: int, **_: Any) -> asyncio.Future[None]:
        await asyncio.sleep(0)
        self.meanwhile()
        self.sent.append(partition)
        if len(self.sent) >= 6:
            self.enough.set()
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_a_rebalance_while_a_tick_is_sent_is_none_of_its_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(tmp_path, replace(count, tick=lambda: Item(-1)), tick_interval_s=0.05)
    failures: list[BaseException] = []
    monkeypatch.setattr(runtime, "poison", lambda where, error: failures.append(error))
    one = Runtime(plan)
    for partition in range(3):
        one.ownerships[partition] = Ownership(plan, partition, runtime.poison)
        become_running(one.ownerships[partition])
    producer = WaitsForMetadata()

    def rebalance() -> None:
        gone = one.ownerships.pop(1, None)
        if gone is not None:
            gone._become(State.DRAINING)
            for partition in (7, 8):
                one.ownerships[partition] = Ownership(plan, partition, runtime.poison)

    producer.meanwhile = rebalance
    one._tick_producer = producer  # type: ignore[assignment]
    ticking = asyncio.create_task(one._tick())
    enough = asyncio.create_task(producer.enough.wait())
    await asyncio.wait({ticking, enough}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    assert not failures
    assert producer.sent[:6] == [0, 2] * 3, "partition 1 is gone, 7 and 8 do not run yet"
