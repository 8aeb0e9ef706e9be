"""The ground that a benchmark stands on: a broker of its own, in a directory of its own.

Never an existing cluster: topics are made, filled by millions and thrown away here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from mini_visa.broker import EmbeddedBroker
from mini_visa.kafka import apply_topics, plans
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic
from tests.bench.processes import LOAD_CORE, TEST_CORE, Watched, pin_self, python
from tests.bench.topiclog import LOG_APPEND_TIME


class Ground:
    """`async with Ground() as ground:` a fresh broker; everything is gone after it."""

    def __init__(self, *, partitions: int | None = None, pinned: bool = True) -> None:
        """`partitions`: as many as `mini-visa up` makes, unless told. `pinned`: broker and load generator
        keep off the core of what is measured."""
        self.partitions = partitions or Settings().partitions
        self.home = Path(tempfile.mkdtemp(prefix="mini-visa-bench-"))
        self._pinned = pinned
        self._broker = EmbeddedBroker(
            self.home / "broker", libs_cache=Settings().home / "broker", heap_bytes=1 << 30
        )

    async def __aenter__(self) -> Ground:
        self._cores = os.sched_getaffinity(0)
        if self._pinned:
            pin_self(LOAD_CORE)  # the broker inherits it
        try:
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
        os.sched_setaffinity(0, self._cores)
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

    def worker(
        self, service: str, *, core: int | None = TEST_CORE, name: str = "", **environment: str
    ) -> Watched:
        """A worker of `service`, to be entered: `with ground.worker("risk") as worker`. Its ticks are off:
        each of them would be a record more than was put in. A machine that is busy with others may slow a
        transaction down, and not end the run."""
        settings = {
            "MINI_VISA_TICK_INTERVAL_S": "3600",
            "MINI_VISA_LOG_LEVEL": "info",
            "MINI_VISA_TRANSACTION_TIMEOUT_S": "60",
            **environment,
        }
        return Watched(
            python(str(Path(__file__).with_name("worker.py")), service),
            log=self.home / "logs" / f"{name or service}.log",
            env=self.environment(**settings),
            core=core,
        )

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of a process of this project on this ground."""
        return {
            "MINI_VISA_BROKER": f"kafka://{self.bootstrap}",
            "MINI_VISA_HOME": str(self.home / "home"),
            "MINI_VISA_PARTITIONS": str(self.partitions),
            "MINI_VISA_ENVIRONMENT": "bench",
            **more,
        }
