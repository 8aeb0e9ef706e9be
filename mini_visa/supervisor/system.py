"""The whole system on one machine: started, watched, restarted, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from mini_visa.errors import UserError
from mini_visa.settings import Settings, environment_of
from mini_visa.supervisor import logs
from mini_visa.supervisor.backbone import Backbone
from mini_visa.supervisor.lock import DURATIONS, HomeLock, Running
from mini_visa.supervisor.ports import free_port, require_free
from mini_visa.supervisor.warm import Child, NurseryLost, WarmNursery

START_TIMEOUT_S: Final = 120.0
"""From its start to ready, a restore from an empty disk included."""
PROBE_INTERVAL_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 2.0
STOP_MARGIN_S: Final = 5.0
"""A service that needs this much longer than its own drain time-out is killed."""
DEATHS_MAX: Final = 10
DEATHS_WINDOW_S: Final = 60.0
UNREADY_DEATHS_MAX: Final = 3
"""In a row, without having been ready in between: what is wrong will not go away by itself."""
NURSERIES_MAX: Final = 3
"""So many in a row that ended or did not answer before they had started a service: neither will the next."""
RESTART_DELAY_MAX_S: Final = 5.0
LOG_CHECK_INTERVAL_S: Final = 5.0


@dataclass(frozen=True)
class Service:
    """A process of the system: `mini-visa COMMAND`."""

    name: str
    command: tuple[str, ...]
    does: str
    groups: int = 1
    """Kafka consumer groups that it has: one a processor."""


GATEWAY: Final = Service("gateway", ("gateway",), "HTTP in and out", groups=0)
CLEARING_HOUSE: Final = Service(
    "clearing-house", ("clearing-house",), "the outside that captures are cleared with", groups=0
)
SERVICES: Final = (
    Service("risk", ("worker", "risk"), "velocity rules on card.requests"),
    Service("authorization", ("worker", "authorization"), "decides account.commands"),
    Service("projection", ("worker", "projection"), "events into the read model"),
    Service("ledger", ("worker", "ledger"), "events in double entry", groups=3),
    Service("clearing", ("worker", "clearing"), "presentments and net positions", groups=2),
    Service("reversal", ("worker", "reversal"), "undoes what fails to clear"),
    Service("connector", ("worker", "connector"), "presentments to the clearing house"),
    CLEARING_HOUSE,
    GATEWAY,
)
"""Everything that runs beside the broker. Started together; stopped gateway first, then the workers, then
the clearing house. With the setting `clearing_house_url` there is another one, and ours does not run."""
GROUPS: Final = sum(service.groups for service in SERVICES)
"""Consumer groups of a whole system."""


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass
class Part:
    """A service as it runs."""

    service: Service
    log: Path
    web_port: int
    state: State = State.WAITING
    child: Child | None = None
    starts: int = 0
    ready_after_s: float = 0.0
    """From its last start to ready."""
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS_MAX))
    unready_deaths: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)


async def first_of(*futures: asyncio.Future[Any]) -> None:
    """Returns when one of them is done, whatever its result."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


class SystemFailed(UserError):
    """A part of the system cannot be kept running. The text shows the end of its log."""


