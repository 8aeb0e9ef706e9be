"""Connector: presentments to the clearing house over HTTP, its decisions back into account.commands."""

from __future__ import annotations

import asyncio
from typing import Any

from mode import Service

from mini_visa.clearing_house.connector import SERVICE, Connector
from mini_visa.errors import UserError
from mini_visa.streams.app import create_app
from mini_visa.streams.poison import Fatal, poison

app = create_app(SERVICE)


@app.run_service
class Connection(Service):  # type: ignore[misc]
    """Runs the connector; any error that it cannot go on from ends the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connector = Connector(app.settings, instance=app.settings.instance or SERVICE)
        self.running: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.connector.ready

    async def on_start(self) -> None:
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self.connector.run()
        except asyncio.CancelledError:
            raise
        except UserError as error:
            poison(SERVICE, Fatal(str(error)))
        except BaseException as error:
            poison(SERVICE, error)

    async def on_stop(self) -> None:
        """Ends after the batch it is at; one that does not end in time is given up, to be asked for again."""
        if self.running is not None:
            self.connector.stop()
            _, late = await asyncio.wait([self.running], timeout=app.settings.drain_timeout_s)
            for task in late:
                task.cancel()
