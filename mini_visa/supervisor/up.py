"""`mini-visa up`: start everything, show it, and stop it on Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

from rich.console import Console

from mini_visa.settings import Settings
from mini_visa.supervisor.display import Display
from mini_visa.supervisor.system import System, first_of

EXIT_AT_ONCE = 130


@contextlib.contextmanager
def stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; a second one ends the process at once, and all it started with it."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            os._exit(EXIT_AT_ONCE)
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, asked)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def run(settings: Settings, *, console: Console | None = None) -> int:
    """Run everything until Ctrl-C. Returns the process's exit code.

    Raises `UserError` with one message that says what to do."""
    return asyncio.run(_run(settings, console or Console(stderr=True)))


async def _run(settings: Settings, console: Console) -> int:
    stop = asyncio.Event()
    display = Display(console)
    system = System(settings, changed=display.changed)
    display.watch(system)
    with stop_signals(stop):
        stopped = asyncio.create_task(stop.wait())
        try:
            with display:
                starting = asyncio.create_task(system.start())
                await first_of(starting, stopped)
                if not starting.done():
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
                    return 0
                starting.result()
            console.print(f"Ready: {system.gateway_url} (API: {system.gateway_url}/docs). Ctrl-C stops it.")
            await first_of(system.failure, stopped)
            if system.failure.done():
                system.failure.result()
        finally:
            stopped.cancel()
            await system.stop()
    if system.killed:
        console.print(f"Did not stop in time and was killed: {', '.join(system.killed)}", style="bold red")
        return 1
    console.print("Stopped.")
    return 0
