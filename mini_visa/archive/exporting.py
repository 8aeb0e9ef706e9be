"""Out of a cluster: what is new, while it runs, and a cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from aiokafka import TopicPartition

from mini_visa import topics as declared
from mini_visa.archive.cluster import asking, end_offsets_of, is_changelog
from mini_visa.archive.files import (
    VERSION,
    ArchiveUnusable,
    Cut,
    Manifest,
    Partition,
    Piece,
    Places,
    Show,
    Topic,
    Writer,
    all_places,
    load,
    partition_of,
    places_of,
    save,
    size_of,
)
from mini_visa.kafka import client_options, committed_records, lag, list_topics, own_configs
from mini_visa.settings import Settings
from mini_visa.streams.wire import Wire

LEFT_OUT: Final = (declared.GATEWAY_REPLIES.name,)
"""Answers to clients who have long stopped waiting."""
CUT_WAIT_S: Final = 10.0


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export did."""

    topics: int
    records: int
    """New ones."""
    bytes: int
    """Of the whole archive."""
    cut: str
    """Time of the newest cut; "" when there is none at all."""
    new_cut: bool
    seconds: float


async def export_topics(
    settings: Settings, folder: Path, *, cut_wait_s: float = CUT_WAIT_S, show: Show = lambda *_: None
) -> Exported:
    """Copy what is new into `folder`, then look for a cut for `cut_wait_s` seconds and copy up to it. There
    is always one while the workers are stopped, and soon one while little happens; gateways may go on."""
    began = time.monotonic()
    manifest = await _described(settings, folder)
    records = await _copy(settings, folder, manifest, await _ends(settings, manifest), show)
    show("looking for a cut", 0, 0)
    cut = await _find_cut(settings, manifest, cut_wait_s)
    if cut is not None:
        records += await _copy(settings, folder, manifest, places_of(cut.ends), show)
        manifest.cuts.append(cut)
    save(folder, manifest)
    return Exported(
        topics=len(manifest.topics),
        records=records,
        bytes=size_of(folder),
        cut=manifest.cuts[-1].at if manifest.cuts else "",
        new_cut=cut is not None,
        seconds=time.monotonic() - began,
    )


async def _described(settings: Settings, folder: Path) -> Manifest:
    """The folder's manifest, with the topics that the cluster has got since."""
    names = [topic.name for topic in await list_topics(settings) if topic.name not in LEFT_OUT]
    configs = await own_configs(settings, names)
    wire = Wire(f"{settings.environment}.archive", client_options(settings))
    await wire.start()
    try:
        cluster, identities = await wire.topics(names)
    finally:
        await wire.stop()
    found = load(folder, missing_ok=True)
    if found is not None:
        manifest = found
        if (manifest.cluster, manifest.environment) != (cluster, settings.environment):
            raise ArchiveUnusable(
                f"{folder} is of cluster {manifest.cluster}, environment {manifest.environment}: "
                "export into another folder"
            )
    else:
        manifest = Manifest(VERSION, cluster, settings.environment, {}, [])
    for name in names:
        known = manifest.topics.get(name)
        if known is not None and known.id != identities[name].id.hex():
            raise ArchiveUnusable(
                f"{name} was made anew since {folder} was begun: export into another folder"
            )
        if known is None:
            partitions = [Partition(-1, []) for _ in range(identities[name].partitions)]
            manifest.topics[name] = Topic(identities[name].id.hex(), configs[name], partitions)
        else:
            known.config = configs[name]
    async with asking(settings, committed=True) as reader:
        new = [
            TopicPartition(name, number)
            for name, topic in manifest.topics.items()
            for number, partition in enumerate(topic.partitions)
            if partition.first < 0
        ]
        for place, first in (await reader.beginning_offsets(new)).items() if new else ():
            manifest.topics[place.topic].partitions[place.partition].first = first
    return manifest


async def _copy(settings: Settings, folder: Path, manifest: Manifest, ends: Places, show: Show) -> int:
    """Append the committed records before `ends` that the archive has not; returns how many."""
    wanted = {place: end for place, end in ends.items() if partition_of(manifest, place).next < end}
    total = sum(end - partition_of(manifest, place).next for place, end in wanted.items())
    done = 0
    by_topic: dict[str, dict[TopicPartition, int]] = defaultdict(dict)
    for place, end in wanted.items():
        by_topic[place.topic][place] = end
    for name, places in by_topic.items():
        start = {place: partition_of(manifest, place).next for place in places}
        with contextlib.ExitStack() as files:
            writers = {place: files.enter_context(Writer(folder, place, start[place])) for place in places}
            async with aclosing(committed_records(settings, [name], start, places)) as records:
                async for record in records:
                    writers[TopicPartition(name, record.partition)].add(record)
                    done += 1
                    if not done % 5_000:
                        show("exporting", done, total)
        for place, writer in writers.items():
            piece = Piece(writer.name, start[place], places[place], writer.records)
            partition_of(manifest, place).pieces.append(piece)
        save(folder, manifest)  # a run that is killed has what it finished
    return done


async def _find_cut(settings: Settings, manifest: Manifest, wait_s: float) -> Cut | None:
    """A moment at which no transaction of ours was under way, or None.

    Every transaction of the kernel writes into its changelog. So: no transaction is open in a changelog (its
    stable end is its end), then the other topics end where they end and nothing is open below that, then the
    changelogs still end where they did. In between nothing was committed, what was open before is decided.
    """
    changelogs = [name for name in manifest.topics if is_changelog(name, settings)]
    others = [name for name in manifest.topics if name not in changelogs]
    of_changelogs, of_others = all_places(manifest, changelogs), all_places(manifest, others)
    deadline = time.monotonic() + wait_s
    async with asking(settings, committed=True) as stable, asking(settings, committed=False) as reader:
        while True:
            closed = await end_offsets_of(stable, of_changelogs)
            before = await end_offsets_of(reader, of_changelogs)
            ends = await end_offsets_of(reader, of_others)
            decided = await end_offsets_of(stable, of_others)
            after = await end_offsets_of(reader, of_changelogs)
            if closed == before == after and all(decided[place] >= end for place, end in ends.items()):
                break
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.02)
    groups: dict[str, dict[str, list[int]]] = {}
    cut = {name: [0] * len(topic.partitions) for name, topic in manifest.topics.items()}
    for place, end in {**before, **ends}.items():
        cut[place.topic][place.partition] = end
    for one in await lag(settings):
        if one.topic in cut:
            of_topic = groups.setdefault(one.group, {}).setdefault(one.topic, [-1] * len(cut[one.topic]))
            of_topic[one.partition] = min(one.committed, cut[one.topic][one.partition])
    return Cut(datetime.now(UTC).isoformat(timespec="milliseconds"), cut, groups)


async def _ends(settings: Settings, manifest: Manifest) -> dict[TopicPartition, int]:
    async with asking(settings, committed=True) as reader:
        return await end_offsets_of(reader, all_places(manifest, list(manifest.topics)))
