"""A partition's tables on disk: RocksDB, one database for all tables of a processor's partition."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import rocksdict
from msgspec.structs import replace

log = logging.getLogger(__name__)

PROGRESS_KEY: Final = b"\x00progress"
"""In changelog and store. No table's rows start with a zero byte: a table's name is not empty."""
APPLIED_KEY: Final = b"\x00applied"
"""In the store only: how far it has applied the changelog."""

Change = tuple[bytes, bytes | None]


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Which logs these offsets are about."""

    cluster: str
    source: bytes
    changelog: bytes


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a partition has come. Written in every transaction, and in the same RocksDB write."""

    version: int
    next_offset: int
    """Of the source: the first offset that is not processed."""
    partition_time: int
    """Event time in ms."""
    identity: Identity
    told: int | None = None
    """The group's committed offset: the last one that a transaction carried, this one's or one before it."""


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """How much of the changelog is in the store."""

    offset: int
    """Of the last changelog record applied; -1: none."""
    written_ms: int
    """Wall clock: tombstones older than the changelog keeps them may have been missed."""
    identity: Identity


PROGRESS_VERSION: Final = 2
"""1: every transaction carried the group's offset."""
_encode = msgspec.msgpack.encode
_progress = msgspec.msgpack.Decoder(Progress)
_applied = msgspec.msgpack.Decoder(Applied)


def encode_progress(progress: Progress) -> bytes:
    return _encode(progress)


def decode_progress(data: bytes) -> Progress:
    progress = _progress.decode(data)
    if progress.version == 1:
        return replace(progress, version=PROGRESS_VERSION, told=progress.next_offset)
    if progress.version != PROGRESS_VERSION:
        raise ValueError(
            f"progress record of version {progress.version}, this program knows {PROGRESS_VERSION}: "
            "run the version of the program that wrote it, or a newer one"
        )
    return progress


@cache
def _shared_memory(memory_bytes: int) -> tuple[rocksdict.Cache, rocksdict.WriteBufferManager]:
    """One block cache for all databases of the process; write buffers are charged to it, at most half."""
    block_cache = rocksdict.Cache(memory_bytes)
    buffers = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
        memory_bytes // 2, False, block_cache
    )
    return block_cache, buffers


def _options(memory_bytes: int) -> rocksdict.Options:
    block_cache, buffers = _shared_memory(memory_bytes)
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(block_cache)
    blocks.set_block_size(8 << 10)
    blocks.set_bloom_filter(10, False)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_format_version(5)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_manager(buffers)
    options.set_write_buffer_size(max(1 << 20, min(32 << 20, memory_bytes // 8)))
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(64 << 20)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    return options


class RocksStore:
    """Ordered bytes on disk, with the interface `TableView` reads through."""

    LOCK_WAIT_S: Final = 5.0

    get: Callable[[bytes], bytes | None]

    def __init__(self, path: Path, memory_bytes: int) -> None:
        """Empty when what is on the disk is damaged: the changelog has it all. Raises `StoreUnavailable` when
        another process, or another owner in this one, has it open, or the disk does not let us."""
        self.path = path
        self._gone = path.with_name(f"{path.name}.gone")
        self._memory_bytes = memory_bytes
        self._database = self._open()
        self.get = self._database.get
        shutil.rmtree(self._gone, ignore_errors=True)

    def _open(self) -> rocksdict.Rdict:
        damaged = False
        deadline = time.monotonic() + self.LOCK_WAIT_S
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                options = _options(self._memory_bytes)
                # Of a database that exists, rocksdict takes the default column family's options from its last
                # OPTIONS file unless they are passed as such: no Bloom filter, and a block cache of 8 MB.
                return rocksdict.Rdict(str(self.path), options, {"default": options})
            except Exception as error:
                if not damaged and _is_damage(str(error)):
                    damaged = True
                    log.warning("the tables in %s are damaged: %s; opened empty", self.path, error)
                    self._discard()
                    continue
                if "lock" not in str(error).lower() or time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"cannot open the tables in {self.path}: {error}. Is another worker using this "
                        "directory? Each worker on a machine needs a MINI_VISA_HOME of its own"
                    ) from error
                gc.collect()
                time.sleep(0.05)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, from a snapshot taken now."""
        bounded = rocksdict.ReadOptions()
        bounded.set_iterate_upper_bound(stop)
        return _within(self._database.items(from_key=start, read_opt=bounded), bounded, stop)

    def write(self, changes: Iterable[Change], progress: bytes | None, applied: Applied) -> None:
        """All of it or none: rows, progress (None: among the rows) and how far the changelog is in."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in changes:
            if value is None:
                delete(key)
            else:
                put(key, value)
        if progress is not None:
            put(PROGRESS_KEY, progress)
        put(APPLIED_KEY, _encode(applied))
        self._database.write(batch)

    def progress(self) -> Progress | None:
        data = self.get(PROGRESS_KEY)
        return None if data is None else decode_progress(data)

    def applied(self) -> Applied | None:
        data = self.get(APPLIED_KEY)
        return None if data is None else _applied.decode(data)

    def wipe(self) -> None:
        """Empty: the changelog has it all."""
        self.close()
        self._discard()
        self._database = self._open()
        self.get = self._database.get

    def _discard(self) -> None:
        """Take the files out of the way at once, then delete them: who dies in the middle leaves no half of a
        database under the name of a whole one."""
        if self._gone.exists():
            shutil.rmtree(self._gone)
        self.path.rename(self._gone)
        shutil.rmtree(self._gone)

    def close(self) -> None:
        """Give up RocksDB's lock now. One that is only dropped keeps it while anything refers to it."""
        with contextlib.suppress(rocksdict.DbClosedError):  # a wipe that failed has closed it before
            self._database.close()


def _is_damage(error: str) -> bool:
    """Files are missing, or not as they were written. A lock, a full disk, a right that is missing or a limit
    of open files are no damage: the rows are all there, and to wipe them would mend nothing."""
    return "/LOCK:" not in error and ("Corruption" in error or "No such file or directory" in error)


def _within(
    rows: Iterator[tuple[bytes, bytes]], bounded: rocksdict.ReadOptions, stop: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """`rows`, keeping `bounded` alive: RocksDB reads the upper bound from memory that it owns, and iterates
    past it once that is freed (rocksdict 0.3.29: the iterator holds no reference)."""
    for row in rows:
        assert row[0] < stop, "RocksDB went past the upper bound of a scan"
        yield row
    del bounded


class StoreUnavailable(RuntimeError):
    """A partition's tables cannot be opened."""
