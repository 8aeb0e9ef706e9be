"""A Faust app whose processors commit exactly once.

Faust gives the app, its command line, the worker with its signals, and the supervision of services. Its own
consumer, producer, conductor, tables and recovery are not started: `KernelBoot` starts the kernel instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import faust
from faust.app.base import BootStrategy
from mode import Service

from mini_visa.kafka import client_options
from mini_visa.settings import Settings
from mini_visa.settings import settings as process_settings
from mini_visa.streams.follower import FollowerService, MakeFollower
from mini_visa.streams.poison import Fatal, poison
from mini_visa.streams.processor import Handler, Processor
from mini_visa.streams.runtime import Runtime, make_plans
from mini_visa.streams.table import AnyTable
from mini_visa.streams.topic import AnyTopic

M = TypeVar("M", bound=MakeFollower)

log = logging.getLogger(__name__)

FAUST_VERSION: Final = "0.15.3"
YOUNG_OBJECTS_MAX: Final = 200_000
"""More than the batches of all partitions keep alive until their commits."""

FREED_BYTES_MAX: Final = 64 << 20
PIECE_BYTES_MAX: Final = 16 << 20
"""Larger pieces than a batch has go back to the system, as ever."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def check_interpreter() -> None:
    """Raises `Fatal` where the kernel's invariants would not be checked, or Faust is not the one it fits."""
    if not __debug__:
        raise Fatal("python -O and PYTHONOPTIMIZE turn off assertions that guard money: start without them")
    installed = importlib.metadata.version("faust-streaming")
    if installed != FAUST_VERSION:
        raise Fatal(
            f"faust-streaming {installed} is installed and the kernel is checked with {FAUST_VERSION} only: "
            f"pip install faust-streaming=={FAUST_VERSION}"
        )


def collect_garbage_seldom() -> None:
    """A batch keeps tens of thousands of objects until its commit, none of them garbage. With Python's
    defaults the collector walks them, all modules and the row caches again and again for nothing: a third
    of a worker's time. What is imported by now is never walked again; the rest, rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 100)


def keep_freed_memory() -> None:
    """A batch is megabytes, made and freed several times a second. glibc gives pieces of that size back to
    the system at once, which zeroes the same pages anew each time: a sixth of a worker's time. Up to
    `FREED_BYTES_MAX` stay with the process instead. Where the C library has no such knob nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, PIECE_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, FREED_BYTES_MAX)
        mallopt(_M_TOP_PAD, PIECE_BYTES_MAX)


class Kernel(Service):  # type: ignore[misc]
    """The service that runs an app's processors. Started and stopped by Faust."""

    def __init__(self, app: App) -> None:
        super().__init__(beacon=app.beacon)
        self.app = app
        self.runtimes: list[Runtime] = []

    async def on_start(self) -> None:
        try:
            await self._start_processors()
        except Exception as error:
            poison(f"{self.app.service} (start)", error)

    async def _start_processors(self) -> None:
        settings = self.app.settings
        if not self.app.processors:
            return
        plans = await make_plans(
            self.app.processors.values(),
            service=self.app.service,
            settings=settings,
            client_options=client_options(settings),
        )
        self.runtimes = [Runtime(plan) for plan in plans]
        for runtime in self.runtimes:
            await runtime.start()

    async def on_stop(self) -> None:
        await asyncio.gather(*(runtime.stop() for runtime in self.runtimes))

    @property
    def ready(self) -> bool:
        return len(self.runtimes) == len(self.app.processors) and all(
            runtime.ready for runtime in self.runtimes
        )


class KernelBoot(BootStrategy):  # type: ignore[misc]
    """What Faust's worker starts for an app: its sensors and the kernel."""

    def server(self) -> Iterable[Any]:
        return [*self.sensors(), self.app.kernel]

    def client_only(self) -> Iterable[Any]:
        raise Fatal("a kernel app is a worker: it has no client mode")

    producer_only = client_only


