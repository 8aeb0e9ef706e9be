"""`rules` of risk."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from mini_visa.cli.common import (
    ApiKey,
    Json,
    Url,
    gateway_at,
    out,
    print_json,
    show_fields,
    table,
)
from mini_visa.errors import UserError
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="Risk rules.")


@commands.command("list")
def rules_list(url: Url = "", api_key: ApiKey = "", as_json: Json = False) -> None:
    """The risk rules in force."""
    found = gateway_at(url, api_key).get("/rules")["items"]
    if as_json:
        print_json(found)
        return
    shown = table("rule", "#version", "metric", "#window s", "#threshold", "outcome", "code", "#score")
    for rule in found:
        if not rule["retired"]:
            shown.add_row(
                rule["rule"], str(rule["version"]), rule["metric"], str(rule["window_s"]),
                f"{rule['threshold']:,}", rule["outcome"], rule["response_code"] or "", str(rule["score"]),
            )  # fmt: skip
    out().print(shown)


@commands.command("backtest")
def rules_backtest(
    file: Annotated[
        str, typer.Argument(help='JSON file, "-" for standard input: {"rule": {"id": ..., "version": ...}}.')
    ],
    as_json: Json = False,
) -> None:
    """What a rule would have decided over the last day, or from `from_ms` to `to_ms`, against those in force.

    The file: {"rule": RULE, "current": [RULE, ...], "from_ms": N, "to_ms": N}; only `rule` is required, its
    fields are those of GET /rules, with `id` for its name."""
    from mini_visa.backtest import bounded_memory, question_of, run

    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    with bounded_memory():
        found = asyncio.run(run(settings(), question_of(data)))
    if as_json:
        print_json(found)
        return
    differences = found.pop("differences")
    show_fields(found)
    shown = table("account", "request", "#amount", "before", "after")
    for one in differences:
        shown.add_row(
            one["account_id"],
            one["request_id"],
            str(one["amount"]),
            one["before"] or "-",
            one["after"] or "-",
        )
    out().print(shown)
