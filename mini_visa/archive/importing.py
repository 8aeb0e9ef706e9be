"""Into a new cluster: every record at the offset that it had."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from msgspec.structs import replace

from mini_visa.archive.cluster import asking, end_offsets_of, is_changelog
from mini_visa.archive.files import (
    ArchiveUnusable,
    Cut,
    Frame,
    Manifest,
    Places,
    Show,
    Topic,
    frames_of,
    load,
    partition_of,
    places_of,
)
from mini_visa.kafka import TopicPlan, admin, apply_topics, client_options, committed_records, list_topics
from mini_visa.settings import Settings
from mini_visa.streams.store import PROGRESS_KEY, Identity, Progress, decode_progress, encode_progress
from mini_visa.streams.wire import Wire

BATCH_BYTES_MAX: Final = 900_000
RUN_RECORDS_MAX: Final = 2_000
FILLERS_MAX: Final = 5_000
MARKER_S: Final = 30.0


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did."""

    topics: int
    records: int
    transactions: int
    """That it took to give every record its offset."""
    cut: str
    groups: int
    seconds: float


async def import_topics(settings: Settings, folder: Path, *, show: Show = lambda *_: None) -> Restored:
    """Make the archive's topics, as they were at its last cut, in a cluster that has none of them. Then start
    the services. Raises `ArchiveUnusable`; what was written by then is of no use: delete those topics."""
    began = time.monotonic()
    manifest = load(folder)
    assert manifest is not None
    if not manifest.cuts:
        raise ArchiveUnusable(f"{folder} has no cut: export again while the workers are stopped")
    if manifest.environment != settings.environment:
        raise ArchiveUnusable(
            f"{folder} is of environment {manifest.environment}: "
            f"set MINI_VISA_ENVIRONMENT={manifest.environment}"
        )
    cut = manifest.cuts[-1]
    wanted = {name: topic for name, topic in manifest.topics.items() if name in cut.ends}
    if full := [
        topic.name for topic in await list_topics(settings) if topic.name in wanted and topic.records
    ]:
        raise ArchiveUnusable(f"the cluster has records in {', '.join(full)}: import into one that has none")
    await apply_topics(
        settings,
        [
            TopicPlan(
                name,
                len(topic.partitions),
                settings.replication,
                topic.config | {"min.insync.replicas": str(max(1, settings.replication - 1))},
            )
            for name, topic in wanted.items()
        ],
    )
    identities = await _new_identities(settings, manifest, wanted)
    ends = places_of(cut.ends)
    total = sum(
        piece.records for topic in wanted.values() for part in topic.partitions for piece in part.pieces
    )
    async with _producers(settings) as (plain, transactional), asking(settings, committed=False) as reader:
        writing = _Writing(plain, transactional, reader, show, total)
        kept = {place: end for place, end in ends.items() if not is_changelog(place.topic, settings)}
        await writing.keeping_offsets(folder, manifest, kept)
        progress: dict[TopicPartition, tuple[TopicPartition, int]] = {}
        for place, end in ends.items():
            if place not in kept:
                found = await writing.changelog(folder, manifest, place, end, identities)
                if found is not None:
                    progress[place] = found
    await _forget_beginnings(settings, folder, manifest, kept)
    await _check(settings, folder, manifest, kept, show, total)
    groups = await _commit_groups(settings, cut, progress)
    return Restored(
        topics=len(wanted),
        records=writing.records,
        transactions=writing.transactions,
        cut=cut.at,
        groups=groups,
        seconds=time.monotonic() - began,
    )


class _Identities(NamedTuple):
    cluster: str
    ids: dict[str, bytes]
    """Topic -> its id in the new cluster."""
    names: dict[bytes, str]
    """The id in the old one -> topic."""

    def of(self, progress: Progress, changelog: str) -> tuple[str, Progress]:
        """The progress's source, and the progress as the new cluster's."""
        source = self.names.get(progress.identity.source)
        if source is None:
            raise ArchiveUnusable(f"{changelog} is about a topic that the archive does not have")
        identity = Identity(self.cluster, self.ids[source], self.ids[changelog])
        return source, replace(progress, identity=identity, told=progress.next_offset)


async def _new_identities(settings: Settings, manifest: Manifest, wanted: Mapping[str, Topic]) -> _Identities:
    wire = Wire(f"{settings.environment}.archive", client_options(settings))
    await wire.start()
    try:
        cluster, found = await wire.topics(list(wanted))
    finally:
        await wire.stop()
    names = {bytes.fromhex(topic.id): name for name, topic in manifest.topics.items()}
    return _Identities(cluster, {name: topic.id for name, topic in found.items()}, names)


class Step(NamedTuple):
    """What comes next in a partition."""

    frames: list[Frame]
    marker: bool
    """The record after them is a transaction's marker: commit them (aborted: abort)."""
    aborted: int = 0
    """Instead of frames: so many records that nobody is to see."""

    @property
    def offsets(self) -> int:
        return len(self.frames) + self.aborted + self.marker


