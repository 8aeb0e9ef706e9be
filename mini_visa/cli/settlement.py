"""`settlement`: cycles and their files."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    table,
    with_read_model,
)
from mini_visa.errors import UserError

commands = typer.Typer(no_args_is_help=True, help="What merchants are paid, cycle by cycle.")


@commands.command("cycles")
def settlement_cycles(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """Closed settlement cycles, newest first."""
    page = asyncio.run(with_read_model(lambda read_model: read_model.settlement_cycles(None, limit)))
    if as_json:
        from mini_visa.gateway.views import cycle_view

        print_json([cycle_view(cycle) for cycle in page.items])
        return
    shown = table("cycle", "#positions", "#partitions", "closed")
    for cycle in page.items:
        closed = datetime.fromtimestamp(cycle.closed_at / 1_000, UTC).isoformat(timespec="seconds")
        shown.add_row(cycle.cycle, f"{cycle.positions:,}", str(cycle.partitions), closed)
    out().print(shown)


@commands.command("file")
def settlement_file(
    cycle: Annotated[str, typer.Argument(help="Such as 2026-01-31T00:00:00Z: see `settlement cycles`.")],
    as_json: Json = False,
) -> None:
    """A cycle's file on standard output: CSV, or with --json a JSON document with the totals. The totals are
    what the ledger's settlement:bank paid for it."""
    from mini_visa.domain.settlement import CsvFile, JsonFile

    file, out_ = JsonFile() if as_json else CsvFile(), sys.stdout.buffer

    async def write(read_model: Any) -> bool:
        some = False
        async for page in read_model.settled_positions(cycle):
            out_.write(file.page(page))
            some = True
        return some

    if not asyncio.run(with_read_model(write)):
        raise UserError(f"There is no closed cycle {cycle}. See which there are: mini-visa settlement cycles")
    out_.write(file.end())
    out_.flush()