class System:
    """async with System(settings) as system: everything runs; after the block nothing does.

    A service that ends unasked is started again at once; one that keeps ending ends the system: await
    `failure`. `changed` is called after each change of state, for a display; `before_start` before each start
    of a service, when no process of it runs (a test wipes its disk there); `environment` gives variables that
    only this service gets (a test leads its connections elsewhere).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        services: tuple[Service, ...] = SERVICES,
        jars: Path | None = None,
        changed: Callable[[], None] = lambda: None,
        before_start: Callable[[Service], None] = lambda _: None,
        environment: Callable[[Service], dict[str, str]] = lambda _: {},
    ) -> None:
        port = settings.gateway_port or free_port(settings.gateway_host)
        # Only the connector needs to know it, so two systems beside each other need not agree on it.
        chosen = "clearing_house_port" in settings.model_fields_set
        house = settings.clearing_house_port if chosen else 0
        house = house or free_port(settings.clearing_house_host)
        self.settings = settings.model_copy(update={"gateway_port": port, "clearing_house_port": house})
        self.gateway_url = self.settings.gateway_url
        own_ports = {GATEWAY: port, CLEARING_HOUSE: house}
        self.parts = [
            Part(
                service,
                logs.path_of(settings.logs, service.name),
                own_ports.get(service) or free_port(),
            )
            for service in services
            if service != CLEARING_HOUSE or not settings.clearing_house_url
        ]
        self.backbone = Backbone(settings, jars=jars)
        self.broker_state = State.WAITING
        self.broker_pids: list[int] = []
        """Of the broker, when it runs on this machine and was started here."""
        self.killed: list[str] = []
        """Services that did not stop in time and were killed."""
        self.nursery = WarmNursery(logs.path_of(settings.logs, "nursery"))
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Never has a result; has the exception `SystemFailed` when the system cannot go on."""
        self._lock = HomeLock(settings.home)
        self._changed = changed
        self._before_start = before_start
        self._more_environment = environment
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.service.name == name)

    async def start(self) -> None:
        """Returns when every part is ready. Raises `SystemFailed`, `AlreadyRunning`, `PortTaken`, or what
        the broker cannot do without."""
        self._lock.acquire()
        for part in self.parts:
            if part.service.name == GATEWAY.name:
                require_free(self.settings.gateway_host, part.web_port, setting="MINI_VISA_GATEWAY_PORT")
        for part in self.parts:
            logs.begin(part.log)
        logs.begin(logs.path_of(self.settings.logs, "nursery"))
        await self.nursery.open()  # imports while the broker starts
        self._set_broker(State.STARTING)
        await self.backbone.start()
        if self.backbone.pid is not None:
            self.broker_pids.append(self.backbone.pid)
        self._set_broker(State.READY)
        for part in self.parts:
            keeping = asyncio.create_task(self._keep(part))
            keeping.add_done_callback(partial(self._kept, part))
            self._tasks.append(keeping)
        self._tasks.append(asyncio.create_task(self._bound_logs()))
        self._tasks.append(asyncio.create_task(self._watch_backbone()))
        everything = asyncio.gather(*(part.ready.wait() for part in self.parts))
        try:
            await first_of(everything, self.failure)
            if self.failure.done():
                self.failure.result()
        finally:
            everything.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await everything

    async def stop(self) -> None:
        """Gateway first, so that what it accepted is still answered; then the workers, which commit
        what they have begun; whom they ask after them; the broker last."""
        self._stopping.set()
        drain_s = {GATEWAY: self.settings.gateway_drain_s}
        for stage in (
            [part for part in self.parts if part.service == GATEWAY],
            [part for part in self.parts if part.service not in (GATEWAY, CLEARING_HOUSE)],
            [part for part in self.parts if part.service == CLEARING_HOUSE],
        ):
            await asyncio.gather(
                *(
                    self._stop_part(
                        part, drain_s.get(part.service, self.settings.drain_timeout_s) + STOP_MARGIN_S
                    )
                    for part in stage
                )
            )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.nursery.close()
        if self.broker_state is not State.WAITING:
            self._set_broker(State.STOPPING)
            await self.backbone.stop()
            self._set_broker(State.STOPPED)
        self._lock.release()
        if not self.failure.done():
            self.failure.cancel()

    async def _stop_part(self, part: Part, timeout_s: float) -> None:
        child = part.child
        if child is None or child.code is not None:
            part.state = State.STOPPED
            return
        part.state = State.STOPPING
        self._changed()
        self.nursery.signal(child, signal.SIGTERM)
        try:
            await asyncio.wait_for(child.ended.wait(), timeout_s)
        except TimeoutError:
            self.killed.append(part.service.name)
            self.nursery.signal(child, signal.SIGKILL)
            await child.ended.wait()
        part.state = State.STOPPED
        self._changed()

    async def _keep(self, part: Part) -> None:
        """Start the service, and again whenever it ends, until the system stops."""
        lost = 0
        while not self._stopping.is_set():
            begun = time.monotonic()
            part.state = State.STARTING if part.starts == 0 else State.RESTARTING
            part.starts += 1
            part.ready.clear()
            self._changed()
            self._before_start(part.service)
            try:
                child = await self.nursery.fork(
                    part.service.name, part.service.command, self._environment(part), part.log
                )
            except NurseryLost as error:
                lost += 1
                if lost == NURSERIES_MAX:
                    self._fail(part, f"could not be started {lost} times ({error})")
                    return
                continue
            lost, part.child = 0, child
            self._publish()
            await self._until_ready(part, child, begun)
            await child.ended.wait()
            if self._stopping.is_set():
                return
            was_ready = part.state is State.READY
            part.ready.clear()
            part.state = State.RESTARTING
            self._changed()
            delay_s = self._after_death(part, was_ready)
            if delay_s is None:
                return
            await asyncio.sleep(delay_s)

    def _kept(self, part: Part, keeping: asyncio.Task[None]) -> None:
        """A service that nobody starts again is the system's failure, and not only this task's."""
        error = None if keeping.cancelled() else keeping.exception()
        if error is not None:
            self._fail(part, f"cannot be kept running: {error!r}")

    def _after_death(self, part: Part, was_ready: bool) -> float | None:
        """Seconds to wait before the next start; None when there will be none."""
        now = time.monotonic()
        part.unready_deaths = 0 if was_ready else part.unready_deaths + 1
        often = len(part.deaths) == DEATHS_MAX and now - part.deaths[0] < DEATHS_WINDOW_S
        part.deaths.append(now)
        if part.unready_deaths >= UNREADY_DEATHS_MAX:
            self._fail(part, f"ended {part.unready_deaths} times before it was ready")
            return None
        if often:
            self._fail(part, f"ended {DEATHS_MAX + 1} times within {DEATHS_WINDOW_S:.0f} s")
            return None
        return 0.0 if was_ready else min(RESTART_DELAY_MAX_S, 0.25 * 2**part.unready_deaths)

    async def _until_ready(self, part: Part, child: Child, begun: float) -> None:
        """Probe /readyz until it says 200 or the process ends; too long without either is a failure."""
        url = f"http://{self._probe_host(part)}:{part.web_port}/readyz"
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        answer = "no answer"
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while not child.ended.is_set():
                try:
                    async with http.get(url) as response:
                        if response.status == 200:
                            break
                        answer = f"{response.status} {(await response.text())[:200]}"
                except (aiohttp.ClientError, TimeoutError, ConnectionError):
                    pass
                if time.monotonic() - begun > START_TIMEOUT_S:
                    self._fail(part, f"is not ready after {START_TIMEOUT_S:.0f} s (/readyz: {answer})")
                    return
                await asyncio.sleep(PROBE_INTERVAL_S)
            else:
                return
        part.ready_after_s = time.monotonic() - begun
        part.state = State.READY
        part.ready.set()
        self._changed()

    def _probe_host(self, part: Part) -> str:
        host = self.settings.gateway_host if part.service.name == GATEWAY.name else "127.0.0.1"
        return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104

    def _fail(self, part: Part, what: str) -> None:
        part.state = State.FAILED
        self._changed()
        end = "\n".join(f"    {line}" for line in logs.last_lines(part.log)) or "    (it wrote nothing)"
        code = part.child.code if part.child is not None else None
        exited = "" if code is None else f" (exit code {code})"
        message = f"{part.service.name} {what}{exited}. The end of {part.log}:\n{end}"
        if not self.failure.done():
            self.failure.set_exception(SystemFailed(message))

    def _environment(self, part: Part) -> dict[str, str]:
        settings = self.settings.model_copy(
            update={
                "broker": self.backbone.address,
                "web_port": 0 if part.service in (GATEWAY, CLEARING_HOUSE) else part.web_port,
            }
        )
        return environment_of(settings) | self._more_environment(part.service)

    def _publish(self) -> None:
        self._lock.publish(
            Running(
                supervisor=os.getpid(),
                gateway_url=self.gateway_url,
                broker=self.backbone.address,
                started_at=self._started_at,
                pids={
                    part.service.name: part.child.pid
                    for part in self.parts
                    if part.child is not None and part.child.code is None
                },
                web_ports={part.service.name: part.web_port for part in self.parts},
                durations={name: getattr(self.settings, name) for name in DURATIONS},
            )
        )

    def _set_broker(self, state: State) -> None:
        self.broker_state = state
        self._changed()

    async def _watch_backbone(self) -> None:
        """The broker is not restarted: its clients would have to find their positions in a log that may
        have lost its end. What ends it ends the system."""
        why = await self.backbone.lost()
        self._set_broker(State.FAILED)
        if not self.failure.done():
            self.failure.set_exception(SystemFailed(why))

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_INTERVAL_S)
            for part in self.parts:
                logs.bound(part.log)
