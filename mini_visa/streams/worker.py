"""Runs services as one Faust worker: `mini-visa worker SERVICE...`, in one process or one each."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import faust
import uvloop

from mini_visa import log_format
from mini_visa.errors import UserError
from mini_visa.settings import Settings
from mini_visa.streams.app import App
from mini_visa.streams.probes import Probes

LAST_TASKS_S: Final = 1.0
"""What is still to be cancelled when everything is stopped gets this long."""


class _Worker(faust.Worker):  # type: ignore[misc]
    """Ends as soon as everything is stopped."""

    async def _sentinel_task(self) -> None:
        """The last thing on the loop. mode sleeps a second here, in which nobody works on the partitions."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=LAST_TASKS_S)


class UnknownService(UserError):
    exit_code = 2


def find(service: str) -> Any:
    """The module of a service, `agents.SERVICE`. Raises UnknownService."""
    if not service.isidentifier() or importlib.util.find_spec(f"agents.{service}") is None:
        raise UnknownService(f"There is no service {service!r}: agents/{service}.py does not exist.")
    return importlib.import_module(f"agents.{service}")


def run(services: Sequence[str], settings: Settings) -> NoReturn:
    """The services by name: see `run_apps`. Raises UnknownService."""
    log_format.configure(settings.log_level)
    run_apps([find(service).app for service in services], settings)


def run_apps(apps: Sequence[App], settings: Settings) -> NoReturn:
    """Blocks until SIGTERM or SIGINT, then drains and exits with 0; with another code on an error.

    A processor that may not go on ends the process itself, see `poison`."""
    uvloop.install()
    log_format.configure(settings.log_level)
    probes = [Probes(apps, settings.web_port)] if settings.web_port else []
    worker = _Worker(
        *apps,
        *probes,
        loglevel=settings.log_level,
        logging_config=log_format.configuration(settings.log_level),
        redirect_stdouts=False,
        quiet=True,
    )
    worker.spinner = None
    worker.execute_from_commandline()
    raise AssertionError("unreachable")
