"""`broker`: the Kafka of this machine."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from dataclasses import asdict
from typing import Annotated

import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
)
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="The Kafka broker of this machine.")


@commands.command("start")
def broker_start(
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Default: a free one, then the same.")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until Ctrl-C, then stop it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the broker, or find the one that runs. The first time this fetches Kafka's jars (45 MB)."""
    from mini_visa.kafka import broker_of

    broker = broker_of(settings(), port=port)
    console = out()
    with contextlib.nullcontext() if as_json else console.status("Starting Kafka ..."):
        started = broker.start(detach=not foreground)
    if as_json:
        print_json({"started": started, **asdict(broker.health())})
    else:
        console.print(f"Kafka {'started' if started else 'runs already'} at {broker.address}")
    if foreground and started:
        _until_interrupted()
        broker.stop()


@commands.command("stop")
def broker_stop(as_json: Json = False) -> None:
    """Stop the broker. Its data stay."""
    from mini_visa.kafka import broker_of

    stopped = broker_of(settings()).stop()
    if as_json:
        print_json({"stopped": stopped})
    else:
        out().print("Kafka stopped." if stopped else "Kafka was not running.")


@commands.command("status")
def broker_status(as_json: Json = False) -> None:
    """Is it running, and where? Exit code 1 when it does not answer."""
    from mini_visa.kafka import broker_of

    health = broker_of(settings()).health()
    if as_json:
        print_json(asdict(health))
    elif not health.running:
        out().print("Kafka is not running. Start it: mini-visa broker start")
    else:
        memory = f", {health.memory_bytes >> 20} MB" if health.memory_bytes else ""
        answers = "answers" if health.answers else "does not answer"
        out().print(f"Kafka {health.version} {answers} at {health.address} (process {health.pid}{memory})")
        out().print(f"log: {health.log}", soft_wrap=True)
    if not health.answers:
        raise typer.Exit(1)


@commands.command("logs")
def broker_logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1_000_000, help="How many.")] = 50,
    as_json: Json = False,
) -> None:
    """The end of the broker's log."""
    from mini_visa.kafka import broker_of

    for line in broker_of(settings()).logs(lines):
        if as_json:
            print_json({"line": line})
        else:
            sys.stdout.write(line + "\n")


def _until_interrupted() -> None:
    """Returns on SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
