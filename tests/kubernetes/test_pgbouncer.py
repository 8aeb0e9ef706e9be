"""The overlays' PgBouncer for real: its configuration, its users and the server's rules about who may
connect, over TLS, before a PostgreSQL with the read model's tables; the gateway's queries go through it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from checkers import cache
from manifests import DEPLOY, manifests_of, only
from postgresql import Server
from test_database import PASSWORDS, bring_roles

from mini_visa.broker.embedded import free_port
from mini_visa.readmodel import Database, DatabaseUnusable, ReadModel, SchemaOlder, views
from mini_visa.readmodel.apply import Applier
from mini_visa.readmodel.testing import EventLog, apply_new, random_log
from mini_visa.settings import Settings

pytestmark = pytest.mark.timeout(300)

REPLICATED = DEPLOY / "components" / "postgresql-replicated"
NEEDS = (1, 21)
"""Prepared statements that follow a client from one connection to the next."""
GATEWAYS = 12
ROUNDS = 15
START_S = 20.0


def program() -> Path:
    """MINI_VISA_PGBOUNCER, what scripts/pgbouncer built, or the machine's. Skips where none is new enough."""
    built = sorted(cache().glob("pgbouncer-*/pgbouncer"))
    places = (os.environ.get("MINI_VISA_PGBOUNCER"), *built, shutil.which("pgbouncer"), "/usr/sbin/pgbouncer")
    for place in places:
        if place and Path(place).exists() and version(Path(place)) >= NEEDS:
            return Path(place)
    pytest.skip(f"no PgBouncer {NEEDS[0]}.{NEEDS[1]} or newer here; scripts/pgbouncer builds one")


def version(program: Path) -> tuple[int, int]:
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    found = re.match(r"PgBouncer (\d+)\.(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Open to the user that the servers run as: pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="mini-visa-pgbouncer-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def tls(folder: Path) -> Path:
    """tls.crt, tls.key and ca.crt for localhost, as cert-manager makes them."""
    made = folder / "tls"
    made.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", made / "tls.key", "-out", made / "tls.crt"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    shutil.copy(made / "tls.crt", made / "ca.crt")
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tls: Path, postgresql_binaries: Path) -> Iterator[Server]:
    """A server that the overlay's pg_hba.conf guards: TLS and a password for everybody but this test."""
    home = folder / "server"
    home.mkdir()
    made = Server(home, postgresql_binaries)
    for file in tls.iterdir():
        own = home / file.name
        shutil.copy(file, own)
        own.chmod(0o600)
        if made._user:
            os.chown(own, made._user["user"], made._user["group"])
    made.create()
    rules = (REPLICATED / "pg_hba.conf").read_text()
    (home / "data" / "pg_hba.conf").write_text(f"host all postgres 127.0.0.1/32 trust\n{rules}")
    with (home / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write(f"ssl=on\nssl_cert_file='{home}/tls.crt'\nssl_key_file='{home}/tls.key'\n")
    made.start()
    try:
        where = ["-h", "127.0.0.1", "-p", str(made.port), "-U", "postgres"]
        subprocess.run([made.binaries / "createdb", *where, "mini_visa"], check=True, timeout=60)
        bring_roles(made, PASSWORDS)
        yield made
    finally:
        made.stop()


class PgBouncer:
    """The overlay's, with other addresses and paths."""

    def __init__(self, folder: Path, tls: Path, server: Server) -> None:
        self.program = folder / "pgbouncer"  # a copy that the servers' user can reach
        shutil.copy(program(), self.program)
        self.port = free_port()
        self.log = folder / "pgbouncer.log"
        users = folder / "userlist.txt"
        secret = only(manifests_of("production"), "ExternalSecret", "pgbouncer-users")
        template = secret["spec"]["target"]["template"]["data"]["userlist.txt"]
        users.write_text(template.replace("{{ .reader }}", PASSWORDS["READER_PASSWORD"]))
        own = folder / "for-pgbouncer"
        own.mkdir(exist_ok=True)
        text = (REPLICATED / "pgbouncer.ini").read_text()
        for there, here in {
            "host=postgresql-replica port=5432": f"host=localhost port={server.port}",
            "listen_addr = 0.0.0.0": "listen_addr = 127.0.0.1",
            "listen_port = 6432": f"listen_port = {self.port}",
            "/run/secrets/pgbouncer/userlist.txt": str(users),
            "/run/secrets/tls": str(own),
        }.items():
            assert there in text
            text = text.replace(there, here)
        self.configuration = folder / "pgbouncer.ini"
        self.configuration.write_text(text)
        for file in (*tls.iterdir(), users):
            copy = own / file.name if file.parent == tls else file
            if copy != file:
                shutil.copy(file, copy)
            if server._user:
                os.chown(copy, server._user["user"], server._user["group"])
        self._user = server._user
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, self.configuration], stdout=log, stderr=log, **self._user
            )
        deadline = time.monotonic() + START_S
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture(scope="module")
def pgbouncer(folder: Path, tls: Path, server: Server) -> Iterator[PgBouncer]:
    made = PgBouncer(folder, tls, server)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def reader_url(
    port: int, tls: Path, password: str = PASSWORDS["READER_PASSWORD"], ssl: str = "verify-full"
) -> str:
    """The gateway's, of the overlay's secret, with another address."""
    secret = only(manifests_of("production"), "ExternalSecret", "database")
    url = str(secret["spec"]["target"]["template"]["data"]["reader-url"])
    assert "@pgbouncer:6432/" in url and url.endswith("ssl=verify-full")
    url = url.replace("{{ .reader }}", password).replace("pgbouncer:6432", f"localhost:{port}")
    return url.replace("ssl=verify-full", f"ssl={ssl}")


