"""The nursery: real processes, forked, signalled and reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mini_visa.supervisor import warm
from mini_visa.supervisor.warm import Child, NurseryLost, WarmNursery

WAIT_S = 60.0


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[WarmNursery]:
    opened = WarmNursery(tmp_path / "nursery.log")
    yield opened
    await opened.close()
    assert not [pid for pid in opened.pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def fork(
    nursery: WarmNursery, tmp_path: Path, *arguments: str, name: str = "part", **environment: str
) -> Child:
    return await nursery.fork(name, arguments, environment, tmp_path / f"{name}.log")


async def a_gateway(nursery: WarmNursery, tmp_path: Path, name: str = "part") -> Child:
    """A service that stays: it waits for a Kafka that is not there."""
    return await fork(
        nursery, tmp_path, "gateway", name=name,
        MINI_VISA_HOME=str(tmp_path), MINI_VISA_BROKER="kafka://127.0.0.1:1", MINI_VISA_GATEWAY_PORT="0",
    )  # fmt: skip


async def test_a_service_runs_the_command_with_its_own_environment_and_log(nursery, tmp_path):
    child = await fork(nursery, tmp_path, "topics", "list", MINI_VISA_BROKER="nonsense")
    await asyncio.wait_for(child.ended.wait(), WAIT_S)
    assert child.code == 1
    assert "nonsense" in (tmp_path / "part.log").read_text()
    assert os.environ.get("MINI_VISA_BROKER") != "nonsense"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process name itself so")
async def test_a_service_is_known_by_its_name_in_the_process_list(nursery, tmp_path):
    child = await a_gateway(nursery, tmp_path)
    deadline = time.monotonic() + WAIT_S
    while (name := name_of(child.pid)) != "mv-part":
        assert time.monotonic() < deadline, name
        await asyncio.sleep(0.02)


async def test_a_killed_service_is_told_with_its_signal(nursery, tmp_path):
    child = await a_gateway(nursery, tmp_path)
    nursery.signal(child, signal.SIGKILL)
    await asyncio.wait_for(child.ended.wait(), WAIT_S)
    assert child.code == -signal.SIGKILL


async def test_services_die_with_their_nursery_and_the_next_one_is_born_in_a_new_one(nursery, tmp_path):
    child = await a_gateway(nursery, tmp_path)
    os.kill(nursery.pids[0], signal.SIGKILL)
    await asyncio.wait_for(child.ended.wait(), WAIT_S)
    assert gone_within(child.pid, WAIT_S)
    while True:
        try:
            other = await fork(nursery, tmp_path, "topics", "list", MINI_VISA_BROKER="nonsense")
            break
        except NurseryLost:
            await asyncio.sleep(0.02)
    await asyncio.wait_for(other.ended.wait(), WAIT_S)
    assert other.code == 1


async def test_all_services_of_a_lost_nursery_are_born_again_in_one_new_one(nursery, tmp_path):
    """They ask for it at the same moment, some before the loss is noticed."""

    async def again(name: str) -> Child:
        while True:
            try:
                return await a_gateway(nursery, tmp_path, name)
            except NurseryLost:
                continue

    first = await asyncio.gather(*(a_gateway(nursery, tmp_path, name) for name in "abc"))
    os.kill(nursery.pids[0], signal.SIGKILL)
    await first[0].ended.wait()
    second = await asyncio.wait_for(asyncio.gather(*map(again, "abc")), WAIT_S)
    os.kill(
        next(pid for pid in nursery.pids[1:] if pid not in {child.pid for child in first}), signal.SIGKILL
    )
    third = await asyncio.wait_for(asyncio.gather(*map(again, "abc")), WAIT_S)
    assert all(child.code == -signal.SIGKILL and gone_within(child.pid, WAIT_S) for child in first + second)
    assert all(child.code is None and is_alive(child.pid) for child in third)
    assert len(nursery.pids) == 3 + 9


async def test_a_service_that_a_slow_nursery_is_asked_for_twice_runs_once(nursery, tmp_path, monkeypatch):
    await a_gateway(nursery, tmp_path, "other")  # it is warm
    os.kill(nursery.pids[0], signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(warm, "FORK_TIMEOUT_S", 0.1)
        with pytest.raises(NurseryLost, match="no answer"):
            await a_gateway(nursery, tmp_path)
    asking = asyncio.create_task(a_gateway(nursery, tmp_path))
    await asyncio.sleep(0.1)
    os.kill(nursery.pids[0], signal.SIGCONT)
    child = await asyncio.wait_for(asking, WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while len(nursery.pids) < 4:
        assert time.monotonic() < deadline, "both requests are answered"
        await asyncio.sleep(0.02)
    (second,) = set(nursery.pids[2:]) - {child.pid}
    while is_alive(second):
        assert time.monotonic() < deadline, "it runs twice"
        await asyncio.sleep(0.02)
    assert child.code is None and is_alive(child.pid)


async def test_services_die_with_the_nursery_that_is_closed(tmp_path):
    nursery = WarmNursery(tmp_path / "nursery.log")
    child = await a_gateway(nursery, tmp_path)
    await nursery.close()
    assert child.code is not None
    assert gone_within(child.pid, WAIT_S)


def test_what_is_imported_beforehand_has_read_no_setting_of_the_service():
    """A service's environment is its own: what depends on it is imported after the fork."""
    code = (
        "import importlib, sys\n"
        "from mini_visa.supervisor.nursery import WARM_MODULES\n"
        "for name in WARM_MODULES: importlib.import_module(name)\n"
        "from mini_visa.settings import settings\n"
        "assert settings.cache_info().currsize == 0, 'the settings were read'\n"
        "early = [name for name in sys.modules if name.startswith(('agents', 'mini_visa.streams.faults'))]\n"
        "assert not early, early"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
