"""`migrate`: from another system to this one."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    steps_bar,
    table,
)
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="From another system to this one.")


@commands.command("import")
def migrate_import(
    file: Annotated[Path, typer.Argument(help="Its accounts and open holds: .jsonl or .csv.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file only; needs no Kafka.")] = False,
    as_json: Json = False,
) -> None:
    """Take over another system's accounts and open holds. Nothing is sent unless every line is right; again:
    changes nothing. docs/migration.md has the fields. Exit code 1 when a row was refused."""
    from mini_visa.migrate.importing import import_file

    with steps_bar(as_json) as show:
        done = asyncio.run(import_file(settings(), file, dry_run=dry_run, show=show))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        console, rows = out(), ", ".join(f"{count:,} {kind}s" for kind, count in done.rows.items())
        console.print(f"{rows}: every line is right." if dry_run else rows)
        if not dry_run:
            console.print(f"{done.imported:,} imported, {done.before:,} by an earlier run")
            console.print(f"{done.expired:,} holds had ended already, {done.refused:,} rows were refused")
        for refusal in done.refusals:
            console.print(f"  {refusal}", markup=False, soft_wrap=True)
    if done.refused:
        raise typer.Exit(1)


@commands.command("shadow")
def migrate_shadow(
    file: Annotated[Path, typer.Argument(help="Its authorizations, as decided there: .jsonl or .csv.")],
    speed: Annotated[
        float, typer.Option(min=0.0, help="Times its own pace. 0: all at once; velocity rules then see that.")
    ] = 1.0,
    run: Annotated[str, typer.Option(help="A name; the same again repeats that run's answers.")] = "",
    agreement: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Exit code 1 below so many percent.")
    ] = 100.0,
    differences: Annotated[int, typer.Option(min=0, max=100_000, help="How many to list.")] = 100,
    as_json: Json = False,
) -> None:
    """Ask this system for another one's decisions and compare them by code. Use a system of its own for it:
    what is decided places holds."""
    from mini_visa.migrate.shadow import shadow

    name = run or secrets.token_hex(4)
    with steps_bar(as_json) as show:
        done = asyncio.run(
            shadow(settings(), file, run=name, speed=speed, differences_max=differences, show=show)
        )
    if as_json:
        print_json({"run": name, "agreement": done.agreement, **msgspec.to_builtins(done)})
    else:
        console = out()
        shown = table("theirs", "ours", "#how many")
        for theirs, counts in done.codes.items():
            for ours, count in counts.items():
                shown.add_row(theirs, ours, f"{count:,}")
        console.print(shown)
        for one in done.differences:
            why = f" by {', '.join(one.rules)}" if one.rules else ""
            console.print(
                f"line {one.line}, {one.id}: {one.theirs} there, {one.ours} here{why}", markup=False
            )
        console.print(f"run {name}: {done.agreed:,} of {done.compared:,} agree, {done.agreement:.2f} %")
    if done.agreement < agreement:
        raise typer.Exit(1)
