"""`keys` of the gateway's clients."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
    table,
)
from mini_visa.settings import settings

commands = typer.Typer(no_args_is_help=True, help="Keys of the gateway's clients (MINI_VISA_AUTH=required).")


@commands.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Of the client: its request ids are a space of their own.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="Such as payments:write, or payments:write:own for what this client has made only; "
            "several: repeat it.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once; the gateway keeps its digest only, and knows it within a second."""
    from mini_visa.gateway.access import create_key, keys_file

    key = create_key(keys_file(settings()), name, scope)
    print_json({"name": name, "scopes": scope, "key": key}) if as_json else sys.stdout.write(key + "\n")


@commands.command("list")
def keys_list(as_json: Json = False) -> None:
    """Every key that was made, without its secret."""
    from mini_visa.gateway.access import keys_file, list_keys

    keys = list_keys(keys_file(settings()))
    if as_json:
        print_json([
            {"key_id": key.key_id, "name": key.name, "scopes": key.scopes, "created_at": key.created_at,
             "revoked_at": key.revoked_at or None}
            for key in keys
        ])  # fmt: skip
        return
    shown = table("id", "client", "scopes", "made", "revoked")
    for key in keys:
        shown.add_row(key.key_id, key.name, " ".join(key.scopes), key.created_at, key.revoked_at)
    out().print(shown)


@commands.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="See `mini-visa keys list`.")], as_json: Json = False
) -> None:
    """Refuse a key from now on."""
    from mini_visa.gateway.access import keys_file, revoke_key

    key = revoke_key(keys_file(settings()), key_id)
    if as_json:
        print_json({"key_id": key.key_id, "name": key.name, "revoked_at": key.revoked_at})
    else:
        out().print(f"{key.name}'s key {key.key_id} is refused since {key.revoked_at}.")
