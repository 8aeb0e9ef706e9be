"""The command line, `mini-visa`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import orjson
import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mini_visa.errors import UserError
from mini_visa.settings import Settings, settings

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
WIDTH_OF_A_PIPE = 200
DEFAULT_URL = "http://127.0.0.1:8080"

app = typer.Typer(
    name="mini-visa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A small card network: authorizations through Kafka, exactly once.\n\n"
    "Start with `mini-visa demo` (it shows everything at work) or `mini-visa up` (it runs until Ctrl-C). "
    "If something does not work: `mini-visa doctor`. Settings are environment variables, MINI_VISA_...; "
    "docs/configuration.md lists them.",
)
broker_commands = typer.Typer(no_args_is_help=True, help="The Kafka broker of this machine.")
topic_commands = typer.Typer(no_args_is_help=True, help="The topics, with their configuration.")
account_commands = typer.Typer(no_args_is_help=True, help="Card accounts.")
key_commands = typer.Typer(
    no_args_is_help=True, help="Keys of the gateway's clients (MINI_VISA_AUTH=required)."
)
read_model_commands = typer.Typer(
    no_args_is_help=True, help="The SQL database that queries are answered from."
)
payment_commands = typer.Typer(no_args_is_help=True, help="Payments.")
settlement_commands = typer.Typer(no_args_is_help=True, help="What merchants are paid, cycle by cycle.")
rule_commands = typer.Typer(no_args_is_help=True, help="Risk rules.")
event_commands = typer.Typer(no_args_is_help=True, help="payment.events, the source of truth.")
letter_commands = typer.Typer(no_args_is_help=True, help="What services could not process, and why.")
migrate_commands = typer.Typer(no_args_is_help=True, help="From another system to this one.")

RUN, USE, RUN_PARTS = "Run everything", "Use it", "Run and look at its parts"
app.add_typer(account_commands, name="accounts", rich_help_panel=USE)
app.add_typer(payment_commands, name="payments", rich_help_panel=USE)
app.add_typer(event_commands, name="events", rich_help_panel=USE)
app.add_typer(settlement_commands, name="settlement", rich_help_panel=USE)
app.add_typer(rule_commands, name="rules", rich_help_panel=USE)
app.add_typer(broker_commands, name="broker", rich_help_panel=RUN_PARTS)
app.add_typer(topic_commands, name="topics", rich_help_panel=RUN_PARTS)
app.add_typer(migrate_commands, name="migrate", rich_help_panel=RUN_PARTS)
app.add_typer(letter_commands, name="dead-letters", rich_help_panel=RUN_PARTS)
app.add_typer(read_model_commands, name="readmodel", rich_help_panel=RUN_PARTS)
app.add_typer(key_commands, name="keys", rich_help_panel=RUN_PARTS)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[str, typer.Option(help="The gateway's address.", envvar="MINI_VISA_URL")]
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


# -- output ----------------------------------------------------------------------------------------


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


# -- run everything --------------------------------------------------------------------------------


@app.command(rich_help_panel=RUN)
def up() -> None:
    """Start broker, topics, services and gateway; stop them all with Ctrl-C."""
    from mini_visa.supervisor.up import run

    raise typer.Exit(run(settings()))


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
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


# -- parts -----------------------------------------------------------------------------------------


@app.command(rich_help_panel=RUN_PARTS)
def worker(services: Annotated[list[str], typer.Argument(help="Such as: risk authorization")]) -> None:
    """Run services in this process until SIGTERM or Ctrl-C.

    Exit code 70: a processor could not go on; start it again, it goes on after the last commit."""
    from mini_visa.streams.worker import run

    run(services, settings())


@app.command("clearing-house", rich_help_panel=RUN_PARTS)
def clearing_house() -> None:
    """Run the clearing house that the connector talks to, until SIGTERM or Ctrl-C."""
    from mini_visa import log_format
    from mini_visa.clearing_house.app import run

    configured = settings()
    log_format.configure(configured.log_level)
    try:
        run(configured)
    except OSError as failure:
        if failure.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise UserError(
            f"The clearing house cannot listen on {configured.clearing_house_host}:"
            f"{configured.clearing_house_port} ({failure.strerror}). Choose another: "
            "MINI_VISA_CLEARING_HOUSE_PORT=8091."
        ) from failure


@app.command(rich_help_panel=RUN_PARTS)
def gateway() -> None:
    """Run the HTTP gateway in this process until SIGTERM or Ctrl-C."""
    from mini_visa import log_format
    from mini_visa.domain.cards import InvalidTokenKey
    from mini_visa.gateway.app import run

    configured = settings()
    log_format.configure(configured.log_level)
    try:
        run(configured)
    except InvalidTokenKey as unusable:
        raise UserError(f"A tokenization key cannot be used: {unusable}") from unusable
    except OSError as failure:
        if failure.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise UserError(
            f"The gateway cannot listen on {configured.gateway_host}:{configured.gateway_port} "
            f"({failure.strerror}). Choose another: MINI_VISA_GATEWAY_PORT=8081."
        ) from failure


@broker_commands.command("start")
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


@broker_commands.command("stop")
def broker_stop(as_json: Json = False) -> None:
    """Stop the broker. Its data stay."""
    from mini_visa.kafka import broker_of

    stopped = broker_of(settings()).stop()
    if as_json:
        print_json({"stopped": stopped})
    else:
        out().print("Kafka stopped." if stopped else "Kafka was not running.")


@broker_commands.command("status")
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


@broker_commands.command("logs")
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


@topic_commands.command("apply")
def topics_apply(as_json: Json = False) -> None:
    """Create what is missing and set what differs. Again: does nothing."""
    from mini_visa.kafka import apply_topics

    changes = asyncio.run(apply_topics(settings()))
    if as_json:
        print_json([asdict(change) for change in changes])
    elif not changes:
        out().print("All topics are as they should be.")
    else:
        for change in changes:
            details = ", ".join(f"{key}={value}" for key, value in sorted(change.config.items()))
            out().print(f"{change.action} {change.name} ({details})", soft_wrap=True)


@topic_commands.command("export")
def topics_export(
    folder: Annotated[Path, typer.Argument(help="An archive: a new one, or one to add to.")],
    cut_wait: Annotated[float, typer.Option(min=0.0, help="Seconds to look for a whole moment.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Copy the log into files, for `topics import` after the cluster is lost. Again: adds what is new.

    Exit code 1 when no moment was found at which no transaction was half done: stop the workers for one."""
    from mini_visa.archive import export_topics

    with _steps_bar(as_json) as show:
        done = asyncio.run(export_topics(settings(), folder, cut_wait_s=cut_wait, show=show))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        out().print(
            f"{done.records:,} new records of {done.topics} topics, in {done.seconds:.1f} s; "
            f"the archive has {done.bytes / 1e6:,.1f} MB"
        )
        found = f"can be imported as of {done.cut}" if done.cut else "cannot be imported yet"
        why = "" if done.new_cut else "; no newer moment found: services were at work all the time"
        out().print(found + why)
    if not done.new_cut:
        raise typer.Exit(1)


