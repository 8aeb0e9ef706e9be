"""`readmodel`: the SQL database that queries are answered from."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    steps_bar,
)
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="The SQL database that queries are answered from.")


@commands.command("migrate")
def read_model_migrate(as_json: Json = False) -> None:
    """Make the database's tables, or bring them up to date. Again: does nothing."""
    from mini_visa.readmodel.database import Database

    async def migrate() -> dict[str, str | None]:
        database = Database.of(settings(), write=True)
        try:
            # The setting that switches this off for services is about their start, not about us.
            await database.prepare(settings().model_copy(update={"database_migrate": True}))
            return {"database": str(database), "schema": await database.revision()}
        finally:
            await database.close()

    done = asyncio.run(migrate())
    if as_json:
        print_json(done)
    else:
        out().print(f"{done['database']}: schema {done['schema']}", soft_wrap=True)


@commands.command("rebuild")
def read_model_rebuild(
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare only: exit code 1 when a row is not what the log makes it."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make it anew from the log, beside the one that is read, compare the two, and change them over.

    Queries and the projection go on meanwhile. If it ends early, everything is as it was."""
    from mini_visa.readmodel.rebuild import rebuild

    with steps_bar(as_json) as show:
        done = asyncio.run(rebuild(settings(), switch=not check, show=show))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        console = out()
        console.print(f"{done.records:,} records applied.")
        if not done.compared:
            console.print("Not compared: there was nothing to compare with, or it did not catch up in time.")
        elif done.different:
            console.print(f"These tables were not what the log makes them: {', '.join(done.different)}.")
        else:
            rows = ", ".join(f"{count:,} {table}" for table, count in sorted(done.rows.items()))
            console.print(f"Equal, row by row: {rows}.", soft_wrap=True)
        if done.switched:
            console.print("The new read model is in place.")
    if check and (done.different or not done.compared):
        raise typer.Exit(1)
