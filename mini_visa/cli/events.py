"""`events`, `audit`, `sagas`, `replay`: what happened, from the log and the read model."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    reading_bar,
    table,
    with_read_model,
)
from mini_visa.errors import UserError
from mini_visa.settings import Settings, settings

commands = typer.Typer(no_args_is_help=True, help="payment.events, the source of truth.")


@commands.command("tail")
def events_tail(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All, not only new ones.")] = False,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="End at what is there now.")] = False,
    account: Annotated[str, typer.Option(help="Only this account (tok_...).")] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many. 0: never.")] = 0,
    as_json: Json = False,
) -> None:
    """Payments as they happen: time (UTC), card, what, amount, code, payment."""
    asyncio.run(_tail(settings(), from_beginning, no_follow, account, count, as_json))


async def _tail(
    configured: Settings, from_beginning: bool, no_follow: bool, account: str, count: int, as_json: bool
) -> None:
    from mini_visa.tail import follow, line

    shown = 0
    facts = follow(configured, from_beginning=from_beginning, until_end=no_follow, account=account)
    async with contextlib.aclosing(facts):
        async for seen in facts:
            if as_json:
                event = orjson.loads(seen.raw) if seen.fact is not None else None
                print_json({"partition": seen.partition, "offset": seen.offset, "event": event})
            else:
                sys.stdout.write(line(seen) + "\n")
                sys.stdout.flush()
            shown += 1
            if shown == count:
                return


def audit(
    history: Annotated[
        Path | None, typer.Option(help="JSON lines of what a client sent and was answered.", exists=True)
    ] = None,
    recording: Annotated[
        Path | None, typer.Option(help="Audit this recording instead of a cluster.", exists=True)
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write a recording there first: a new folder.")] = None,
    running: Annotated[
        bool, typer.Option("--running", help="Services are at work: what they have not done yet is no fault.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold topics, tables and read model against one another and against a client's history, by a program
    that shares no code with this one. Needs the broker, not the services. Exit code 1: something is wrong."""
    from audit.__main__ import run as audit_all
    from audit.evidence import Cluster, Recording, Unreadable
    from audit.rules import Holds
    from mini_visa.kafka import client_options
    from mini_visa.readmodel.database import database_url
    from mini_visa.supervisor.lock import running as running_in

    configured = settings()
    here = None if configured.broker.startswith("kafka://") else running_in(configured.home)
    if here is not None:  # a demo's holds and cycles are over sooner
        configured = configured.model_copy(update=here.durations)
    fees = configured.fees_file is None
    try:
        if recording is not None:
            done = audit_all(Recording(recording), running=running, as_json=as_json, usual_fees=fees)
            raise typer.Exit(done)
        url = database_url(configured)
        database = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
        holds = Holds.lasting(configured.hold_days, configured.hold_days_travel, configured.hold_fuel_s)
        cycle_ms = round(configured.clearing_cycle_s * 1_000)
        cluster = Cluster(
            client_options(configured), configured.environment, database, history, holds, cycle_ms
        )
        try:
            cluster.open()
            done = audit_all(cluster, running=running, as_json=as_json, recorded=record, usual_fees=fees)
            raise typer.Exit(done)
        finally:
            cluster.close()
    except Unreadable as error:
        raise UserError(str(error)) from error


def sagas(
    late: Annotated[bool, typer.Option("--late", help="Only those that something is wrong with.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the oldest.")] = 100,
    as_json: Json = False,
) -> None:
    """Payments some step of which has still to take place, with their age: a capture waits for the clearing
    house (waiting), has waited too long (overdue), or is being undone (compensating).

    Read from the read model's database. With --late the exit code is 1 when there is one."""
    found = asyncio.run(with_read_model(lambda read_model: read_model.open_sagas(limit)))
    now = time.time_ns() // 1_000_000
    if late:
        found = [saga for saga in found if saga.state != "waiting"]
    if as_json:
        from mini_visa.gateway.views import saga_view

        print_json([saga_view(saga, now) for saga in found])
    elif not found:
        out().print("No saga is late." if late else "No saga is open.")
    else:
        shown = table("payment", "state", "step", "#age", "captures", "#tries")
        for saga in found:
            captures = " ".join(map(str, saga.waiting))
            shown.add_row(
                saga.payment_id, saga.state, saga.step, _age(now - saga.since), captures, str(saga.tries)
            )
        out().print(shown)
    if late and found:
        raise typer.Exit(1)


def _age(ms: int) -> str:
    """ "3 s", "4 min", "5 h", "6 days": the largest unit that there are two of."""
    seconds = max(0, ms) // 1_000
    for name, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def replay(
    subject: Annotated[str, typer.Argument(help="An account (tok_...) or a payment (pay_...).")],
    at: Annotated[str, typer.Option(help="As it was then: 2026-01-31T12:00:00Z.")] = "",
    offset: Annotated[
        int | None, typer.Option(min=0, help="As it was after this offset of its partition.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rebuild an account or a payment from the log alone, and compare it with the read model and with
    authorization's table. Exit code 1 when anything differs."""
    from mini_visa.replay import replay as run

    if at and offset is not None:
        raise typer.BadParameter("one of --at and --offset")
    with reading_bar(as_json) as show:
        done = asyncio.run(run(settings(), subject, at=_milliseconds(at), offset=offset, show=show))
    document = msgspec.to_builtins(done)
    if as_json:
        print_json(document)
    else:
        console = out()
        for title in ("account", "payment"):
            if document[title]:
                console.print(title, style="bold")
                for name, value in document[title].items():
                    console.print(f"  {name:20} {value}", markup=False, soft_wrap=True)
        console.print(
            f"{done.events:,} events, the last at offset {done.offset} of partition {done.partition}"
        )
        console.print(f"agrees with: {', '.join(done.checked)}" if not done.differences else "DIFFERS:")
        for difference in done.differences:
            console.print(f"  {difference}", markup=False, soft_wrap=True)
        for skipped in done.skipped:
            console.print(f"not compared with {skipped}", markup=False, soft_wrap=True)
    if done.differences:
        raise typer.Exit(1)


def _milliseconds(text: str) -> int | None:
    """Of an RFC 3339 time; None for ""."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("--at: not a time such as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise typer.BadParameter("--at: say the time zone, such as 2026-01-31T12:00:00Z")
    return int(moment.timestamp() * 1000)
