"""Who got a signal, and who ended without one: with processes that only sleep, and no broker."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mini_visa.supervisor.system import SERVICES, Part
from mini_visa.supervisor.warm import Child
from tests.faults.grounds import Grounds, Unasked
from tests.faults.harness import Report
from tests.faults.summary import summary

RISK = SERVICES[0]


class Supervised:
    """Grounds with one service, started again by hand."""

    def __init__(self, home: Path) -> None:
        self.grounds = Grounds(home, home, brokers=1, postgresql=False)
        self.part = Part(RISK, home / "log", 0)
        self.part.ready.set()
        system: Any = SimpleNamespace(parts=[self.part], part=lambda _: self.part)
        self.grounds.system = system
        self.processes: list[asyncio.subprocess.Process] = []
        self.watching: list[asyncio.Task[None]] = []

    async def start(self, *command: str) -> Child:
        self.grounds._before_start(RISK)
        process = await asyncio.create_subprocess_exec(*(command or ("sleep", "60")))
        child = Child(process.pid)

        async def watch() -> None:
            child.end(await process.wait())

        self.processes.append(process)
        self.watching.append(asyncio.create_task(watch()))
        self.part.child = child
        return child

    async def fail(self, code: int) -> Child:
        child = await self.start("sh", "-c", f"exit {code}")
        await child.ended.wait()
        return child


@pytest.fixture
async def supervised(tmp_path: Path) -> AsyncIterator[Supervised]:
    made = Supervised(tmp_path)
    yield made
    for process in made.processes:
        if process.returncode is None:
            process.kill()
    await asyncio.gather(*made.watching)


def ended(grounds: Grounds) -> list[tuple[str, int | None, str]]:
    return [(one.service, one.code, one.during) for one in grounds.unasked]


async def test_a_signal_waits_for_a_service_that_is_being_restarted(supervised: Supervised):
    await supervised.fail(70)
    hit = asyncio.create_task(supervised.grounds.hit("risk", signal.SIGKILL))
    await asyncio.sleep(0.1)
    assert not hit.done()
    second = await supervised.start()
    assert await hit is second
    await second.ended.wait()
    assert second.code == -signal.SIGKILL
    assert ended(supervised.grounds) == [("risk", 70, "")]


async def test_an_end_that_was_asked_for_is_not_listed(supervised: Supervised):
    child = await supervised.start()
    for number in (signal.SIGKILL, signal.SIGTERM):
        replaced = asyncio.create_task(supervised.grounds.end("risk", number))
        await child.ended.wait()
        await asyncio.sleep(0.1)
        assert not replaced.done()
        child = await supervised.start()
        await replaced
    assert not supervised.grounds.unasked


async def test_one_that_ends_otherwise_than_it_was_told_is_listed(supervised: Supervised):
    child = await supervised.start("sh", "-c", "trap 'exit 70' TERM; echo; while :; do sleep 0.01; done")
    await asyncio.sleep(0.5)
    supervised.grounds.fault = "stop: risk"
    await supervised.grounds.hit("risk", signal.SIGTERM)
    await child.ended.wait()
    await supervised.start()
    assert ended(supervised.grounds) == [("risk", 70, "stop: risk")]


async def test_a_kill_that_came_after_the_end_does_not_pass_for_one(supervised: Supervised):
    child = await supervised.start()
    killed = await supervised.grounds.hit("risk", signal.SIGKILL)
    await child.ended.wait()
    killed.code = 70
    with pytest.raises(AssertionError, match="risk had ended, with 70, before it was killed"):
        await supervised.grounds.replaced("risk", killed)


async def test_what_may_end_during_a_fault_may_not_after_it(supervised: Supervised):
    child = await supervised.start("sh", "-c", "exit 1")
    with supervised.grounds.may_end(child):
        await child.ended.wait()
    child = await supervised.start()
    with supervised.grounds.may_end(child):
        pass
    supervised.processes[-1].kill()
    await child.ended.wait()
    await supervised.start()
    assert ended(supervised.grounds) == [("risk", -signal.SIGKILL, "")]


def test_unasked_ends_are_told_with_the_fault_at_that_moment():
    report = Report(7, load_began=100.0, unasked=[Unasked(112.34, "risk", 70, "broker: broker")])
    assert report.document()["ended_unasked"] == [[12.3, "risk", 70, "broker: broker"]]
    assert "| 12.3 | risk | 70 | broker: broker |" in report.markdown()
    assert "No service ended" in Report(8).markdown()
    assert "in 2 runs: 1 risk." in summary([report.document(), Report(8).document()])