def steps(frames: Iterator[Frame], end: int) -> Iterator[Step]:
    """How a partition's records get their offsets, from 0 to `end`: runs without a gap, a run and a marker
    where one offset is missing behind it, aborted records and their marker where more are."""
    at, run = 0, list[Frame]()
    for frame in frames:
        if frame.offset >= end:
            break
        gap = frame.offset - at - len(run)
        if gap or len(run) >= RUN_RECORDS_MAX:
            yield from _closed(run, gap)
            at, run = frame.offset, []
        run.append(frame)
    yield from _closed(run, end - at - len(run))


def _closed(run: list[Frame], gap: int) -> Iterator[Step]:
    if run:
        yield Step(run, marker=gap == 1)
    if gap == 1 and not run:
        yield Step([_filler()], marker=False)  # the log's very first offset: it is deleted afterwards
    while gap > 1:
        count = min(gap - 1, FILLERS_MAX)
        if gap - count - 1 == 1:
            count -= 1
        yield Step([], marker=True, aborted=count)
        gap -= count + 1


def _filler() -> Frame:
    return Frame(0, int(time.time() * 1000), b"", None, [])


class _Writing:
    def __init__(
        self,
        plain: AIOKafkaProducer,
        transactional: AIOKafkaProducer,
        reader: AIOKafkaConsumer,
        show: Show,
        total: int,
    ) -> None:
        self.records = 0
        self.transactions = 0
        self._plain = plain
        self._transactional = transactional
        self._reader = reader
        self._show = show
        self._total = total

    async def keeping_offsets(self, folder: Path, manifest: Manifest, ends: Places) -> None:
        """All partitions in step, so that one transaction serves all that need a marker."""
        sources = {
            place: steps(frames_of(folder, partition_of(manifest, place)), end) for place, end in ends.items()
        }
        at = dict.fromkeys(sources, 0)
        while sources:
            turn: dict[TopicPartition, Step] = {}
            for place in list(sources):
                step = next(sources[place], None)
                if step is None:
                    del sources[place]
                else:
                    turn[place] = step
            await self._round(turn, at)

    async def _round(self, turn: Mapping[TopicPartition, Step], at: dict[TopicPartition, int]) -> None:
        for group in (
            {place: step for place, step in turn.items() if not step.marker},
            {place: step for place, step in turn.items() if step.marker and not step.aborted},
            {place: step for place, step in turn.items() if step.aborted},
        ):
            if not group:
                continue
            transaction = next(iter(group.values())).marker
            producer = self._transactional if transaction else self._plain
            if transaction:
                await producer.begin_transaction()
                self.transactions += 1
            await _send(
                producer, {place: step.frames or [_filler()] * step.aborted for place, step in group.items()}
            )
            if transaction:
                aborted = next(iter(group.values())).aborted
                await (producer.abort_transaction() if aborted else producer.commit_transaction())
            for place, step in group.items():
                at[place] += step.offsets
                self.records += len(step.frames)
            await self._reached({place: at[place] for place in group})
        self._show("importing", self.records, self._total)

    async def _reached(self, ends: Places) -> None:
        """Markers are written after the commit is answered: what came before them would take their place."""
        deadline = time.monotonic() + MARKER_S
        while (found := await end_offsets_of(self._reader, list(ends))) != ends:
            wrong = {place: offset for place, offset in found.items() if offset != ends[place]}
            if time.monotonic() > deadline or any(offset > ends[place] for place, offset in wrong.items()):
                raise ArchiveUnusable(f"offsets did not come out: {wrong} instead of {dict(ends)}")
            await asyncio.sleep(0.002)

    async def changelog(
        self,
        folder: Path,
        manifest: Manifest,
        place: TopicPartition,
        end: int,
        identities: _Identities,
    ) -> tuple[TopicPartition, int] | None:
        """The rows as they are at the cut, each key once. Returns the source's partition and the offset that
        is next there; None when nothing was ever processed."""
        rows: dict[bytes, Frame] = {}
        for frame in frames_of(folder, partition_of(manifest, place)):
            if frame.offset < end and frame.key is not None:
                if frame.value is None:
                    rows.pop(frame.key, None)
                else:
                    rows[frame.key] = frame
        last = rows.pop(PROGRESS_KEY, None)
        if last is None or last.value is None:
            return None
        source, progress = identities.of(decode_progress(last.value), place.topic)
        frames = list(rows.values())
        frames.append(Frame(0, last.timestamp, PROGRESS_KEY, encode_progress(progress), []))
        for start in range(0, len(frames), RUN_RECORDS_MAX):
            await _send(self._plain, {place: frames[start : start + RUN_RECORDS_MAX]})
            self.records += len(frames[start : start + RUN_RECORDS_MAX])
            self._show("importing", self.records, self._total)
        return TopicPartition(source, place.partition), progress.next_offset


