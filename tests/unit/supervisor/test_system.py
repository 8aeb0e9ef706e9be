"""The supervisor keeps every service, or says that it cannot: real processes, without a broker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mini_visa.settings import Settings
from mini_visa.supervisor import nursery
from mini_visa.supervisor.backbone import Backbone
from mini_visa.supervisor.system import Service, State, System, SystemFailed

WAIT_S = 120.0


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: Backbone) -> None: ...

    monkeypatch.setattr(Backbone, "start", start)


def three(home: Path, **options: Any) -> System:
    """Of the service that needs nobody else."""
    services = tuple(Service(name, ("clearing-house",), "waits") for name in ("one", "two", "three"))

    def own_port(service: Service) -> dict[str, str]:
        return {"MINI_VISA_CLEARING_HOUSE_PORT": str(system.part(service.name).web_port)}

    settings = Settings(home=home, broker="kafka://127.0.0.1:1")
    system = System(settings, services=services, environment=own_port, **options)
    return system


async def test_every_service_comes_back_after_the_nursery_is_lost(tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT_S), three(tmp_path) as system:
        for _ in range(2):
            former = [part.child for part in system.parts]
            process = system.nursery._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            for part, child in zip(system.parts, former, strict=True):
                assert child is not None
                while part.child is child or part.state is not State.READY:
                    assert not system.failure.done(), system.failure
                    await asyncio.sleep(0.02)


async def test_a_service_that_nobody_starts_again_is_a_failure(tmp_path: Path) -> None:
    def before_start(service: Service) -> None:
        if service.name == "two" and system.part("two").starts == 2:
            raise OSError("no disk")

    system = three(tmp_path, before_start=before_start)
    async with asyncio.timeout(WAIT_S), system:
        child = system.part("two").child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(SystemFailed, match=r"two cannot be kept running: OSError\('no disk'\)"):
            await system.failure


async def test_a_nursery_that_always_ends_is_a_failure_and_not_a_start_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        nursery, "command", lambda _: [sys.executable, "-c", "raise SystemExit('no library')"]
    )
    with pytest.raises(SystemFailed, match="could not be started 3 times"):
        async with asyncio.timeout(WAIT_S), three(tmp_path):
            pass
