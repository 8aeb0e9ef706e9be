"""deploy/postgresql: a base backup and archived WAL bring a lost PostgreSQL back to a moment, and the
projection goes on from there, because its positions came back with the rows."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from postgresql import Server

from mini_visa.kafka import apply_topics, dead_letters_plan
from mini_visa.readmodel import Database
from mini_visa.readmodel.rebuild import rebuild
from mini_visa.readmodel.testing import random_log
from mini_visa.settings import Settings

from .conftest import PARTITIONS, World, digest_of

pytestmark = pytest.mark.broker

SCRIPTS = Path(__file__).parents[3] / "deploy" / "postgresql"


class Archived:
    """A PostgreSQL that archives its WAL as the project's scripts do, and whoever operates it."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mini-visa-backup-"))
        self.folder.chmod(0o755)
        # The scripts run as the database's user, who may be unable to read a checkout.
        self.scripts = shutil.copytree(SCRIPTS, self.folder / "scripts")
        (self.folder / "server").mkdir()
        self.server = Server(self.folder / "server", binaries)
        self.backups = self.folder / "backups"
        self.backups.mkdir()
        if user := self.server._user:
            os.chown(self.backups, user["user"], user["group"])
        self.server.create()
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                "archive_mode = on\n"
                f'archive_command = \'BACKUP_DIR={self.backups} {self.scripts}/archive-wal "%p" "%f"\'\n'
            )

    @property
    def data(self) -> Path:
        return self.server.folder / "data"

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.scripts / script, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={
                "PATH": f"{self.server.binaries}:{os.environ['PATH']}",
                "BACKUP_DIR": str(self.backups),
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.server.port),
                "PGUSER": "postgres",
                **environment,
            },
            **self.server._user,
        )

    def must(self, script: str, *arguments: str, **environment: str) -> str:
        done = self.run(script, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def ask(self, query: str) -> Any:
        connection = await asyncpg.connect(self.server.url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    async def archive(self) -> None:
        """What was written so far is in the archive when this returns."""
        name = await self.ask("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + 30
        while not (self.backups / "wal" / name).exists():
            assert time.monotonic() < deadline, f"{name} was not archived"
            await asyncio.sleep(0.05)


@pytest.fixture
def archived(postgresql_binaries: Path) -> Iterator[Archived]:
    made = Archived(postgresql_binaries)
    try:
        made.server.start()
        yield made
    finally:
        made.server.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
async def world(
    broker: str, settings_for: Callable[..., Settings], environment: str, archived: Archived
) -> AsyncIterator[World]:
    settings = settings_for(broker, database_url=archived.server.url, partitions=PARTITIONS)
    made = World(settings, prefix=f"{environment}.")
    await made.create(made.events, made.alerts)
    await apply_topics(settings, [dead_letters_plan(settings, "projection")])
    yield made
    await made.delete(made.events, made.alerts)


def pay(log, payments: int) -> None:
    accounts = list(log.accounts)
    for number in range(payments):
        log.capture(log.authorize(accounts[number % len(accounts)], 100))


async def test_a_lost_database_comes_back_at_a_moment_and_the_projection_goes_on(world, archived):
    log = random_log(200, accounts=10)
    database = Database.of(world.settings, write=True)
    await database.migrate()
    await world.send(log)
    await world.catch_up(database)
    backup = archived.must("base-backup").strip()
    assert (Path(backup) / "backup_manifest").exists()

    pay(log, 50)
    await world.send(log)
    await world.catch_up(database)
    await asyncio.sleep(1.1)  # base backups are named by the second
    moment, wanted = await archived.ask("SELECT clock_timestamp()::text"), await digest_of(database)
    await asyncio.sleep(0.1)

    pay(log, 50)
    await world.send(log)
    await world.catch_up(database)
    lost = await digest_of(database)
    await archived.archive()
    await database.close()

    archived.server.stop()
    shutil.rmtree(archived.data)
    archived.must("restore", str(archived.data), moment)
    began = time.monotonic()
    await asyncio.to_thread(archived.server.start)
    async with asyncio.timeout(60):
        while await archived.ask("SELECT pg_is_in_recovery()"):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)
    print(f"recovered in {time.monotonic() - began:.1f} s")

    database = Database.of(world.settings, write=True)
    assert await digest_of(database) == wanted != lost
    projector = await world.catch_up(database)
    assert 0 < projector.records < sum(world.sent.values()), "it went on, it did not begin anew"
    assert await digest_of(database) == lost == await world.folded()
    done = await rebuild(world.settings, views=world.views, switch=False)
    assert (done.compared, done.different) == (True, [])
    await database.close()


async def test_old_backups_go_and_with_them_only_the_wal_that_nothing_else_needs(archived):
    made = []
    for _ in range(3):
        made.append(Path(archived.must("base-backup", BACKUPS_KEPT="2").strip()))
        await archived.archive()
        await asyncio.sleep(1.1)
    assert sorted(path.name for path in (archived.backups / "base").iterdir()) == sorted(
        path.name for path in made[1:]
    )
    first = (made[1] / "backup_label").read_text().split("(file ")[1].split(")")[0]
    kept = sorted(path.name for path in (archived.backups / "wal").iterdir() if len(path.name) == 24)
    assert kept and kept[0] >= first
    archived.server.stop()
    shutil.rmtree(archived.data)
    archived.must("restore", str(archived.data))
    await asyncio.to_thread(archived.server.start)


async def test_a_segment_is_kept_once_and_never_replaced_by_another(archived):
    segment, other = archived.backups / "a", archived.backups / "b"
    segment.write_text("one")
    other.write_text("two")
    archived.must("archive-wal", str(segment), "000000010000000000000099")
    archived.must("archive-wal", str(segment), "000000010000000000000099")
    refused = archived.run("archive-wal", str(other), "000000010000000000000099")
    assert refused.returncode == 1 and "another database" in refused.stderr
    assert (archived.backups / "wal" / "000000010000000000000099").read_text() == "one"


async def test_a_restore_overwrites_nothing_and_needs_a_backup_that_is_old_enough(archived):
    archived.must("base-backup")
    refused = archived.run("restore", str(archived.data))
    assert refused.returncode == 1 and "is not empty" in refused.stderr
    refused = archived.run("restore", str(archived.folder / "new"), "2020-01-01 00:00:00+00")
    assert refused.returncode == 1 and "no base backup" in refused.stderr


async def test_a_damaged_backup_is_not_restored(archived):
    backup = Path(archived.must("base-backup").strip())
    with (backup / "PG_VERSION").open("a") as damaged:
        damaged.write("x")
    refused = archived.run("restore", str(archived.backups / "new"))
    assert refused.returncode == 1 and "PG_VERSION" in refused.stderr
