"""What the manifests do to PostgreSQL, done to a real one: roles, rights, a replica made from nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from manifests import DEPLOY, containers_of, manifests_of, only
from postgresql import Server

from mini_visa.readmodel.database import Database
from mini_visa.settings import Settings

pytestmark = pytest.mark.timeout(900)

ROLES = DEPLOY / "components" / "postgresql-replicated" / "roles.sql"
PASSWORDS = {"WRITER_PASSWORD": "w-1", "READER_PASSWORD": "r-1", "REPLICATOR_PASSWORD": "p-1"}
REPLICATES_S = 30.0


def url(server: Server, role: str) -> str:
    return f"postgresql://{role}@127.0.0.1:{server.port}/mini_visa"


def bring_roles(server: Server, passwords: dict[str, str]) -> None:
    """As the CronJob postgresql-roles does."""
    where = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": "mini_visa",
    }
    done = subprocess.run(
        [server.binaries / "psql", "--no-psqlrc", "--quiet", "--no-password", f"--file={ROLES}"],
        env=os.environ | passwords | where,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def ask(server: Server, role: str, statement: str, before: str = "SELECT 1") -> object:
    """The statement's first value, in a session that ran `before`."""

    async def run() -> object:
        connection = await asyncpg.connect(url(server, role))
        try:
            await connection.execute(before)
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.fixture
def primary(fresh_postgresql: Server) -> Iterator[Server]:
    """With the database, the roles, and the read model's tables, made by the role that the projection has."""

    async def migrate() -> None:
        database = Database.of(Settings(database_url=url(fresh_postgresql, "mini_visa")), write=True)
        await database.migrate()
        await database.close()

    where = ["-h", "127.0.0.1", "-p", str(fresh_postgresql.port), "-U", "postgres"]
    subprocess.run([fresh_postgresql.binaries / "createdb", *where, "mini_visa"], check=True, timeout=60)
    bring_roles(fresh_postgresql, PASSWORDS)
    asyncio.run(migrate())
    yield fresh_postgresql


def test_roles_are_made_once_and_again_with_another_password(primary: Server):
    secret = "SELECT rolpassword FROM pg_authid WHERE rolname = 'reader'"
    before = ask(primary, "postgres", secret)
    assert str(before).startswith("SCRAM-SHA-256$")
    bring_roles(primary, PASSWORDS | {"READER_PASSWORD": "r-2"})
    assert ask(primary, "postgres", secret) != before
    assert "r-2" not in (primary.folder / "log").read_text()


def test_the_gateways_role_reads_and_does_nothing_else(primary: Server):
    assert ask(primary, "reader", "SELECT count(*) FROM payments") == 0
    writable = "SET default_transaction_read_only = off"
    for statement in (
        "DELETE FROM payments",
        "CREATE TABLE mine (x int)",
        "CREATE TABLE public.mine (x int)",
    ):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            ask(primary, "reader", statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            ask(primary, "reader", statement, before=writable)


def test_what_a_rebuild_makes_can_be_read_too(primary: Server):
    ask(primary, "mini_visa", "CREATE SCHEMA mini_visa_next")
    ask(primary, "mini_visa", "CREATE TABLE mini_visa_next.payments (x int)")
    assert ask(primary, "reader", "SELECT count(*) FROM mini_visa_next.payments") == 0


def test_no_role_of_the_system_is_a_superuser(primary: Server):
    assert (
        ask(primary, "postgres", "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper") == "postgres"
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(primary, "replicator", "SELECT 1")


def test_a_replica_on_an_empty_disk_copies_the_primary_and_follows_it(primary: Server, tmp_path: Path):
    replica = only(manifests_of("production"), "StatefulSet", "postgresql-replica")
    copy = next(one for one in containers_of(replica) if one["name"] == "copy")
    data = primary.folder / "replica"
    environment = os.environ | {
        "PGDATA": str(data), "PGHOST": "127.0.0.1", "PGPORT": str(primary.port), "PGUSER": "replicator",
        "PATH": f"{primary.binaries}:{os.environ['PATH']}",
    }  # fmt: skip
    for _ in range(2):  # the second time there is nothing to do
        done = subprocess.run(
            copy["command"], env=environment, cwd=primary.folder, capture_output=True, text=True, timeout=120,
            check=False, **primary._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    follower = Server(tmp_path, primary.binaries)
    follower.folder = primary.folder / "follower"
    follower.folder.mkdir()
    (follower.folder / "data").symlink_to(data)
    conninfo = f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=replicator'\n"
    with (data / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(conninfo)
    follower.start()
    try:
        assert ask(follower, "reader", "SELECT pg_is_in_recovery()") is True
        ask(primary, "mini_visa", "CREATE TABLE mini_visa.followed AS SELECT 7 AS x")
        deadline = time.monotonic() + REPLICATES_S
        while ask(follower, "reader", "SELECT to_regclass('mini_visa.followed')::text") is None:
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.05)
        assert ask(follower, "reader", "SELECT x FROM mini_visa.followed") == 7
    finally:
        follower.stop()
