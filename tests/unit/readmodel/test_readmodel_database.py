"""Opening, migrating, refusing and writing, on each database."""

from __future__ import annotations

import asyncio
import stat

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from mini_visa.errors import UserError
from mini_visa.readmodel import Database, DatabaseUnusable, ReadModel, SchemaNewer, SchemaOlder, schema
from mini_visa.readmodel.apply import Applier, Batch, PositionMoved
from mini_visa.readmodel.database import _upgrade, database_url
from mini_visa.readmodel.digest import digest
from mini_visa.readmodel.projector import checksum
from mini_visa.readmodel.testing import random_log
from mini_visa.readmodel.views import PAYMENTS_VIEW
from mini_visa.readmodel.writes import SQLITE_ROWS, Changes, Write
from mini_visa.settings import Settings


@pytest.fixture
async def database(settings: Settings):
    made = Database.of(settings, write=True)
    yield made
    await made.close()


async def test_the_migrations_make_exactly_the_schema_that_is_declared(empty):
    database = Database.of(empty, write=True)
    await database.migrate()

    def differences(connection: sa.Connection) -> list:
        tables = set(schema.metadata.tables) | {"alembic_version"}
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert set(sa.inspect(connection).get_table_names()) == tables
        return compare_metadata(context, schema.metadata)

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


def test_the_program_expects_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", "mini_visa:readmodel/migrations")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [schema.HEAD]
    assert sorted(script.revision for script in scripts.walk_revisions()) == [
        f"{number:04d}" for number in range(1, int(schema.HEAD) + 1)
    ]


async def test_the_third_step_reads_journals_again_and_finds_the_captures_that_wait(empty):
    database = Database.of(empty, write=True)
    if not database.sqlite:
        async with database.transaction() as connection:
            await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {database.schema}")
    waiting = '{"payment": {"captures": [{"n": 1, "state": "cleared"}, {"n": 2}]}}'
    cleared = '{"payment": {"captures": [{"n": 1, "state": "cleared"}]}}'
    async with database.transaction() as connection:
        await connection.run_sync(_upgrade, "0002")
        for key, event in ((1, waiting), (2, cleared)):
            await connection.exec_driver_sql(
                "INSERT INTO payment_events (place, account_id, at, type, event)"
                f" VALUES ({key}, 'tok_1', 1, 'capture_cleared/1', '{event}')"
            )
            await connection.exec_driver_sql(
                "INSERT INTO payments (payment_key, payment_id, account_id, client, merchant_id, currency,"
                " amount_e4, created_at, status, place)"
                f" VALUES ({key}, 'pay_{key}', 'tok_1', 'c', 'm', 'USD', 1, 1, 'captured', {key})"
            )
        await connection.exec_driver_sql(
            "INSERT INTO journal_entries (entry_key, journal, at, kind, entry)"
            " VALUES (1, 'payments', 1, 'k', '')"
        )
        for topic in ("ledger.journal", "payment.events"):
            await connection.exec_driver_sql(
                'INSERT INTO positions (topic, "partition", next_offset, last_offset, last_checksum,'
                f" command_position, event_time, as_of) VALUES ('{topic}', 0, 9, 8, '', -1, 1, 1)"
            )
    await database.migrate()
    async with database.transaction() as connection:

        async def rows(query: str) -> list[tuple]:
            return [tuple(row) for row in await connection.exec_driver_sql(query)]

        assert await rows("SELECT payment_key, clearing FROM payments ORDER BY 1") == [
            (1, "submitted"), (2, ""),
        ]  # fmt: skip
        assert await rows("SELECT count(*) FROM journal_entries") == [(0,)]
        assert await rows("SELECT topic FROM positions") == [("payment.events",)]
    await database.close()


async def test_migrating_again_changes_nothing_and_many_at_once_are_one(empty):
    databases = [Database.of(empty, write=True) for _ in range(4)]
    await asyncio.gather(*(database.migrate() for database in databases))
    await databases[0].migrate()
    assert await databases[0].revision() == schema.HEAD
    await databases[0].check()
    for database in databases:
        await database.close()


async def test_an_empty_database_is_refused_where_it_may_not_be_changed(empty):
    cautious = empty.model_copy(update={"database_migrate": False})
    with pytest.raises(SchemaOlder, match="no read model yet; run: mini-visa readmodel migrate"):
        await ReadModel.open(cautious)


@pytest.mark.parametrize(
    ("revision", "error", "advice"),
    [
        ("0000", SchemaOlder, "older than .* readmodel migrate"),
        ("9999", SchemaNewer, "newer than this program"),
    ],
)
async def test_another_schema_than_the_programs_is_refused(database, settings, revision, error, advice):
    await database.migrate()
    async with database.transaction() as connection:
        await connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(error, match=advice):
        await ReadModel.open(settings.model_copy(update={"database_migrate": False}))
    if error is SchemaNewer:
        with pytest.raises(error, match=advice):
            await ReadModel.open(settings)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "not a URL"),
        ("mysql://u:hunter2@h/d", "mysql is not supported"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(tmp_path, url, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        database_url(Settings(home=tmp_path, database_url=url))
    assert "hunter2" not in str(refusal.value)


async def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path):
    url = "postgresql://someone:hunter2@127.0.0.1:1/nowhere"
    with pytest.raises(DatabaseUnusable, match=r"127\.0\.0\.1:1") as refusal:
        await ReadModel.open(Settings(home=tmp_path, database_url=url))
    assert "hunter2" not in str(refusal.value)


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "readmodel.sqlite").write_bytes(b"this is not a database, but long enough to be one" * 50)
    with pytest.raises(DatabaseUnusable, match="not a database"):
        await ReadModel.open(Settings(home=tmp_path))


