"""`up`, `demo`, `doctor`, and parts that run until they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from mini_visa.cli.common import (
    Json,
    out,
    print_json,
)
from mini_visa.errors import UserError
from mini_visa.settings import settings


def up() -> None:
    """Start broker, topics, services and gateway; stop them all with Ctrl-C."""
    from mini_visa.supervisor.up import run

    raise typer.Exit(run(settings()))


def demo(
    once: Annotated[bool, typer.Option("--once", help="End by itself, non-zero unless all adds up.")] = False,
    payments: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many to make.")] = 3_000,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of what is generated. Default: another one each time.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=1_000, help="Requests at the same time.")] = 32,
    rejections: Annotated[
        float, typer.Option(min=0, max=1, help="Share of captures that the clearing house rejects.")
    ] = 0.02,
    lost_answers: Annotated[
        float, typer.Option(min=0, max=1, help="Share of its answers that do not arrive.")
    ] = 0.02,
    late: Annotated[
        float,
        typer.Option(min=0, max=0.1, help="Share that it is late with; and of captures after their hold."),
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Start everything, make a few thousand payments, and show what became of them.

    Some captures are rejected, some answers of the clearing house get lost, some clear late: it all has to
    add up in the end. Cycles and deadlines of clearing, days in life, are seconds here."""
    from mini_visa.demo.run import Conduct, run

    done = run(
        settings(), once=once, payments=payments, seed=seed, connections=connections, as_json=as_json,
        conduct=Conduct(rejections, lost_answers, late),
    )  # fmt: skip
    raise typer.Exit(done)


def doctor(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First write the markers that hanging transactions lack, as decided."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and the cluster, and say what to do. Exit code 1 when something fails."""
    from mini_visa.doctor import Verdict, examine

    checks = asyncio.run(examine(settings(), repair=repair))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        console = out()
        style = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
        for check in checks:
            verdict = f"[{style[check.verdict]}]{check.verdict:4}[/]"
            console.print(f"{verdict}  {check.subject:16} ", end="")
            console.print(check.finding, markup=False, soft_wrap=True)
            if check.remedy:
                console.print(f"{'':6}{'':16}  -> {check.remedy}", markup=False, soft_wrap=True)
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(1)


def worker(services: Annotated[list[str], typer.Argument(help="Such as: risk authorization")]) -> None:
    """Run services in this process until SIGTERM or Ctrl-C.

    Exit code 70: a processor could not go on; start it again, it goes on after the last commit."""
    from mini_visa.streams.worker import run

    run(services, settings())


def clearing_house() -> None:
    """Run the clearing house that the connector talks to, until SIGTERM or Ctrl-C."""
    from mini_visa import log_format
    from mini_visa.clearing_house.app import run

    configured = settings()
    log_format.configure(configured.log_level)
    where = f"{configured.clearing_house_host}:{configured.clearing_house_port}"
    with _listening("The clearing house", where, "MINI_VISA_CLEARING_HOUSE_PORT=8091"):
        run(configured)


def gateway() -> None:
    """Run the HTTP gateway in this process until SIGTERM or Ctrl-C."""
    from mini_visa import log_format
    from mini_visa.domain.cards import InvalidTokenKey
    from mini_visa.gateway.app import run

    configured = settings()
    log_format.configure(configured.log_level)
    where = f"{configured.gateway_host}:{configured.gateway_port}"
    with _listening("The gateway", where, "MINI_VISA_GATEWAY_PORT=8081"):
        try:
            run(configured)
        except InvalidTokenKey as unusable:
            raise UserError(f"A tokenization key cannot be used: {unusable}") from unusable


@contextlib.contextmanager
def _listening(who: str, where: str, other: str) -> Iterator[None]:
    """Says what to do when `where` (HOST:PORT) cannot be listened on; `other` is a setting that helps."""
    try:
        yield
    except OSError as failure:
        if failure.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise UserError(
            f"{who} cannot listen on {where} ({failure.strerror}). Choose another: {other}."
        ) from failure