@pytest.fixture(autouse=True)
def _trusted(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(tls / "ca.crt"))  # as the overlay sets it


async def connections(server: Server) -> int:
    """Of the gateways' role, that the server sees."""
    connection = await asyncpg.connect(server.url, ssl="disable")
    try:
        return int(
            await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'")
        )
    finally:
        await connection.close()


async def write(server: Server, tls: Path, log: EventLog) -> None:
    """As the projection does: directly, as its own role, over TLS."""
    url = f"postgresql://mini_visa:{PASSWORDS['WRITER_PASSWORD']}@localhost:{server.port}/mini_visa?ssl=verify-full"
    database = Database.of(Settings(database_url=url), write=True)
    try:
        await database.migrate()
        for partition, records in log.records.items():
            await apply_new(Applier(database), views.PAYMENTS_VIEW, partition, records)
    finally:
        await database.close()


async def test_a_gateway_waits_for_the_tables_that_the_projection_makes(pgbouncer: PgBouncer, tls: Path):
    """It may not make them itself, although the setting to migrate is on for all."""
    with pytest.raises(
        (SchemaOlder, DatabaseUnusable), match=r"read-only|no read model yet|permission denied"
    ):
        await ReadModel.open(Settings(database_url=reader_url(pgbouncer.port, tls)))


async def test_many_gateways_query_at_once_over_few_connections(
    pgbouncer: PgBouncer, server: Server, tls: Path
):
    log = random_log(300, accounts=30)
    await write(server, tls, log)
    settings = Settings(database_url=reader_url(pgbouncer.port, tls))
    gateways = [await ReadModel.open(settings) for _ in range(GATEWAYS)]
    seen = 0

    async def use(gateway: ReadModel, number: int) -> None:
        accounts, payments = list(log.accounts.items()), list(log.payments.items())
        for turn in range(ROUNDS):
            account_id, account = accounts[(number * 7 + turn) % len(accounts)]
            payment_id, payment = payments[(number * 31 + turn) % len(payments)]
            found = await asyncio.gather(
                gateway.account(account_id), gateway.payment(payment_id),
                gateway.entries(account_id), gateway.trial_balance(),
            )  # fmt: skip
            assert found[0] == account and found[1] is not None and found[1].payment == payment

    async def watch() -> None:
        nonlocal seen
        while True:
            seen = max(seen, await connections(server))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        await asyncio.gather(*(use(gateway, number) for number, gateway in enumerate(gateways)))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for gateway in gateways:
            await gateway.close()
    size = int(re.search(r"default_pool_size = (\d+)", pgbouncer.configuration.read_text())[1])  # type: ignore[index]
    assert 1 < seen <= size, f"{GATEWAYS} gateways with 4 queries at a time had {seen} connections"


async def test_what_goes_through_it_may_only_read(pgbouncer: PgBouncer, tls: Path):
    connection = await asyncpg.connect(reader_url(pgbouncer.port, tls).replace("ssl=", "sslmode="))
    try:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("DELETE FROM payments")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("BEGIN READ WRITE; DELETE FROM payments")
    finally:
        await connection.close()


async def test_who_has_no_password_or_no_tls_is_not_let_in(pgbouncer: PgBouncer, server: Server, tls: Path):
    for url, said in (
        (reader_url(pgbouncer.port, tls, password="wrong"), "password|SASL"),
        (reader_url(pgbouncer.port, tls, ssl="disable"), "SSL required|TLS"),
        (reader_url(server.port, tls, ssl="disable"), "no pg_hba.conf entry|encryption"),
        (reader_url(pgbouncer.port, tls).replace("//reader:", "//mini_visa:"), "password|SASL|user"),
    ):
        with pytest.raises((asyncpg.PostgresError, OSError), match=said):
            await asyncpg.connect(url.replace("ssl=", "sslmode="), timeout=10)


async def test_queries_go_on_when_the_server_was_away(pgbouncer: PgBouncer, server: Server, tls: Path):
    log = random_log(20, accounts=2)
    gateway = await ReadModel.open(Settings(database_url=reader_url(pgbouncer.port, tls)))
    account = next(iter(log.accounts))
    try:
        assert await gateway.account(account) is not None
        await asyncio.to_thread(server.stop, signal.SIGQUIT)
        await asyncio.to_thread(server.start)
        deadline = time.monotonic() + START_S
        while True:
            try:
                assert await gateway.account(account) is not None
                break
            except (DatabaseUnusable, OSError) as error:
                assert time.monotonic() < deadline, error
            await asyncio.sleep(0.1)
    finally:
        await gateway.close()
