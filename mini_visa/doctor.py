"""Examines this machine and the cluster, and says what to do about what is wrong."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mini_visa import dead_letters, kafka, topics, transactions
from mini_visa.broker import BrokerError, jars
from mini_visa.broker.wire import is_free
from mini_visa.settings import Settings
from mini_visa.supervisor.lock import running
from mini_visa.supervisor.ports import holder_of

PYTHON_MIN = (3, 11)
MEMORY_BYTES_MIN = 2 << 30
DISK_BYTES_WARN = 5 << 30
DISK_BYTES_MIN = 1 << 30
LAG_WARN = 10_000
CLOCK_AHEAD_S_MAX = 60.0
PINNED = {"faust-streaming": "0.15.3"}
"""The kernel overrides private parts of these: another version is another program."""


class Verdict(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do ("" when nothing)."""

    subject: str
    verdict: Verdict
    finding: str
    remedy: str = ""


async def examine(settings: Settings, *, repair: bool = False) -> list[Check]:
    """Every check, those of the machine first. `repair`: first mend what can be mended without a choice."""
    if repair:
        with contextlib.suppress(BrokerError):  # then there is a check that says so
            await transactions.finish(settings, await transactions.hanging(settings))
    checks = list(_machine(settings))
    checks += [check async for check in _cluster(settings)]
    return checks


# -- the machine -----------------------------------------------------------------------------------


def _machine(settings: Settings) -> Iterator[Check]:
    yield _python()
    yield from _pinned()
    if settings.broker == "embedded":
        yield _java()
        yield _jars(settings)
    if settings.broker == "docker":
        yield _docker()
    yield _memory()
    yield _disk(settings)
    yield _gateway_port(settings)


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= PYTHON_MIN:
        return Check("Python", Verdict.OK, found)
    return Check("Python", Verdict.FAIL, found, "install Python 3.11 or newer, then `make setup`")


def _pinned() -> Iterator[Check]:
    for name, wanted in PINNED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        fine = found == wanted
        yield Check(
            name,
            Verdict.OK if fine else Verdict.FAIL,
            found,
            "" if fine else f"install {wanted}: `make setup`",
        )


def _java() -> Check:
    try:
        java = jars.java()
    except BrokerError as missing:
        return Check("Java", Verdict.FAIL, "missing or too old", str(missing))
    return Check("Java", Verdict.OK, f"{java.version} at {java.program}")


def _jars(settings: Settings) -> Check:
    """Maven is needed only until the jars are there."""
    if (settings.home / "broker" / f"libs-{jars.kafka_version()}").exists():
        return Check("Kafka's jars", Verdict.OK, f"{jars.kafka_version()}, fetched")
    try:
        return Check("Maven", Verdict.OK, f"{jars.maven()}; the first start fetches Kafka's jars (45 MB)")
    except BrokerError as missing:
        return Check("Maven", Verdict.FAIL, "missing", str(missing))


def _docker() -> Check:
    program = shutil.which("docker")
    if program is None:
        return Check("Docker", Verdict.FAIL, "missing", "install it, or set MINI_VISA_BROKER=embedded")
    return Check("Docker", Verdict.OK, program)


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Check("memory", Verdict.WARN, "unknown on this system")
    if total < MEMORY_BYTES_MIN:
        return Check("memory", Verdict.WARN, f"{total >> 20} MB", "everything together needs about 2 GB")
    return Check("memory", Verdict.OK, f"{total >> 20} MB, {os.cpu_count()} processors")


def _disk(settings: Settings) -> Check:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    finding = f"{free >> 20} MB free for {settings.home}"
    remedy = "free some, or set MINI_VISA_HOME to a directory elsewhere"
    if not os.access(place, os.W_OK):
        if settings.broker.startswith("kafka://") and settings.token_keys_file is not None:
            return Check("disk", Verdict.OK, f"{place} cannot be written to; a gateway keeps nothing there")
        return Check("disk", Verdict.FAIL, f"{place} cannot be written to", remedy)
    if free < DISK_BYTES_MIN:
        return Check("disk", Verdict.FAIL, finding, remedy)
    return (
        Check("disk", Verdict.OK, finding)
        if free >= DISK_BYTES_WARN
        else Check("disk", Verdict.WARN, finding, remedy)
    )


def _gateway_port(settings: Settings) -> Check:
    port = settings.gateway_port
    if port == 0 or is_free(port, settings.gateway_host):
        return Check("gateway port", Verdict.OK, f"{port} is free")
    ours = running(settings.home)
    if ours is not None and ours.gateway_url.endswith(f":{port}"):
        return Check("gateway port", Verdict.OK, f"{port}: the gateway of this home listens there")
    return Check(
        "gateway port",
        Verdict.WARN,
        f"{port} is in use by {holder_of(port) or 'another program'}",
        "stop that, or choose another: MINI_VISA_GATEWAY_PORT=8081 (0 takes any free one)",
    )


