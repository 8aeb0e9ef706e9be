"""A worker's /healthz, /readyz and /metrics over HTTP, on the setting `web_port`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web
from mode import Service
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mini_visa.streams.app import App
from mini_visa.streams.poison import Fatal, poison

HOST: Final = "0.0.0.0"  # noqa: S104 - a pod's probes come from its node, metrics from Prometheus
SHUTDOWN_S: Final = 1.0


class Probes(Service):  # type: ignore[misc]
    """Alive as long as the event loop turns. Ready while every app of the process is: joined its group,
    restored, and working on all partitions it was given. Not ready from the first moment of a stop."""

    def __init__(self, apps: Sequence[App], port: int, **options: Any) -> None:
        super().__init__(**options)
        self._apps = apps
        self._port = port
        self._runner: web.AppRunner | None = None

    async def on_start(self) -> None:
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self._port).start()
        except OSError as error:
            poison(
                "probes",
                Fatal(f"port {self._port} cannot be used ({error.strerror}): set MINI_VISA_WEB_PORT"),
            )

    async def on_stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        waiting = [app.service for app in self._apps if not app.ready]
        if waiting:
            return web.json_response({"status": "not ready", "waiting": waiting}, status=503)
        return web.json_response({"status": "ready"})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
