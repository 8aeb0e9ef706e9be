"""`dead-letters`: what services could not process."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    table,
)
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="What services could not process, and why.")


@commands.command("list")
def letters_list(
    every: Annotated[bool, typer.Option("--all", help="Also those that were sent back.")] = False,
    as_json: Json = False,
) -> None:
    """Every record that a service could not process, with its reason; never its contents."""
    from mini_visa.dead_letters import letters

    found = [letter for letter in asyncio.run(letters(settings())) if every or not letter.sent_back]
    if as_json:
        print_json([asdict(letter) for letter in found])
        return
    shown = table("service", "letter", "given up (UTC)", "from", "#bytes", "sent back", "reason")
    for letter in found:
        at = datetime.fromtimestamp(letter.at / 1000, UTC).isoformat(timespec="seconds")[:19]
        place, back = f"{letter.partition}/{letter.offset}", "yes" if letter.sent_back else ""
        shown.add_row(
            letter.service, place, at, letter.source, str(letter.size_bytes), back, escape(letter.reason)
        )
    out().print(shown if found else "No dead letters.")


@commands.command("send-back")
def letters_send_back(
    service: Annotated[str, typer.Argument(help="Whose letters.")],
    letter: Annotated[
        str, typer.Argument(help="PARTITION/OFFSET, as `dead-letters list` shows it. Default: all.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Send letters to where they came from, once the cause is mended. Each goes once; what still cannot be
    read does not go."""
    from mini_visa.dead_letters import send_back

    place = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,18})", letter)
    if letter and not place:
        raise typer.BadParameter("a letter is PARTITION/OFFSET, such as 0/17")
    chosen = (int(place[1]), int(place[2])) if place else (None, None)
    sent = asyncio.run(send_back(settings(), service, partition=chosen[0], offset=chosen[1]))
    if as_json:
        print_json([asdict(one) for one in sent])
    else:
        out().print(f"{len(sent)} sent back." if sent else "There is none to send back.")