@topic_commands.command("import")
def topics_import(
    folder: Annotated[Path, typer.Argument(help="An archive that `topics export` made.")],
    as_json: Json = False,
) -> None:
    """Make an archive's topics in a new cluster, every record at the offset that it had, and read it all back
    to compare. Then start the services: they restore their tables and go on."""
    from mini_visa.archive import import_topics

    with _steps_bar(as_json) as show:
        done = asyncio.run(import_topics(settings(), folder, show=show))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        out().print(
            f"{done.records:,} records of {done.topics} topics as of {done.cut}, {done.transactions:,} "
            f"transactions, {done.groups} groups, in {done.seconds:.1f} s. Compared: all equal."
        )


@topic_commands.command("list")
def topics_list(as_json: Json = False) -> None:
    """Every topic of the cluster: partitions, records, how long they are kept."""
    from mini_visa import topics
    from mini_visa.kafka import list_topics

    found = asyncio.run(list_topics(settings()))
    if as_json:
        print_json([asdict(topic) for topic in found])
        return
    holds = {topic.name: topic.holds for topic in topics.ALL}
    shown = table("topic", "#partitions", "#records", "kept", "holds")
    for topic in found:
        shown.add_row(
            topic.name,
            str(topic.partitions),
            f"{topic.records:,}",
            _kept(topic.config),
            holds.get(topic.name, ""),
        )
    out().print(shown)


def _kept(config: dict[str, str]) -> str:
    if "compact" in config.get("cleanup.policy", ""):
        return "latest per key"
    hours = int(config.get("retention.ms", "-1")) / 3_600_000
    if hours < 0:
        return "for ever"
    return f"{hours / 24:g} days" if hours >= 24 else f"{hours:g} h"


