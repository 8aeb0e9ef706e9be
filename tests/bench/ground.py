"""The ground that a benchmark stands on: a broker of its own, in a directory of its own.

Never an existing cluster: topics are made, filled by millions and thrown away here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from mini_visa.broker import EmbeddedBroker
from mini_visa.kafka import apply_topics, plans
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic
from mini_visa.supervisor.lock import Running, running
from tests.bench.processes import (
    ALLOWED,
    BOTH,
    LOAD,
    TEST,
    Cores,
    Watched,
    cores_of,
    keep_self_on,
    must_be_on,
    python,
    require_cores,
)
from tests.bench.topiclog import LOG_APPEND_TIME

START_TIMEOUT_S = 180.0
"""Of the whole system."""


class Ground:
    """`async with Ground() as ground:` a fresh broker; everything is gone after it."""

    def __init__(self, *, partitions: int | None = None, pinned: bool = True) -> None:
        """`partitions`: as many as `mini-visa up` makes, unless told. `pinned`: broker and load generator
        are on one core, what is measured is alone on another; else everything is on both."""
        self.partitions = partitions or Settings().partitions
        self.home = Path(tempfile.mkdtemp(prefix="mini-visa-bench-"))
        self._cores, self._test_cores = (LOAD, TEST) if pinned else (BOTH, BOTH)
        self._watched: list[tuple[str, Watched]] = []
        self._broker = EmbeddedBroker(
            self.home / "broker", libs_cache=Settings().home / "broker", heap_bytes=1 << 30
        )

    async def __aenter__(self) -> Ground:
        try:
            require_cores()
            keep_self_on(self._cores)  # the broker inherits it
            self._broker.start()
        except BaseException:
            self._clear()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broker.stop()
        self._clear()

    def _clear(self) -> None:
        keep_self_on(ALLOWED)
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def bootstrap(self) -> str:
        address = self._broker.address
        assert address is not None, "the broker does not run"
        return address

    @property
    def broker_pid(self) -> int:
        pid = self._broker.health().pid
        assert pid is not None, "the broker does not run"
        return pid

    async def apply_topics(self, appended: Iterable[AnyTopic] = ()) -> None:
        """Make every topic of the project; the broker stamps the records of `appended` as they are
        appended, so that first to last append can be read off them."""
        names = {topic.name for topic in appended}
        settings = Settings(
            broker=f"kafka://{self.bootstrap}", home=self.home / "home", partitions=self.partitions
        )
        wanted = [
            replace(plan, config=plan.config | LOG_APPEND_TIME) if plan.name in names else plan
            for plan in plans(settings)
        ]
        await apply_topics(settings, wanted)

    def watched(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> Watched:
        """A process of what is measured, on its cores, to be entered."""
        process = Watched(command, log=log, env=env, cores=self._test_cores)
        self._watched.append((name, process))
        return process

    def worker(self, service: str, *, name: str = "", **environment: str) -> Watched:
        """A worker of `service`, to be entered: `with ground.worker("risk") as worker`. Its ticks are off:
        each of them would be a record more than was put in. A machine that is busy with others may slow a
        transaction down, and not end the run."""
        settings = {
            "MINI_VISA_TICK_INTERVAL_S": "3600",
            "MINI_VISA_LOG_LEVEL": "info",
            "MINI_VISA_TRANSACTION_TIMEOUT_S": "60",
            **environment,
        }
        name = name or service
        return self.watched(
            name,
            python(str(Path(__file__).with_name("worker.py")), service),
            log=self.home / "logs" / f"{name}.log",
            env=self.environment(**settings),
        )

    @asynccontextmanager
    async def system(self, **environment: str) -> AsyncIterator[tuple[Watched, Running]]:
        """`mini-visa up` on this broker, once it is ready, and what it says of itself."""
        await self.apply_topics()
        settings = {"MINI_VISA_GATEWAY_PORT": "0", "MINI_VISA_LOG_LEVEL": "warning", **environment}
        program = str(Path(sys.executable).with_name("mini-visa"))
        services = self.watched(
            "services", [program, "up"], log=self.home / "up.log", env=self.environment(**settings)
        )
        with services:
            deadline = time.monotonic() + START_TIMEOUT_S
            while "Ready" not in services.tail(200):
                services.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"`mini-visa up` is not ready after {START_TIMEOUT_S:g} s: {services.tail()}"
                    )
                await asyncio.sleep(0.1)
            state = running(self.home / "home")
            assert state is not None
            yield services, state

    def placed(self) -> dict[str, list[int]]:
        """The cores that everything was on, by name: the broker, this process, and what was measured. Raises
        `RuntimeError` when one was not where it belongs: the figures would be about something else."""
        found: dict[str, Cores] = {}
        for name, pid in (("broker", self.broker_pid), ("load generator", os.getpid())):
            found[name] = cores_of(pid)
            must_be_on(self._cores, found[name], name)
        for name, process in self._watched:
            process.check_cores()
            found[name] = process.cores
        return {name: sorted(cores) for name, cores in found.items()}

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of a process of this project on this ground."""
        return {
            "MINI_VISA_BROKER": f"kafka://{self.bootstrap}",
            "MINI_VISA_HOME": str(self.home / "home"),
            "MINI_VISA_PARTITIONS": str(self.partitions),
            "MINI_VISA_ENVIRONMENT": "bench",
            **more,
        }