class App(faust.App):  # type: ignore[misc]
    """Made by `create_app`."""

    BootStrategy = KernelBoot

    def __init__(self, service: str, settings: Settings, **options: Any) -> None:
        self.service = service
        self.settings = settings
        self.processors: dict[str, Processor] = {}
        super().__init__(f"{settings.environment}.{service}", **options)
        self.kernel = Kernel(self)

    def processor(
        self,
        source: AnyTopic,
        tables: Sequence[AnyTable] = (),
        sinks: Sequence[AnyTopic] = (),
        tick: Callable[[], Any] | None = None,
        name: str | None = None,
        rest_s: float = 0.0,
    ) -> Callable[[Handler], Processor]:
        """Make the decorated handler a processor of this service, named after it unless `name` is given.

        The name is part of the consumer group, of the transactional ids and of the changelog: renaming a
        processor starts it anew, with empty tables, at the beginning of its source. `rest_s`: see
        `Processor`.
        """

        def register(handler: Handler) -> Processor:
            processor = Processor(
                name or handler.__name__, source, handler, tuple(tables), tuple(sinks), tick, rest_s
            )
            assert processor.name not in self.processors, f"{self.service}: two processors {processor.name}"
            for other in self.processors.values():
                shared = set(other.tables) & set(processor.tables)
                assert not shared, (
                    f"{self.service}: {other.name} and {processor.name} share {shared}: a table belongs to "
                    "one processor, or two would write a partition's rows in no common order"
                )
            self.processors[processor.name] = processor
            return processor

        return register

    def follower(self, make: M) -> M:
        """Make what the decorated function (or class) makes a part of this app: run, watched and stopped
        with it. For a service that follows topics by itself, see `Follower`."""
        name, settings = self.service, self.settings

        class Following(FollowerService):  # Faust wants a class, and makes it when the app starts
            def __init__(self, **options: Any) -> None:
                super().__init__(name, settings, make, **options)

        self._extra_services.append(Following)
        return make

    @property
    def ready(self) -> bool:
        """Everything of this app is at work."""
        services = self._extra_service_instances or ()
        return (
            bool(self.started)
            and not self.should_stop
            and bool(self.kernel.started)
            and self.kernel.ready
            and len(services) == len(self._extra_services)
            and all(service.ready for service in services)
        )

    async def on_first_start(self) -> None:
        check_interpreter()
        if not self.processors and not self._extra_services:
            raise Fatal(f"{self.service} has no processor and no follower")
        collect_garbage_seldom()
        keep_freed_memory()

    async def on_start(self) -> None:
        self.finalize()

    async def on_started(self) -> None:
        await self.on_started_init_extra_tasks()
        await self.on_started_init_extra_services()
        if self.on_startup_finished:
            await self.on_startup_finished()

    def _refuse(self, what: str) -> NoReturn:
        raise Fatal(
            f"{self.service}: {what} would send outside the batch's transaction. A handler sends with "
            "context.emit; everything else has no business in a worker"
        )

    async def send(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("app.send")

    @property
    def producer(self) -> NoReturn:
        self._refuse("Faust's producer")

    @property
    def consumer(self) -> NoReturn:
        self._refuse("Faust's consumer")

    def agent(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a Faust agent")

    def Table(self, *arguments: Any, **options: Any) -> NoReturn:
        self._refuse("a Faust table")


def create_app(service: str, settings: Settings | None = None, **overrides: Any) -> App:
    """The Faust app of `service`, ready for ``faust -A module worker`` and ``faust.Worker(*apps)``.

    `settings` are the process's own unless given; `overrides` are Faust settings. Raises `Fatal` under
    ``python -O`` and with another Faust than the kernel is checked with.
    """
    check_interpreter()
    logging.getLogger("aiokafka").setLevel(logging.WARNING)  # its INFO is a line per partition and start
    settings = settings or process_settings()
    options: dict[str, Any] = {
        "broker": "kafka://kernel",
        "store": "memory://",
        "datadir": str(Path(settings.home) / "state"),
        "web_enabled": False,
        "autodiscover": False,
        "topic_disable_leader": True,
        "worker_redirect_stdouts": False,
    }
    return App(service, settings, **{**options, **overrides})
