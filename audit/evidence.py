"""The evidence: topics, the read model's rows and committed offsets, read from a cluster or from a recording.

A recording is a folder:

    recording.json              {"environment": "dev", "partitions": {"payment.events": 4, ...},
                                "database": true, "begins": {"card.requests/0": 71},
                                "committed": {"connector": {"clearing.submissions/0": 4711}},
                                "holds": [604800000, 2678400000, 7200000], "cycle": 86400000}
    topics/NAME/PARTITION.jsonl [offset, timestamp, key, value, {header: value}], bytes in base64
    readmodel/TABLE.jsonl       the column names, then a row a line
    history.jsonl               the client's history, where there is one
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)

from audit.rules import CYCLE_MS, DEFAULT_HOLDS, Holds

STALLED_S: Final = 30.0
FETCH_WAIT_MS: Final = 200
ROWS_AT_ONCE: Final = 5_000
POSTGRESQL_SCHEMA: Final = "mini_visa"

READ_MODEL_TABLES: Final = (
    "positions", "payment_events", "accounts", "payments", "payment_metadata", "journal_entries",
    "journal_postings", "ledger_balances", "alerts", "clearing_items", "settlement_positions",
    "settlement_cycles", "sagas", "rules",
)  # fmt: skip
FOLLOWERS: Final = ("connector",)
"""Services without tables: how far they are is what their groups have committed."""


class Record(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Evidence(Protocol):
    environment: str
    partitions: dict[str, int]
    """Topic -> number of partitions."""
    begins: dict[str, int]
    """TOPIC/PARTITION -> the first offset that retention has left, where it is not 0."""
    committed: dict[str, dict[str, int]]
    """Follower that has ever run -> TOPIC/PARTITION -> where it goes on."""

    holds: Holds
    """How long they last there."""
    cycle_ms: int
    """How long a cycle of settlement is there."""

    @property
    def has_read_model(self) -> bool:
        """A database was given."""
        ...

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        """Committed records in order, up to where the partition ended when it was first asked for."""
        ...

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        """Of the read model; None when there is none, or no such table."""
        ...

    def history(self) -> Iterator[dict[str, Any]] | None: ...


class Unreadable(Exception):
    """The evidence cannot be read. The text says what to do."""


# -- a cluster -------------------------------------------------------------------------------------


class Cluster:
    """A broker that runs, and the database of the read model. `close` it.

    `options` are aiokafka's, to reach the cluster. Reads committed records only, as any consumer would.
    """

    def __init__(
        self,
        options: dict[str, Any],
        environment: str,
        database: str = "",
        history: Path | None = None,
        holds: Holds = DEFAULT_HOLDS,
        cycle_ms: int = CYCLE_MS,
    ) -> None:
        self.holds = holds
        self.cycle_ms = cycle_ms
        self.environment = environment
        self.partitions: dict[str, int] = {}
        self.begins: dict[str, int] = {}
        self.committed: dict[str, dict[str, int]] = {}
        self._options = options
        self._database = database
        self._history = history
        self._loop = asyncio.new_event_loop()
        self._sql: Any = None

    @property
    def has_read_model(self) -> bool:
        return bool(self._database)

    def open(self) -> None:
        """Raises `Unreadable`, as everything that reads does."""
        self._run(self._topics())
        self._run(self._beginnings())

    def close(self) -> None:
        if self._sql is not None and not isinstance(self._sql, sqlite3.Connection):
            self._sql.terminate()
        elif self._sql is not None:
            self._sql.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _run(self, work: Any) -> Any:
        try:
            return self._loop.run_until_complete(work)
        except (KafkaError, OSError) as error:
            raise Unreadable(
                f"Kafka at {self._options['bootstrap_servers']} cannot be read: {error!r}"
            ) from error

    async def _topics(self) -> None:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            for service in FOLLOWERS:
                found = await self._group(admin, f"{self.environment}.{service}")
                places = {f"{place.topic}/{place.partition}": at.offset for place, at in found.items()}
                if places:
                    self.committed[service] = places
            for topic in await admin.describe_topics():
                if not topic["topic"].startswith("__"):
                    self.partitions[topic["topic"]] = len(topic["partitions"])
        finally:
            await admin.close()

    async def _group(self, admin: Any, name: str) -> dict[TopicPartition, Any]:
        """What a group has committed. A broker that has just started knows its groups some seconds later."""
        for _ in range(int(STALLED_S)):
            try:
                return dict(await admin.list_consumer_group_offsets(name))
            except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
                await asyncio.sleep(1)
        raise Unreadable(f"no broker knows the group {name}: start again once Kafka is at rest")

    async def _beginnings(self) -> None:
        places = [TopicPartition(topic, p) for topic, count in self.partitions.items() for p in range(count)]
        if not places:
            return
        consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False)
        try:
            await consumer.start()
            found = await consumer.beginning_offsets(places)
            self.begins = {f"{place.topic}/{place.partition}": at for place, at in found.items() if at}
        finally:
            await consumer.stop()

    def _consumer(self) -> Any:
        async def make() -> Any:
            return AIOKafkaConsumer(
                **self._options,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_max_wait_ms=FETCH_WAIT_MS,
                max_partition_fetch_bytes=8 << 20,
            )

        return self._run(make())

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        consumer, place = self._consumer(), TopicPartition(topic, partition)

        async def begin() -> tuple[int, int]:
            await consumer.start()
            consumer.assign([place])
            first = (await consumer.beginning_offsets([place]))[place]
            consumer.seek(place, first)
            return first, (await consumer.end_offsets([place]))[place]

        async def fetch() -> tuple[list[Any], int]:
            found = await consumer.getmany(place, timeout_ms=FETCH_WAIT_MS)
            return found.get(place, []), await consumer.position(place)

        try:
            position, end = self._run(begin())
            idle_s = 0.0
            while position < end:
                former = position
                found, position = self._run(fetch())
                for record in found:
                    if record.offset >= end:
                        return
                    headers = dict(record.headers)
                    yield Record(
                        partition, record.offset, record.timestamp, record.key, record.value, headers
                    )
                idle_s = 0.0 if position > former else idle_s + FETCH_WAIT_MS / 1_000
                if idle_s > STALLED_S:
                    raise Unreadable(f"{topic}/{partition}: nothing came from offset {position} to {end}")
        finally:
            self._run(consumer.stop())

    # -- the read model: its own SQL, sqlite3 or asyncpg

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        if not self._database:
            return None
        assert table in READ_MODEL_TABLES
        if self._database.startswith("sqlite"):
            return self._sqlite_rows(table)
        return self._postgresql_rows(table)

    def _sqlite_rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        path = self._database.split(":///", 1)[1]
        try:
            if self._sql is None:
                self._sql = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
                self._sql.execute("BEGIN")  # one snapshot for all tables
            cursor = self._sql.execute(f"SELECT * FROM {table}")  # noqa: S608 - a name of ours
        except sqlite3.Error as error:
            if "no such table" in str(error):
                return None
            raise Unreadable(f"the read model in {path} cannot be read: {error}") from error
        names = [column[0] for column in cursor.description]

        def rows() -> Iterator[dict[str, Any]]:
            try:
                for row in cursor:
                    yield dict(zip(names, row, strict=True))
            except sqlite3.Error as error:
                raise Unreadable(f"the read model in {path} cannot be read: {error}") from error

        return rows()

    def _postgresql_rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        import asyncpg

        async def connect() -> Any:
            url = self._database.replace("postgresql+asyncpg://", "postgresql://")
            connection = await asyncpg.connect(url, server_settings={"search_path": POSTGRESQL_SCHEMA})
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return connection

        def run(work: Any) -> Any:
            try:
                return self._loop.run_until_complete(work)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                raise Unreadable(f"the read model cannot be read: {error!r}") from error

        if self._sql is None:
            self._sql = run(connect())
        if run(self._sql.fetchval("SELECT to_regclass($1)", table)) is None:
            return None

        def rows() -> Iterator[dict[str, Any]]:
            cursor = run(self._cursor(table))
            while found := run(cursor.fetch(ROWS_AT_ONCE)):
                yield from map(dict, found)

        return rows()

    async def _cursor(self, table: str) -> Any:
        return await self._sql.cursor(f"SELECT * FROM {table}")  # noqa: S608 - a name of ours

    def history(self) -> Iterator[dict[str, Any]] | None:
        return None if self._history is None else read_lines(self._history)


# -- a recording -----------------------------------------------------------------------------------


class Recording:
    """A folder that `record` wrote."""

    def __init__(self, folder: Path) -> None:
        """Raises `Unreadable`."""
        self.folder = folder
        try:
            about = json.loads((folder / "recording.json").read_text())
            self.environment: str = about["environment"]
            self.partitions: dict[str, int] = about["partitions"]
        except (OSError, ValueError, KeyError) as error:
            raise Unreadable(f"{folder} is not a recording: {error!r}") from error
        self.begins: dict[str, int] = about.get("begins", {})
        self.committed: dict[str, dict[str, int]] = about.get("committed", {})
        self.holds = Holds(*about.get("holds", DEFAULT_HOLDS))
        self.cycle_ms: int = about.get("cycle", CYCLE_MS)
        self._database: bool = about.get("database", False)

    @property
    def has_read_model(self) -> bool:
        return self._database

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        path = self.folder / "topics" / topic / f"{partition}.jsonl"
        for offset, timestamp, key, value, headers in read_lines(path):
            yield Record(
                partition, offset, timestamp, _bytes(key), _bytes(value),
                {name: _bytes(text) or b"" for name, text in headers.items()},
            )  # fmt: skip

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        path = self.folder / "readmodel" / f"{table}.jsonl"
        if not path.exists():
            return None
        lines = read_lines(path)
        names: list[str] = next(lines, [])
        return (dict(zip(names, row, strict=True)) for row in lines)

    def history(self) -> Iterator[dict[str, Any]] | None:
        path = self.folder / "history.jsonl"
        return read_lines(path) if path.exists() else None

    def close(self) -> None:
        pass


def record(evidence: Evidence, folder: Path) -> None:
    """Write a recording of all that `evidence` has, a record at a time. Raises `Unreadable`."""
    try:
        (folder / "readmodel").mkdir(parents=True)
    except OSError as error:
        raise Unreadable(f"a recording needs a new folder: {error}") from error
    about = {
        "environment": evidence.environment,
        "partitions": evidence.partitions,
        "database": evidence.has_read_model,
        "begins": evidence.begins,
        "committed": evidence.committed,
        "holds": evidence.holds,
        "cycle": evidence.cycle_ms,
    }
    (folder / "recording.json").write_text(json.dumps(about, indent=2) + "\n")
    for table in READ_MODEL_TABLES:
        rows = evidence.rows(table)
        if rows is not None:
            write_lines(folder / "readmodel" / f"{table}.jsonl", _table_lines(rows))
    for topic, partitions in evidence.partitions.items():
        (folder / "topics" / topic).mkdir(parents=True)
        for partition in range(partitions):
            lines = map(_record_line, evidence.records(topic, partition))
            write_lines(folder / "topics" / topic / f"{partition}.jsonl", lines)
    history = evidence.history()
    if history is not None:
        write_lines(folder / "history.jsonl", history)


def _table_lines(rows: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    """The column names, then the rows; nothing for an empty table."""
    for number, row in enumerate(rows):
        if not number:
            yield list(row)
        yield list(row.values())


def _record_line(one: Record) -> list[Any]:
    headers = {name: _text(value) for name, value in one.headers.items()}
    return [one.offset, one.timestamp, _text(one.key), _text(one.value), headers]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def read_lines(path: Path) -> Iterator[Any]:
    """The values of JSON lines. The last may be half a line: its writer was killed. Raises `Unreadable`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = _decode(line)
                except msgspec.DecodeError as error:
                    if line.endswith(b"\n"):
                        raise Unreadable(f"{path}, line {number}: {error}") from error
                else:
                    yield value
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    with path.open("wb") as file:
        for line in lines:
            file.write(_encode(line) + b"\n")


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
