"""Connector: presentments to the clearing house over HTTP, its decisions back into account.commands."""

from __future__ import annotations

from mini_visa.clearing_house.connector import SERVICE, Connector
from mini_visa.settings import Settings
from mini_visa.streams.app import create_app

app = create_app(SERVICE)


@app.follower
def connector(settings: Settings) -> Connector:
    return Connector(settings, instance=settings.instance or SERVICE)
