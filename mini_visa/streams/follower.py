"""A service that follows topics by itself, because what it does does not end in Kafka alone: it writes SQL,
or asks another party. It is run, watched and stopped like a processor; how it commits is its own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from mode import Service

from mini_visa.errors import UserError
from mini_visa.settings import Settings
from mini_visa.streams.poison import Fatal, poison


class Follower(Protocol):
    """What it has to bring along."""

    @property
    def ready(self) -> bool:
        """It has its partitions and works on them."""
        ...

    async def run(self) -> None:
        """Until `stop`, or for ever. Raises `UserError` with what to do where it cannot go on."""

    def stop(self) -> None:
        """`run` returns after the batch that it is at."""


MakeFollower: TypeAlias = Callable[[Settings], Follower]


class FollowerService(Service):  # type: ignore[misc]
    """Runs a follower as a part of an app, see `App.follower`.

    Any error that it cannot go on from ends the process. A stop lets it finish the batch it is at; one that
    takes longer than `drain_timeout_s` is given up, to be done again."""

    def __init__(self, name: str, settings: Settings, make: MakeFollower, **options: Any) -> None:
        super().__init__(**options)
        self._name = name
        self._drain_timeout_s = settings.drain_timeout_s
        self._follower = make(settings)
        self._running: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._follower.ready

    async def on_start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._follower.run()
        except asyncio.CancelledError:
            raise
        except UserError as error:
            poison(self._name, Fatal(str(error)))
        except BaseException as error:
            poison(self._name, error)

    async def on_stop(self) -> None:
        if self._running is not None:
            self._follower.stop()
            _, late = await asyncio.wait([self._running], timeout=self._drain_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
