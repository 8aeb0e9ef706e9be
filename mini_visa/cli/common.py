"""What commands have in common: the program, its options, what they print."""

from __future__ import annotations

import contextlib
import getpass
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mini_visa.settings import settings

WIDTH_OF_A_PIPE = 200

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str,
    typer.Option(
        help="The gateway's address. Default: that of the system which runs in MINI_VISA_HOME, else of "
        "MINI_VISA_GATEWAY_HOST and MINI_VISA_GATEWAY_PORT.",
        envvar="MINI_VISA_URL",
        show_envvar=True,
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        help="Sent as a bearer token; only needed where the gateway asks for one.",
        envvar="MINI_VISA_API_KEY",
        show_envvar=True,
    ),
]
Pan = Annotated[
    str,
    typer.Option(
        help="Card number. Leave it out to type it unseen or to pipe it in: other users of this machine "
        "can see the options of a command."
    ),
]
RequestId = Annotated[
    str,
    typer.Option(help="Idempotency key: the same id again gets the first answer. Default: a new one."),
]


def out() -> Console:
    """Standard output; a pipe gets whole lines, not ones cut at 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE)


def print_json(document: Any) -> None:
    """One JSON document on one line, so that several are JSON lines."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")
    sys.stdout.flush()


def table(*columns: str) -> Table:
    """A plain table; a column whose name starts with "#" is of numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column.lstrip("#"), justify="right" if column.startswith("#") else "left", no_wrap=True
        )
    return made


def show_fields(document: dict[str, Any]) -> None:
    """Field and value, a line each; what is empty is left out."""
    console = out()
    for key, value in document.items():
        if value in (None, "", {}, []):
            continue
        text = orjson.dumps(value).decode() if isinstance(value, dict | list) else str(value)
        console.print(f"[bold]{key:20}[/] ", end="")
        console.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def steps_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error: what is being done, how many are done, of how many (0: not known)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda what, done, total: progress.update(
            bar, description=what, completed=done, total=total or None
        )


@contextlib.contextmanager
def reading_bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, for records read of records in all."""
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        bar = progress.add_task("reading the log", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def gateway_at(url: str, api_key: str) -> Any:
    from mini_visa.http_client import GatewayClient

    return GatewayClient(url or _gateway_here(), api_key)


def _gateway_here() -> str:
    """Where the gateway of this home is, or would be."""
    from mini_visa.supervisor.lock import running

    chosen = settings()
    system = running(chosen.home)
    return system.gateway_url if system else chosen.gateway_url


def new_request_id() -> str:
    return f"cli-{secrets.token_hex(8)}"


def read_pan(given: str) -> str:
    """The card number: the option's, typed unseen, or a line of standard input. It is never printed."""
    if given and given != "-":
        return given
    if sys.stdin.isatty():
        return getpass.getpass("Card number (not shown): ").strip()
    return sys.stdin.readline().strip()


def path_part(text: str) -> str:
    """An id as a part of a path. Ids have no other characters, so nothing needs quoting."""
    if not text.replace("_", "").replace("-", "").isalnum():
        raise typer.BadParameter("an id has letters, digits, _ and - only")
    return text


async def with_read_model(ask: Callable[[Any], Awaitable[Any]]) -> Any:
    """The read model's answer. It is opened as it is: no command changes its schema by looking."""
    from mini_visa.readmodel import ReadModel

    async with await ReadModel.open(settings().model_copy(update={"database_migrate": False})) as read_model:
        return await ask(read_model)
