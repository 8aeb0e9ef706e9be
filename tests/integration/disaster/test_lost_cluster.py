"""A cluster is lost with all its data; another is made from the archive and the backup of the read model, and
everything goes on: every account, hold, decision and offset is what it was."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from whole_system import Up, environment, make_home, mini_visa

from mini_visa.archive import ArchiveUnusable, export_topics, import_topics
from mini_visa.broker import EmbeddedBroker
from mini_visa.demo.cards import card_numbers
from mini_visa.kafka import TopicPlan, admin, apply_topics, committed_records
from mini_visa.settings import Settings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

_NUMBERS = card_numbers(random.Random(5))
CARDS = [next(_NUMBERS) for _ in range(16)]
"""So many that no card is asked too often in a minute."""


def run(home: Path, *arguments: str, code: int | None = 0) -> Any:
    """What the command prints as JSON. `code` of None: any exit code."""
    done = subprocess.run(
        mini_visa(*arguments, "--json"), env=environment(home), capture_output=True, text=True, timeout=300
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def events(home: Path) -> list[Any]:
    done = subprocess.run(
        mini_visa("events", "tail", "--from-beginning", "--no-follow", "--json"),
        env=environment(home), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(found, key=lambda event: (event["partition"], event["offset"]))


async def open_accounts(url: str) -> None:
    async with ClientSession(url) as session:
        for number, pan in enumerate(CARDS):
            body = {"request_id": f"open-{number}", "pan": pan, "limit": "1000.00"}
            async with session.post("/accounts", json=body) as answer:
                assert answer.status == 200, await answer.text()


async def pay(url: str, name: str, count: int, *, capture: bool = False) -> list[dict[str, Any]]:
    """`count` authorizations, some captured; the answers."""
    answers = []
    async with ClientSession(url) as session:
        for number in range(count):
            body = {
                "request_id": f"{name}-{number}", "pan": CARDS[number % len(CARDS)],
                "amount": "3.00", "merchant_id": "m1", "capture": capture and number % 2 == 0,
            }  # fmt: skip
            async with session.post("/payments/authorize", json=body) as answer:
                assert answer.status == 200, await answer.text()
                answers.append(await answer.json())
    assert all(payment["response_code"] == "00" for payment in answers)
    return answers


async def balances(url: str, payments: list[dict[str, Any]]) -> dict[str, Any]:
    accounts = sorted({payment["card"]["token"] for payment in payments})
    async with ClientSession(url) as session:
        found = {}
        for account in accounts:
            async with session.get(f"/accounts/{account}") as answer:
                found[account] = await answer.json()
        return found


def test_a_lost_cluster_is_rebuilt_and_everything_goes_on_where_it_was(tmp_path, jars_cache):
    home, archive = make_home(tmp_path, jars_cache), tmp_path / "archive"
    system = Up(home, MINI_VISA_GATEWAY_DEADLINE_S="30")
    try:
        system.until("Ready")
        url = system.state().gateway_url
        asyncio.run(open_accounts(url))
        first = asyncio.run(pay(url, "first", 40, capture=True))
        run(home, "topics", "export", str(archive), "--cut-wait", "0", code=None)  # a cut by chance, or none
        _copy_database(home / "readmodel.sqlite", tmp_path / "backup.sqlite")
        second = asyncio.run(pay(url, "second", 40))
        time.sleep(2)  # captures clear, the projection follows: then little happens but ticks
        exported = run(home, "topics", "export", str(archive), "--cut-wait", "60")
        assert exported["new_cut"] and exported["records"] > 0
        before, known = events(home), asyncio.run(balances(url, first + second))
        asyncio.run(pay(url, "lost", 5))  # after the last cut: these are gone for good
    finally:
        system.end()

    shutil.rmtree(home / "broker" / "data")
    (home / "broker" / "broker.json").unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.sqlite", home / "readmodel.sqlite")
    for left in ("readmodel.sqlite-wal", "readmodel.sqlite-shm"):
        (home / left).unlink(missing_ok=True)

    began = time.monotonic()
    run(home, "broker", "start")
    try:
        imported = run(home, "topics", "import", str(archive))
        assert imported["cut"] == exported["cut"]
    finally:
        run(home, "broker", "stop")
    system = Up(home, MINI_VISA_GATEWAY_DEADLINE_S="30")
    try:
        system.until("Ready")
        took = time.monotonic() - began
        print(
            f"rebuilt in {took:.1f} s, {imported['seconds']:.1f} s of it the import of {imported['records']} "
            f"records in {imported['transactions']} transactions"
        )
        url = system.state().gateway_url
        ends = json.loads((archive / "manifest.json").read_text())["cuts"][-1]["ends"]["payment.events"]
        kept = [event for event in before if event["offset"] < ends[event["partition"]]]
        assert [event for event in events(home) if event["offset"] < ends[event["partition"]]] == kept
        assert {event["event"].get("request_id") for event in kept} >= {
            f"{name}-{n}" for name in ("first", "second") for n in range(40)
        }
        deadline = time.monotonic() + 60  # the projection goes on from the backup
        while not _same(asyncio.run(balances(url, first + second)), known):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        again = asyncio.run(pay(url, "second", 40))
        assert [payment["payment_id"] for payment in again] == [payment["payment_id"] for payment in second]
        new = asyncio.run(pay(url, "new", 20))
        ids = {payment["payment_id"] for payment in first + second}
        assert len({payment["payment_id"] for payment in new} - ids) == 20, "no id is given twice"
        print(f"every comparison equal {time.monotonic() - began:.1f} s after the new broker's start")
        assert run(home, "replay", new[0]["card"]["token"])["differences"] == []
        checked = run(home, "readmodel", "rebuild", "--check")
        assert checked["compared"] and checked["different"] == []
        assert not [check for check in run(home, "doctor") if check["verdict"] == "FAIL"]
        audited = run(home, "audit", "--running")
        assert not [check["name"] for check in audited["checks"] if check["wrong"]]
    finally:
        system.end()


def _copy_database(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as live, sqlite3.connect(target) as copy:
        live.backup(copy)


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    fields = ("limit", "held", "posted", "available", "status")
    return all(found[account].get(name) == wanted[account][name] for account in wanted for name in fields)


# -- the archive alone -----------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, jars_cache: Path):
    broker = EmbeddedBroker(tmp_path / "elsewhere", libs_cache=jars_cache)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


async def test_offsets_survive_markers_aborts_and_a_lost_beginning(
    fresh_broker, elsewhere, settings_for, tmp_path
):
    settings: Settings = settings_for(fresh_broker.address)
    await apply_topics(settings, [TopicPlan("t", 2, 1, {"retention.ms": "-1"})])
    writer = AIOKafkaProducer(bootstrap_servers=fresh_broker.address, transactional_id="writer")
    await writer.start()
    for number in range(60):
        await writer.begin_transaction()
        for place in range(1 + number % 3):
            value = f"{number}/{place}".encode()
            await writer.send_and_wait("t", value, b"k", number % 2, 1_700_000_000_000, [("h", b"x")])
        await (writer.abort_transaction() if number % 7 == 0 else writer.commit_transaction())
    await writer.stop()
    async with admin(settings) as client:
        await client.delete_records({TopicPartition("t", 1): RecordsToDelete(before_offset=9)})
    exported = await export_topics(settings, tmp_path / "archive")
    assert exported.new_cut
    assert (await export_topics(settings, tmp_path / "archive")).records == 0, "there was nothing new"

    new = settings_for(elsewhere.address)
    restored = await import_topics(new, tmp_path / "archive")
    assert restored.records == exported.records

    async def contents(of: Settings) -> list[tuple[Any, ...]]:
        found = [
            (r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
            async for r in committed_records(of, ["t"], {})
        ]
        return sorted(found)

    assert await contents(new) == await contents(settings)
    with pytest.raises(ArchiveUnusable, match="has records in t"):
        await import_topics(new, tmp_path / "archive")
    with pytest.raises(ArchiveUnusable, match="MINI_VISA_ENVIRONMENT"):
        await import_topics(settings_for(elsewhere.address, environment="other"), tmp_path / "archive")
    with pytest.raises(ArchiveUnusable, match="export into another folder"):
        await export_topics(new, tmp_path / "archive")


async def test_there_is_no_cut_while_a_transaction_is_open(fresh_broker, settings_for, tmp_path, environment):
    settings: Settings = settings_for(fresh_broker.address)
    changelog = f"{environment}.service.work.changelog"
    await apply_topics(settings, [TopicPlan("t", 1, 1, {}), TopicPlan(changelog, 1, 1, {})])
    writer = AIOKafkaProducer(bootstrap_servers=fresh_broker.address, transactional_id="writer")
    await writer.start()
    for topic in ("t", changelog):
        await writer.begin_transaction()
        await writer.send_and_wait(topic, b"half", b"k")
        exported = await export_topics(settings, tmp_path / topic, cut_wait_s=0.3)
        assert not exported.new_cut and exported.cut == ""
        with pytest.raises(ArchiveUnusable, match="has no cut"):
            await import_topics(settings, tmp_path / topic)
        await writer.commit_transaction()
    assert (await export_topics(settings, tmp_path / "t")).new_cut
    await writer.stop()


async def test_a_damaged_archive_is_refused_before_it_is_believed(fresh_broker, settings_for, tmp_path):
    settings: Settings = settings_for(fresh_broker.address)
    await apply_topics(settings, [TopicPlan("t", 1, 1, {})])
    async with AIOKafkaProducer(bootstrap_servers=fresh_broker.address) as writer:
        for _ in range(100):
            await writer.send_and_wait("t", b"v" * 100, b"k")
    await export_topics(settings, tmp_path / "archive")
    (piece,) = (tmp_path / "archive").rglob("*.gz")
    whole = piece.read_bytes()
    async with admin(settings) as client:
        await client.delete_topics(["t"])
    for place in range(
        len(whole) // 8, len(whole), len(whole) // 8
    ):  # the checksum sees it, or the codec before it
        data = bytearray(whole)
        data[place] ^= 0xFF
        piece.write_bytes(bytes(data))
        with pytest.raises(ArchiveUnusable, match="is damaged"):
            await import_topics(settings, tmp_path / "archive")
