"""A read model in a file of the test's own, filled from a made-up log."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from postgresql import (  # noqa: F401 - fixtures
    postgresql,
    postgresql_binaries,
    postgresql_database,
    postgresql_read_model,
    postgresql_template,
)

from mini_visa.readmodel import Database, ReadModel
from mini_visa.readmodel.apply import Applier
from mini_visa.readmodel.database import sqlite_file
from mini_visa.readmodel.testing import EventLog, apply_new
from mini_visa.readmodel.views import ALERTS_VIEW, PAYMENTS_VIEW
from mini_visa.settings import Settings

Fill = Callable[[EventLog], Awaitable[None]]


DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(params=DATABASES)
def settings(tmp_path: Path, request: pytest.FixtureRequest, sqlite_template: Path) -> Settings:
    """Each test runs on each database. It has its tables, and nothing in them."""
    if request.param == "postgresql":
        return Settings(home=tmp_path, database_url=request.getfixturevalue("postgresql_read_model"))
    shutil.copy(sqlite_template, tmp_path)
    return Settings(home=tmp_path)


@pytest.fixture(params=DATABASES)
def empty(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """The same without tables."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgresql_database")
    return Settings(home=tmp_path, database_url=url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(home=tmp_path_factory.mktemp("template"))

    async def migrate() -> None:
        database = Database.of(settings, write=True)
        await database.migrate()
        await database.close()

    asyncio.run(migrate())
    return sqlite_file(settings)


@pytest.fixture
async def read_model(settings: Settings) -> AsyncIterator[ReadModel]:
    async with await ReadModel.open(settings) as opened:
        yield opened


@pytest.fixture
async def applier(settings: Settings, read_model: ReadModel) -> AsyncIterator[Applier]:
    database = Database.of(settings, write=True)
    yield Applier(database)
    await database.close()


@pytest.fixture
def fill(applier: Applier) -> Fill:
    """Applies what is new in a log."""

    async def apply(log: EventLog) -> None:
        for view, partitions in ((PAYMENTS_VIEW, log.records), (ALERTS_VIEW, log.alerts)):
            for partition, records in partitions.items():
                await apply_new(applier, view, partition, records)

    return apply