async def _send(producer: AIOKafkaProducer, frames: Mapping[TopicPartition, Sequence[Frame]]) -> None:
    """Each partition's in order; every acknowledgement is awaited."""
    waiting = []
    for place, sequence in frames.items():
        batch = producer.create_batch()
        for frame in sequence:
            record = {
                "key": frame.key,
                "value": frame.value,
                "timestamp": frame.timestamp,
                "headers": frame.headers,
            }
            if batch.append(**record) is None:
                if batch.record_count():
                    waiting.append(await producer.send_batch(batch, place.topic, partition=place.partition))
                    batch = producer.create_batch()
                if batch.append(**record) is None:
                    raise ArchiveUnusable(f"{place}: the record at {frame.offset} fits into no batch")
        if batch.record_count():
            waiting.append(await producer.send_batch(batch, place.topic, partition=place.partition))
    for done in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done


async def _forget_beginnings(settings: Settings, folder: Path, manifest: Manifest, kept: Places) -> None:
    """Where the log had lost its beginning, it begins there again; so does one that began with a marker
    alone, whose place a record has taken (`_closed`)."""
    before = {}
    for place, end in kept.items():
        partition = partition_of(manifest, place)
        frame = next(frames_of(folder, partition), None)
        alone = (end if frame is None else frame.offset) == 1
        if first := max(partition.first, 1 if alone else 0):
            before[place] = RecordsToDelete(before_offset=first)
    if before:
        async with admin(settings) as client:
            await client.delete_records(before)


async def _check(
    settings: Settings, folder: Path, manifest: Manifest, kept: Places, show: Show, total: int
) -> None:
    """Read back what was written and hold it against the archive, record by record. What has been kept for as
    long as its topic keeps anything may be gone again: the new log's beginning counts."""
    async with asking(settings, committed=True) as reader:
        begins = dict(await reader.beginning_offsets(list(kept)))
    wanted: dict[TopicPartition, int] = {}
    for place, end in kept.items():
        digest = 0
        for frame in frames_of(folder, partition_of(manifest, place)):
            if begins[place] <= frame.offset < end:
                digest = _digest(digest, frame)
        wanted[place] = digest
    found = dict.fromkeys(kept, 0)
    done = 0
    for name in sorted({place.topic for place in kept}):
        places = {place: end for place, end in kept.items() if place.topic == name}
        async with aclosing(committed_records(settings, [name], begins, places)) as records:
            async for record in records:
                place = TopicPartition(name, record.partition)
                found[place] = _digest(found[place], record)
                done += 1
                if not done % 5_000:
                    show("checking", done, total)
    if wrong := [f"{place.topic}/{place.partition}" for place in kept if wanted[place] != found[place]]:
        raise ArchiveUnusable(f"what was written is not what the archive has: {', '.join(wrong)}")


def _digest(digest: int, record: Any) -> int:
    """Of a `Frame` or a consumer's record."""
    headers = b"".join(name.encode() + value for name, value in record.headers)
    data = b"%d/%d/%b/%b/%b" % (
        record.offset, record.timestamp, record.key or b"", record.value or b"", headers,
    )  # fmt: skip
    return crc32(data, digest)


async def _commit_groups(
    settings: Settings, cut: Cut, progress: Mapping[TopicPartition, tuple[TopicPartition, int]]
) -> int:
    """Committed offsets: a service's from its own progress, the others' as they were."""
    wanted: dict[str, dict[TopicPartition, int]] = defaultdict(dict)
    for group, topics in cut.groups.items():
        for topic, offsets in topics.items():
            for number, offset in enumerate(offsets):
                if offset >= 0:
                    wanted[group][TopicPartition(topic, number)] = offset
    for changelog, (source, next_offset) in progress.items():
        wanted[changelog.topic.removesuffix(".changelog")][source] = next_offset
    for group, committed in wanted.items():
        consumer = AIOKafkaConsumer(**client_options(settings), group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(committed))
            await consumer.commit(committed)
        finally:
            await consumer.stop()
    return len(wanted)


@asynccontextmanager
async def _producers(settings: Settings) -> AsyncIterator[tuple[AIOKafkaProducer, AIOKafkaProducer]]:
    """One that commits or aborts, one that writes without a transaction."""
    options: dict[str, Any] = {
        **client_options(settings),
        "max_batch_size": BATCH_BYTES_MAX,
        "linger_ms": 0,
        "retry_backoff_ms": 5,
    }
    plain = AIOKafkaProducer(**options, enable_idempotence=True)
    transactional = AIOKafkaProducer(**options, transactional_id=f"{settings.environment}.archive")
    await plain.start()
    try:
        await transactional.start()
        yield plain, transactional
    finally:
        await transactional.stop()
        await plain.stop()