async def test_the_file_is_the_owners_alone(tmp_path):
    async with await ReadModel.open(Settings(home=tmp_path)):
        assert stat.S_IMODE((tmp_path / "readmodel.sqlite").stat().st_mode) == 0o600


async def test_readers_cannot_write(settings):
    async with await ReadModel.open(settings) as read_model:
        with pytest.raises(sa.exc.DBAPIError):
            async with read_model._database.engine.begin() as connection:
                await connection.exec_driver_sql("DELETE FROM payments")


# -- writing ---------------------------------------------------------------------------------------


async def contents(database: Database) -> dict[str, tuple[int, str]]:
    async with database.snapshot() as connection:
        return await digest(connection)


def refused(record: object, reason: str) -> None:
    raise AssertionError(reason)


async def test_rows_do_not_depend_on_how_the_log_is_cut_into_batches(tmp_path, settings):
    log = random_log(200, accounts=7)
    digests = []
    for size in (1, 7, 64, 10_000):
        database = Database.of(Settings(home=tmp_path / str(size)), write=True)
        await database.migrate()
        applier = Applier(database)
        await applier.positions({("payment.events", p): 0 for p in log.records})
        for partition, records in log.records.items():
            expected = 0
            for start in range(0, len(records), size):
                batch = Batch(PAYMENTS_VIEW, partition, expected, records[start : start + size], 0)
                await applier.apply([batch], refused)
                expected = batch.next_offset
        digests.append(await contents(database))
        await database.close()
    assert all(digest == digests[0] for digest in digests)
    assert digests[0]["payments"][0] == len(log.payments)


async def test_every_database_gets_the_same_rows(tmp_path, database, applier, fill):
    log = random_log(300, accounts=7)
    await fill(log)
    other = Database.of(Settings(home=tmp_path / "other"), write=True)
    await other.migrate()
    for partition, records in log.records.items():
        applier = Applier(other)
        await applier.positions({("payment.events", partition): 0})
        await applier.apply([Batch(PAYMENTS_VIEW, partition, 0, records, 0)], refused)
    assert (await contents(other))["payments"] == (await contents(database))["payments"]
    assert (await contents(other))["payment_events"] == (await contents(database))["payment_events"]
    await other.close()


async def test_a_batch_is_applied_once_whoever_brings_it_again(database, read_model, applier):
    log = random_log(50, accounts=3, partitions=1)
    records = log.records[0]
    await applier.positions({("payment.events", 0): 0})
    batch = Batch(PAYMENTS_VIEW, 0, 0, records, 0)
    await applier.apply([batch], refused)
    before = await contents(database)
    for again in (batch, Batch(PAYMENTS_VIEW, 0, 0, records[:1], 0), Batch(PAYMENTS_VIEW, 0, 3, records, 0)):
        with pytest.raises(PositionMoved):
            await applier.apply([again], refused)
    assert await contents(database) == before
    assert (await read_model.positions())[0].next_offset == records[-1].offset + 1


async def test_one_partition_that_moved_takes_the_whole_batch_back(database, applier):
    log = random_log(100, accounts=10, partitions=2)
    await applier.positions({("payment.events", 0): 0, ("payment.events", 1): 5})
    empty = await contents(database)
    with pytest.raises(PositionMoved):
        await applier.apply([Batch(PAYMENTS_VIEW, p, 0, log.records[p], 0) for p in (0, 1)], refused)
    assert await contents(database) == empty


async def test_when_the_dead_letters_fail_nothing_is_applied(database, applier):
    log = random_log(10, accounts=1, partitions=1)
    log.garbage(0)
    await applier.positions({("payment.events", 0): 0})
    empty = await contents(database)
    found = []

    async def fails() -> None:
        assert len(found) == 1
        raise ConnectionError("the broker is gone")

    with pytest.raises(ConnectionError):
        await applier.apply(
            [Batch(PAYMENTS_VIEW, 0, 0, log.records[0], 0)], lambda *refusal: found.append(refusal), fails
        )
    assert await contents(database) == empty


def test_a_checksum_tells_records_apart_by_each_of_their_parts():
    record = random_log(1, partitions=1).records[0][0]
    others = [
        record._replace(offset=record.offset + 1),
        record._replace(timestamp=record.timestamp + 1),
        record._replace(key=b"other"),
        record._replace(value=b"other"),
        record._replace(key=None),
    ]
    assert len({checksum(record), *map(checksum, others)}) == 6
    assert checksum(record) == checksum(record._replace())


def test_a_row_written_twice_in_a_batch_is_the_later_one_and_rows_are_in_key_order():
    write = Write(schema.alerts, "ignore")
    changes = Changes()
    changes.rows(write)["b"] = ("b", 1)
    changes.rows(write)["a"] = ("a", 1)
    changes.rows(write)["b"] = ("b", 2)
    assert list(changes.items()) == [(write, [("a", 1), ("b", 2)])]


async def test_any_number_of_rows_is_written(database):
    await database.migrate()
    write = Write(schema.alerts, "never")
    done = 0
    for count in (0, 1, SQLITE_ROWS[0] - 1, SQLITE_ROWS[0], SQLITE_ROWS[0] * 3 + SQLITE_ROWS[1] + 2):
        async with database.transaction() as connection:
            rows = [(f"a{done + number}", "tok_1", number, "r", "{}") for number in range(count)]
            await write.execute(connection, rows)
        done += count
    assert (await contents(database))["alerts"][0] == done
