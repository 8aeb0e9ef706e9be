"""`topics`, `lag`: what is in the cluster."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
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

commands = typer.Typer(no_args_is_help=True, help="The topics, with their configuration.")


@commands.command("apply")
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


@commands.command("export")
def topics_export(
    folder: Annotated[Path, typer.Argument(help="An archive: a new one, or one to add to.")],
    cut_wait: Annotated[float, typer.Option(min=0.0, help="Seconds to look for a whole moment.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Copy the log into files, for `topics import` after the cluster is lost. Again: adds what is new.

    Exit code 1 when no moment was found at which no transaction was half done: stop the workers for one."""
    from mini_visa.archive import export_topics

    with steps_bar(as_json) as show:
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


@commands.command("import")
def topics_import(
    folder: Annotated[Path, typer.Argument(help="An archive that `topics export` made.")],
    as_json: Json = False,
) -> None:
    """Make an archive's topics in a new cluster, every record at the offset that it had, and read it all back
    to compare. Then start the services: they restore their tables and go on."""
    from mini_visa.archive import import_topics

    with steps_bar(as_json) as show:
        done = asyncio.run(import_topics(settings(), folder, show=show))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        out().print(
            f"{done.records:,} records of {done.topics} topics as of {done.cut}, {done.transactions:,} "
            f"transactions, {done.groups} groups, in {done.seconds:.1f} s. Compared: all equal."
        )


@commands.command("list")
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
