"""A real PostgreSQL for tests: the machine's own package, on a free port, in a folder of its own.

MINI_VISA_TEST_POSTGRESQL=postgresql://USER:PASSWORD@HOST:PORT/DATABASE uses one that runs already.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from mini_visa.readmodel.database import Database, database_url
from mini_visa.settings import Settings

START_S = 60.0
PR_SET_PDEATHSIG = 1


class Server:
    """One PostgreSQL server. It refuses to run as root, so there it runs as the package's own user."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.binaries = binaries
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = _user("postgres") or _user("nobody")
            assert owner is not None, "no user to run PostgreSQL as"
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        subprocess.run(
            [self.binaries / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
            **self._user,
        )

    def start(self) -> None:
        """Ends with this process, however that ends."""
        libc = ctypes.CDLL(None)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",  # a killed server loses nothing by it, a power cut is not tested
            "shared_buffers": "32MB",
            "max_connections": 60,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.folder / "data"]
                + [f"-c{name}={value}" for name, value in options.items()],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT),
                **self._user,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                asyncio.run(_ping(self.url))
                return
            except (OSError, asyncpg.PostgresError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once, orderly. SIGQUIT: as in a crash; the next start recovers."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=START_S)
            self.process = None


@pytest.fixture(scope="session")
def postgresql_binaries() -> Path:
    """Where postgres and initdb are. Where there is none the test is skipped; in CI that is an error."""
    folders = [Path(found).resolve().parent for found in (shutil.which("initdb"),) if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    missing = "no PostgreSQL on this machine: apt-get install postgresql (the tests start their own server)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def postgresql(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a PostgreSQL that all tests of the session share. Use `postgresql_database`."""
    if given := os.environ.get("MINI_VISA_TEST_POSTGRESQL"):
        yield given
        return
    server = _server(request.getfixturevalue("postgresql_binaries"))
    try:
        yield server.url
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def fresh_postgresql(postgresql_binaries: Path) -> Iterator[Server]:
    """A server of this test alone, running: for tests that stop it."""
    server = _server(postgresql_binaries)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def postgresql_database(postgresql: str) -> Iterator[str]:
    """URL of an empty database of this test alone."""
    with _database(postgresql) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> Iterator[str]:
    """Name of a database with the read model's tables, to make others from: faster than migrating."""

    async def migrate(url: str) -> None:
        database = Database(database_url(Settings(database_url=url)), write=True)
        await database.migrate()
        await database.close()

    with _database(postgresql) as url:
        asyncio.run(migrate(url))
        yield str(make_url(url).database)


@pytest.fixture
def postgresql_read_model(postgresql: str, postgresql_template: str) -> Iterator[str]:
    """URL of a database of this test alone, with the read model's tables."""
    with _database(postgresql, f"TEMPLATE {postgresql_template}") as url:
        yield url


@contextlib.contextmanager
def _database(server: str, template: str = "") -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name} {template}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with contextlib.suppress(OSError):
            asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


def _server(binaries: Path) -> Server:
    server = Server(Path(tempfile.mkdtemp(prefix="mini-visa-postgresql-")), binaries)
    try:
        server.create()
        server.start()
    except BaseException:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
        raise
    return server


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _ping(url: str) -> None:
    await _execute(url, "SELECT 1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