# -- the cluster -----------------------------------------------------------------------------------


async def _cluster(settings: Settings) -> AsyncIterator[Check]:
    try:
        servers = ",".join(kafka.bootstrap_servers(settings))
        found = {topic.name: topic for topic in await kafka.list_topics(settings)}
    except BrokerError as unreachable:
        yield Check("broker", Verdict.FAIL, f"{settings.broker}: not reachable", str(unreachable))
        return
    yield Check("broker", Verdict.OK, f"{settings.broker}: answers at {servers}")
    yield _topics(settings, found)
    yield await _coordinators(settings)
    yield await _transactions(settings)
    yield await _dead_letters(settings, found)
    for check in await _lag(settings):
        yield check
    if topics.PAYMENT_EVENTS.name in found:
        yield await _clock(settings)


def _topics(settings: Settings, found: dict[str, kafka.TopicStatus]) -> Check:
    wrong: list[str] = []
    for plan in kafka.plans(settings):
        topic = found.get(plan.name)
        if topic is None:
            wrong.append(f"{plan.name} is missing")
        elif topic.partitions != plan.partitions:
            wrong.append(f"{plan.name} has {topic.partitions} partitions instead of {plan.partitions}")
        else:
            wrong += [
                f"{plan.name}: {key} is {topic.config.get(key)} instead of {value}"
                for key, value in plan.config.items()
                if topic.config.get(key) != value
            ]
    if wrong:
        return Check("topics", Verdict.FAIL, "; ".join(wrong), "`mini-visa topics apply`")
    return Check("topics", Verdict.OK, f"all {len(kafka.plans(settings))} there, configured as declared")


async def _coordinators(settings: Settings) -> Check:
    """A single Kafka that is started again on a busy machine can load one of them twice, and lose it."""
    silent = await kafka.silent_coordinators(settings)
    if not silent:
        return Check("coordinators", Verdict.OK, "all groups have one")
    listed = "; ".join(f"of {kafka.OFFSETS_TOPIC}/{partition}: {why}" for partition, why in silent.items())
    return Check(
        "coordinators", Verdict.FAIL, listed, "stays it so for a minute, restart that partition's leader"
    )


async def _transactions(settings: Settings) -> Check:
    """Kafka loses a transaction's marker when a single broker is shut down at the wrong moment."""
    found = await transactions.hanging(settings)
    if not found:
        return Check("transactions", Verdict.OK, "none hangs")
    listed = "; ".join(map(str, found))
    if any(hung.decision is transactions.Decision.UNKNOWN for hung in found):
        remedy = (
            "those of which nothing is known: `kafka-transactions.sh abort` with topic, partition and start "
            "offset; the others: `mini-visa doctor --repair`"
        )
    else:
        remedy = (
            "`mini-visa doctor --repair` writes the markers that are missing; services go on by themselves"
        )
    return Check("transactions", Verdict.FAIL, listed, remedy)


async def _dead_letters(settings: Settings, found: dict[str, kafka.TopicStatus]) -> Check:
    """Those that were not sent back."""
    services = [
        service
        for service in topics.SERVICES
        if (topic := found.get(topics.dead_letters(service))) and topic.records
    ]
    letters = Counter(
        letter.service for letter in await dead_letters.letters(settings, services) if not letter.sent_back
    )
    if letters:
        listed = ", ".join(f"{topics.dead_letters(service)} {count}" for service, count in letters.items())
        return Check("dead letters", Verdict.WARN, listed, "`mini-visa dead-letters list` gives the reasons")
    return Check("dead letters", Verdict.OK, "none")


async def _lag(settings: Settings) -> list[Check]:
    behind: dict[str, int] = {}
    for position in await kafka.lag(settings):
        behind[position.group] = behind.get(position.group, 0) + position.records
    if not behind:
        return [
            Check("services", Verdict.WARN, "no consumer group: none ran yet", "start them: `mini-visa up`")
        ]
    return [
        Check("services", Verdict.OK, f"{group} is {records} records behind")
        if records < LAG_WARN
        else Check(
            "services",
            Verdict.WARN,
            f"{group} is {records:,} records behind",
            "is its worker running? see its log; add workers up to the number of partitions",
        )
        for group, records in sorted(behind.items())
    ]


async def _clock(settings: Settings) -> Check:
    """This machine's clock against the newest record's broker-checked timestamp: a producer that is
    ahead of the broker by more than a minute is refused."""
    newest = await kafka.newest_timestamp_ms(settings, topics.PAYMENT_EVENTS.name)
    ahead_s = 0.0 if newest is None else newest / 1000 - time.time()
    if ahead_s > CLOCK_AHEAD_S_MAX:
        return Check(
            "clock",
            Verdict.FAIL,
            f"the newest event is {ahead_s:.0f} s in this machine's future",
            "set this machine's clock (NTP): records it writes would be out of time",
        )
    return Check("clock", Verdict.OK, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