@app.command(rich_help_panel=RUN_PARTS)
def lag(
    partitions: Annotated[bool, typer.Option("--partitions", help="A line each, not only sums.")] = False,
    as_json: Json = False,
) -> None:
    """How far every service is behind: records, and the age of the oldest one that waits.

    One record that stays is a transaction's marker, and no work."""
    from mini_visa import kafka

    found = asyncio.run(kafka.lag(settings(), ages=True))
    if as_json:
        print_json([{**asdict(one), "records": one.records, "age_s": _age_s(one.oldest_ms)} for one in found])
        return
    groups: dict[tuple[str, str, str], list[kafka.Lag]] = {}
    for one in found:
        groups.setdefault((one.group, one.topic, str(one.partition) if partitions else ""), []).append(one)
    shown = table("group", "topic", "#partition" if partitions else "", "#records", "#oldest (s)")
    for (group, topic, partition), members in groups.items():
        age = max((_age_s(member.oldest_ms) for member in members), default=0.0)
        records = sum(member.records for member in members)
        shown.add_row(group, topic, partition, f"{records:,}", f"{age:,.1f}")
    out().print(shown)
    if not found:
        out().print("No consumer group of this environment: no service has run yet.")


def _age_s(at_ms: int | None) -> float:
    return 0.0 if at_ms is None else round(max(0.0, time.time() - at_ms / 1000), 1)


@migrate_commands.command("import")
def migrate_import(
    file: Annotated[Path, typer.Argument(help="Its accounts and open holds: .jsonl or .csv.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file only; needs no Kafka.")] = False,
    as_json: Json = False,
) -> None:
    """Take over another system's accounts and open holds. Nothing is sent unless every line is right; again:
    changes nothing. docs/migration.md has the fields. Exit code 1 when a row was refused."""
    from mini_visa.migrate.importing import import_file

    with _steps_bar(as_json) as show:
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


@migrate_commands.command("shadow")
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
    with _steps_bar(as_json) as show:
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


@letter_commands.command("list")
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


@letter_commands.command("send-back")
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

    partition, slash, offset = letter.partition("/")
    if letter and not (slash and partition.isdigit() and offset.isdigit()):
        raise typer.BadParameter("a letter is PARTITION/OFFSET, such as 0/17")
    chosen = (int(partition), int(offset)) if letter else (None, None)
    sent = asyncio.run(send_back(settings(), service, partition=chosen[0], offset=chosen[1]))
    if as_json:
        print_json([asdict(one) for one in sent])
    else:
        out().print(f"{len(sent)} sent back." if sent else "There is none to send back.")


@read_model_commands.command("migrate")
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


@read_model_commands.command("rebuild")
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

    with _steps_bar(as_json) as show:
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


@key_commands.command("create")
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


@key_commands.command("list")
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


@key_commands.command("revoke")
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


# -- use it ----------------------------------------------------------------------------------------


