"""Projection: what the services said, into SQL, where queries find it without asking a worker."""

from __future__ import annotations

import asyncio
from typing import Any

from mode import Service

from mini_visa.errors import UserError
from mini_visa.readmodel.database import Database
from mini_visa.readmodel.projector import SERVICE, Projector
from mini_visa.streams.app import create_app
from mini_visa.streams.poison import Fatal, poison

app = create_app(SERVICE)


@app.run_service
class Projection(Service):  # type: ignore[misc]
    """Runs the projector; any error that it cannot go on from ends the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        settings = app.settings
        self.database = Database.of(settings, write=True)
        self.projector = Projector(
            settings,
            self.database,
            group=f"{settings.environment}.{SERVICE}",
            instance=settings.instance or SERVICE,
        )
        self.running: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.projector.ready

    async def on_start(self) -> None:
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self.database.prepare(app.settings)
            await self.projector.run()
        except asyncio.CancelledError:
            raise
        except UserError as error:
            poison(SERVICE, Fatal(str(error)))
        except BaseException as error:
            poison(SERVICE, error)

    async def on_stop(self) -> None:
        """Ends after the batch it is at; one that does not end in time is given up, to be applied again."""
        if self.running is not None:
            self.projector.stop()
            _, late = await asyncio.wait([self.running], timeout=app.settings.drain_timeout_s)
            for task in late:
                task.cancel()
        await self.database.close()
