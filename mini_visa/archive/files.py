"""The archive's files: a manifest, and pieces of each partition's records."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from aiokafka import TopicPartition

from mini_visa.errors import UserError

VERSION: Final = 1
MANIFEST: Final = "manifest.json"

Show = Callable[[str, int, int], None]
"""Takes what is being done, records done, and records in all."""
Places = Mapping[TopicPartition, int]


class ArchiveUnusable(UserError):
    """The archive, or the cluster that it is to go into, is not as it must be."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A record in a file."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Piece(msgspec.Struct, frozen=True):
    """A file of one partition's records, in order."""

    name: str
    start: int
    next: int
    """The offset to go on at: past markers and gaps behind the last record."""
    records: int


class Partition(msgspec.Struct):
    first: int
    """The first offset that the cluster still had when the archive was begun."""
    pieces: list[Piece]

    @property
    def next(self) -> int:
        return self.pieces[-1].next if self.pieces else self.first


class Topic(msgspec.Struct):
    id: str
    config: dict[str, str]
    partitions: list[Partition]


class Cut(msgspec.Struct, frozen=True):
    """A moment at which everything was whole."""

    at: str
    ends: dict[str, list[int]]
    """Topic -> the end of each partition."""
    groups: dict[str, dict[str, list[int]]]
    """Group -> topic -> committed offset of each partition, -1: none."""


class Manifest(msgspec.Struct):
    version: int
    cluster: str
    environment: str
    topics: dict[str, Topic]
    cuts: list[Cut]


class Writer:
    """One new file. It counts once the manifest names it."""

    def __init__(self, folder: Path, place: TopicPartition, start: int) -> None:
        self.name = f"{place.topic}/{place.partition}/{start:020d}.gz"
        self.records = 0
        self._path = folder / self.name
        self._encode = msgspec.msgpack.Encoder().encode

    def __enter__(self) -> Writer:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._packed = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=1, mtime=0)
        return self

    def add(self, record: Any) -> None:
        headers = [(name, value) for name, value in record.headers]
        data = self._encode(Frame(record.offset, record.timestamp, record.key, record.value, headers))
        self._packed.write(len(data).to_bytes(4, "big"))
        self._packed.write(data)
        self.records += 1

    def __exit__(self, *_: object) -> None:
        self._packed.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def load(folder: Path, *, missing_ok: bool = False) -> Manifest | None:
    """None when there is none and that is fine. Raises `ArchiveUnusable`."""
    if missing_ok and not (folder / MANIFEST).exists():
        return None
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise ArchiveUnusable(f"{folder}: no archive ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ArchiveUnusable(f"{folder / MANIFEST}: {error}") from None
    if manifest.version != VERSION:
        raise ArchiveUnusable(f"{folder} has version {manifest.version}, this program knows {VERSION}")
    return manifest


def save(folder: Path, manifest: Manifest) -> None:
    """All of it or the former one."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{MANIFEST}.new"
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)


def frames_of(folder: Path, partition: Partition) -> Iterator[Frame]:
    decode = msgspec.msgpack.Decoder(Frame).decode
    for piece in partition.pieces:
        count = 0
        try:
            with gzip.open(folder / piece.name) as packed:
                while size := packed.read(4):
                    yield decode(_exactly(packed, int.from_bytes(size, "big")))
                    count += 1
        except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
            raise ArchiveUnusable(f"{folder / piece.name} is damaged: {error}") from None
        if count != piece.records:
            raise ArchiveUnusable(f"{folder / piece.name} has {count} records instead of {piece.records}")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _exactly(packed: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    data = packed.read(size)
    if len(data) != size:
        raise EOFError("it ends in the middle of a record")
    return data


def partition_of(manifest: Manifest, place: TopicPartition) -> Partition:
    number: int = place.partition
    return manifest.topics[place.topic].partitions[number]


def places_of(ends: Mapping[str, Sequence[int]]) -> dict[TopicPartition, int]:
    return {
        TopicPartition(name, number): end for name, all_ in ends.items() for number, end in enumerate(all_)
    }


def all_places(manifest: Manifest, names: Sequence[str]) -> list[TopicPartition]:
    return [
        TopicPartition(name, number)
        for name in names
        for number in range(len(manifest.topics[name].partitions))
    ]
