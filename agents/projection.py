"""Projection: what the services said, into SQL, where queries find it without asking a worker."""

from __future__ import annotations

from mini_visa.readmodel.database import Database
from mini_visa.readmodel.projector import SERVICE, Projector
from mini_visa.settings import Settings
from mini_visa.streams.app import create_app

app = create_app(SERVICE)


@app.follower
class Projection:
    """The projector, with the database that it writes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database.of(settings, write=True)
        self._projector = Projector(
            settings,
            self._database,
            group=f"{settings.environment}.{SERVICE}",
            instance=settings.instance or SERVICE,
        )

    @property
    def ready(self) -> bool:
        return self._projector.ready

    async def run(self) -> None:
        try:
            await self._database.prepare(self._settings)
            await self._projector.run()
        finally:
            await self._database.close()

    def stop(self) -> None:
        self._projector.stop()