@app.command(rich_help_panel=USE)
def authorize(
    amount: Annotated[str, typer.Argument(help='In the currency\'s own decimals: "10.00" USD, "10" JPY.')],
    pan: Pan = "",
    currency: Annotated[str, typer.Option(help="ISO 4217. Default: the account's.")] = "",
    merchant_id: Annotated[str, typer.Option(help="Who asks.")] = "",
    mcc: Annotated[str, typer.Option(help="Merchant category code, four digits.")] = "",
    capture: Annotated[bool, typer.Option("--capture", help="Authorize and capture in one.")] = False,
    partial_approval: Annotated[
        bool, typer.Option("--partial-approval", help="Approve what is available if it is less.")
    ] = False,
    request_id: RequestId = "",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Ask for money on a card. A decline is an answer, not an error: exit code 0."""
    body: dict[str, Any] = {
        "request_id": request_id or _new_request_id(),
        "pan": _read_pan(pan),
        "amount": amount,
        "currency": currency,
        "merchant_id": merchant_id,
        "mcc": mcc,
        "capture": capture,
        "partial_approval": partial_approval,
    }
    payment = _client(url, api_key).post(
        "/payments/authorize", {key: value for key, value in body.items() if value}
    )
    print_json(payment) if as_json else _show_payment(payment)


@app.command(rich_help_panel=USE)
def load(
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Authorizations a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long. 0: until Ctrl-C.")] = 60.0,
    cards: Annotated[int, typer.Option(min=1, max=100_000, help="Accounts to open and use.")] = 100,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Authorize at a steady rate with made-up cards. What gets no answer is asked for again, under the same
    request id. Exit code 1 when anything stayed without an answer."""
    from mini_visa.demo.load import Load, run

    console = Console(stderr=True, highlight=False)

    def show(so_far: Load) -> None:
        done = so_far.document()
        console.print(
            f"{done['seconds']:7.0f} s  {done['answered']:8,} answered  {done['per_s']:8,.1f}/s  "
            f"{done['unanswered']} without an answer"
        )

    done = asyncio.run(run(url, rate=rate, seconds=seconds, cards=cards, api_key=api_key, show=show))
    print_json(done.document()) if as_json else _show(done.document())
    if done.unanswered or not done.answers:
        raise typer.Exit(1)


@payment_commands.command("show")
def payments_show(
    payment_id: Annotated[str, typer.Argument(help="Such as pay_...")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """A payment as it stands, with what happened to it."""
    payment = _client(url, api_key).get(f"/payments/{_path_part(payment_id)}")
    print_json(payment) if as_json else _show_payment(payment)


@account_commands.command("open")
def accounts_open(
    limit: Annotated[str, typer.Argument(help='Credit limit, such as "1000.00".')],
    pan: Pan = "",
    currency: Annotated[str, typer.Option(help="ISO 4217. Default: the gateway's.")] = "",
    expiry: Annotated[str, typer.Option(help="Of the card, YYYY-MM.")] = "",
    request_id: RequestId = "",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """Open an account for a card."""
    body = {
        "request_id": request_id or _new_request_id(),
        "pan": _read_pan(pan),
        "limit": limit,
        "currency": currency,
        "expiry": expiry,
    }
    account = _client(url, api_key).post("/accounts", {key: value for key, value in body.items() if value})
    print_json(account) if as_json else _show(account)


@account_commands.command("open-test-cards")
def accounts_open_test_cards(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: Json = False) -> None:
    """Open an account for each of the usual test cards, as `mini-visa demo` does. Again: does nothing."""
    from mini_visa.demo.cards import TEST_CARD_LIMIT, TEST_CARDS
    from mini_visa.http_client import Refused

    opened = []
    for pan in TEST_CARDS:
        body = {"request_id": _new_request_id(), "pan": pan, "limit": TEST_CARD_LIMIT}
        try:
            opened.append(_client(url, api_key).post("/accounts", body))
        except Refused as refused:
            if refused.status != HTTPStatus.CONFLICT:  # it is there already
                raise
    if as_json:
        print_json(opened)
    else:
        out().print(f"{len(opened)} accounts opened, {len(TEST_CARDS) - len(opened)} were there.")


@account_commands.command("show")
def accounts_show(
    account_id: Annotated[str, typer.Argument(help="Such as tok_...")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    """An account's limit, holds and balance."""
    account = _client(url, api_key).get(f"/accounts/{_path_part(account_id)}")
    print_json(account) if as_json else _show(account)


@event_commands.command("tail")
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


@app.command(rich_help_panel=RUN_PARTS)
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
    from mini_visa.kafka import client_options
    from mini_visa.readmodel.database import database_url

    configured = settings()
    try:
        if recording is not None:
            usual = configured.fees_file is None
            done = audit_all(Recording(recording), running=running, as_json=as_json, usual_fees=usual)
            raise typer.Exit(done)
        url = database_url(configured)
        there = url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()
        database = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
        cluster = Cluster(
            client_options(configured), configured.environment, database if there else "", history
        )
        try:
            cluster.open()
            done = audit_all(
                cluster, running=running, as_json=as_json, recorded=record,
                usual_fees=configured.fees_file is None,
            )  # fmt: skip
            raise typer.Exit(done)
        finally:
            cluster.close()
    except Unreadable as error:
        raise UserError(str(error)) from error


@app.command(rich_help_panel=USE)
def sagas(
    late: Annotated[bool, typer.Option("--late", help="Only those that something is wrong with.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the oldest.")] = 100,
    as_json: Json = False,
) -> None:
    """Payments some step of which has still to take place, with their age: a capture waits for the clearing
    house (waiting), has waited too long (overdue), or is being undone (compensating).

    Read from the read model's database. With --late the exit code is 1 when there is one."""
    found = asyncio.run(_with_read_model(lambda read_model: read_model.open_sagas(limit)))
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


async def _with_read_model(ask: Callable[[Any], Awaitable[Any]]) -> Any:
    """The read model's answer. It is opened as it is: no command changes its schema by looking."""
    from mini_visa.readmodel import ReadModel

    async with await ReadModel.open(settings().model_copy(update={"database_migrate": False})) as read_model:
        return await ask(read_model)


@settlement_commands.command("cycles")
def settlement_cycles(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """Closed settlement cycles, newest first."""
    page = asyncio.run(_with_read_model(lambda read_model: read_model.settlement_cycles(None, limit)))
    if as_json:
        from mini_visa.gateway.views import cycle_view

        print_json([cycle_view(cycle) for cycle in page.items])
        return
    shown = table("cycle", "#positions", "#partitions", "closed")
    for cycle in page.items:
        closed = datetime.fromtimestamp(cycle.closed_at / 1_000, UTC).isoformat(timespec="seconds")
        shown.add_row(cycle.cycle, f"{cycle.positions:,}", str(cycle.partitions), closed)
    out().print(shown)


@settlement_commands.command("file")
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

    if not asyncio.run(_with_read_model(write)):
        raise UserError(f"There is no closed cycle {cycle}. See which there are: mini-visa settlement cycles")
    out_.write(file.end())
    out_.flush()


@rule_commands.command("list")
def rules_list(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: Json = False) -> None:
    """The risk rules in force."""
    found = _client(url, api_key).get("/rules")["items"]
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


@rule_commands.command("backtest")
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
    _show(found)
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


@app.command(rich_help_panel=USE)
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
    with _reading_bar(as_json) as show:
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


@contextlib.contextmanager
def _steps_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error: what is being done, how many are done, of how many (0: not known)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda what, done, total: progress.update(
            bar, description=what, completed=done, total=total or None
        )


@contextlib.contextmanager
def _reading_bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, for records read of records in all."""
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        bar = progress.add_task("reading the log", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


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


def _client(url: str, api_key: str) -> Any:
    from mini_visa.http_client import GatewayClient

    return GatewayClient(url, api_key)


def _read_pan(given: str) -> str:
    """The card number: the option's, typed unseen, or a line of standard input. It is never printed."""
    if given and given != "-":
        return given
    if sys.stdin.isatty():
        return getpass.getpass("Card number (not shown): ").strip()
    return sys.stdin.readline().strip()


def _new_request_id() -> str:
    return f"cli-{secrets.token_hex(8)}"


def _path_part(text: str) -> str:
    """An id as a part of a path. Ids have no other characters, so nothing needs quoting."""
    if not text.replace("_", "").replace("-", "").isalnum():
        raise typer.BadParameter("an id has letters, digits, _ and - only")
    return text


def _show_payment(payment: dict[str, Any]) -> None:
    operations = payment.pop("events", [])
    _show(payment)
    if operations:
        shown = table("time", "what", "#amount", "code")
        for event in operations:
            shown.add_row(*(str(event.get(key, "")) for key in ("at", "type", "amount", "response_code")))
        out().print(shown)


def _show(document: dict[str, Any]) -> None:
    """Field and value, a line each; what is empty is left out."""
    console = out()
    for key, value in document.items():
        if value in (None, "", {}, []):
            continue
        text = orjson.dumps(value).decode() if isinstance(value, dict | list) else str(value)
        console.print(f"[bold]{key:20}[/] ", end="")
        console.print(text, markup=False, soft_wrap=True)


def _until_interrupted() -> None:
    """Returns on SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


# -- the entry -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 1 an error the user can act on, 2 wrong usage or setting."""
    # Without a handler of its own a library's warning would go to the terminal beside our error.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        app(args=None if arguments is None else list(arguments))
    except UserError as error:
        _fail(str(error), error.exit_code)
    except ValidationError as invalid:
        _fail("\n".join(_setting_errors(invalid)), EXIT_USAGE)
    except BrokenPipeError:  # the reader (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not _concerns_home(error):
            raise
        _fail(f"{error.filename}: {error.strerror}. Set MINI_VISA_HOME to a directory of yours with room.", 1)
    except Exception as error:
        if type(error).__module__ != "aiokafka.errors":  # known without importing it for every command
            raise
        _fail(f"Kafka refused or went away: {type(error).__name__}: {error}", 1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _concerns_home(error: OSError) -> bool:
    """Whether a file or directory of MINI_VISA_HOME, or one above it, could not be used."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    path, home = Path(error.filename), settings().home
    return path.is_relative_to(home) or home.is_relative_to(path)


def _setting_errors(invalid: ValidationError) -> list[str]:
    """A line for each wrong setting, without its value: it could be a password."""
    return [
        f"MINI_VISA_{'_'.join(str(part) for part in error['loc']).upper()}: {error['msg']}"
        for error in invalid.errors()
    ]


def _fail(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"mini-visa: {text}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
