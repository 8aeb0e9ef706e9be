"""The kinds of faults. Each is a coroutine that does its harm, undoes what would not heal by itself, and
returns when the system is whole again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from mini_visa import topics
from tests.bench.topiclog import ends, read_all
from tests.faults.client import Client, Recovery
from tests.faults.grounds import Grounds

RECOVERY_S_MAX: Final = 180.0
FROZEN_SESSIONS: Final = 2.0
"""How long a process is frozen, in session time-outs."""
PHASE_S: Final = 4.0
"""How long the client behaves in a certain way."""
PHASE_MAX_S: Final = 60.0
"""Until it has done so once."""
AHEAD_S, BACK_S = 45, -3_600
"""Jumps of a clock. The broker refuses what is more than a minute ahead."""
JUMP_MAX_S: Final = 60.0
"""Until a record has the time of a clock that jumped."""
TRIES_TO_SHRINK: Final = 40
FLOOD: Final = 60
"""Records on each topic."""
POISON: Final = (
    b"",
    b"\x00\xff poison",
    b"{",
    b'{"type":"no_such_message/1"}',
    b'{"type":"tick/1","x":' + b"[" * 5_000,
    b"[]",
)


@dataclass
class Scene:
    grounds: Grounds
    client: Client
    choose: random.Random
    began: float = field(default_factory=time.monotonic)
    struck_at: float = 0.0
    """When the harm of the present fault was done: monotonic seconds."""
    recovery: Recovery | None = None

    def strike(self) -> None:
        """The harm is done now: from here on recovery counts."""
        self.struck_at = time.monotonic()
        self.recovery = self.client.expect()

    async def end(self, name: str, number: signal.Signals) -> None:
        """The harm is a signal to a service; returns when it is up again."""
        child = await self.grounds.hit(name, number)
        self.strike()
        await self.grounds.replaced(name, child)


class Kind(NamedTuple):
    name: str
    harm: Callable[[Scene, str], Awaitable[None]]
    """Calls `Scene.strike` at the moment of harm, unless nothing has to recover."""
    targets: Callable[[Grounds], list[str]]
    """What it can be done to; empty: not here."""


def _everyone(grounds: Grounds) -> list[str]:
    return grounds.services


def _workers(grounds: Grounds) -> list[str]:
    """Services of which there may be several at once."""
    return [name for name in grounds.services if name not in ("gateway", "clearing-house")]


def _with_disk(grounds: Grounds) -> list[str]:
    return grounds.with_tables + (["projection"] if grounds.database is None else [])


async def _kill(scene: Scene, name: str) -> None:
    await scene.end(name, signal.SIGKILL)


async def _stop(scene: Scene, name: str) -> None:
    await scene.end(name, signal.SIGTERM)


async def _wipe(scene: Scene, name: str) -> None:
    """Killed, and the disk is empty when it comes back."""
    grounds = scene.grounds
    hit = {name: await grounds.hit(name, signal.SIGKILL)}
    grounds.wipe.add(name)
    scene.strike()
    if name == "projection":
        # The gateway reads the file that is gone: it goes too, as it would with the machine.
        hit["gateway"] = await grounds.hit("gateway", signal.SIGKILL)
    for each, child in hit.items():
        await grounds.replaced(each, child)


async def _freeze(scene: Scene, name: str) -> None:
    """Frozen beyond its session while another worker takes its work (the gateway and the clearing house have
    no other one); then it wakes and must be fenced: it ends, or it joins anew, and never goes on as the
    member that it was. That it wrote nothing is seen in the broker's files when all is over
    (`tests.faults.fencing`)."""
    grounds = scene.grounds
    seconds = grounds.settings.session_timeout_s * FROZEN_SESSIONS
    before = await grounds.members(name)
    assert before or name not in _workers(grounds), f"{name} is in no group that it could be a zombie of"
    second = await _hire(scene, name, 2) if name in _workers(grounds) else None
    frozen = await grounds.hit(name, signal.SIGSTOP)
    scene.strike()
    with grounds.may_end(frozen):
        try:
            await asyncio.sleep(seconds)
        finally:
            woken = grounds.signal(frozen, signal.SIGCONT)
        assert woken, f"{name} was gone before it could wake"
        await asyncio.sleep(1.0)
        if second is not None:
            await grounds.dismiss(second)
        await grounds.ready()
        if before:
            async with asyncio.timeout(RECOVERY_S_MAX):
                while not (after := await grounds.members(name)):  # noqa: ASYNC110 - only asking tells
                    await asyncio.sleep(0.2)
            assert not before & after, f"{name} woke after {seconds:.0f} s and is still {before & after}"
            grounds.zombies["joined anew" if frozen.code is None else "ended"] += 1


async def _scale(scene: Scene, name: str) -> None:
    """From one worker to three, to two, and back. The harm begins with the first rebalance."""
    second = await _hire(scene, name, 2, scene.strike)
    third = await _hire(scene, name, 3)
    await asyncio.sleep(2.0)
    await scene.grounds.dismiss(second)
    await asyncio.sleep(1.0)
    await scene.grounds.dismiss(third)
    await scene.grounds.ready()


async def _hire(scene: Scene, name: str, number: int, joined: Callable[[], None] = lambda: None) -> str:
    """One more worker, ready. `joined` is called when the service's group has it: then it is rebalanced."""
    before = await scene.grounds.members(name)

    async def join() -> None:
        await scene.grounds.joined(name, before)
        joined()

    hired, _ = await asyncio.gather(scene.grounds.hire(name, number), join())
    return hired


async def _full_disk(scene: Scene, name: str) -> None:
    """The service gets a small disk, which fills up under it; it must end, and go on when there is room. The
    harm is its end: until then it may have had room enough for what it decides."""
    grounds = scene.grounds
    state = grounds.home / "state" / grounds.settings.environment / name
    if state not in grounds.mounted:
        grounds.wipe.add(name)
        grounds.small_disks.add(name)
        await grounds.end(name, signal.SIGTERM)
    child = await grounds.process(name)
    with grounds.may_end(child):
        _shrink(state)
        filler = state / "filler"
        try:
            with filler.open("wb") as file:  # the last pages too
                while True:
                    file.write(bytes(64 << 10))
                    file.flush()
        except OSError:
            pass
        try:
            async with asyncio.timeout(60):
                await child.ended.wait()
            scene.strike()
        finally:
            filler.unlink(missing_ok=True)
            _resize(state, "2g")
        await grounds.replaced(name, child)


def _shrink(mounted: Path) -> None:
    """To what is in use, or a little more: the service goes on writing meanwhile."""
    for more in range(TRIES_TO_SHRINK):
        try:
            _resize(mounted, f"{max(shutil.disk_usage(mounted).used, 1 << 20) + (more << 18)}")
        except subprocess.CalledProcessError:
            if more == TRIES_TO_SHRINK - 1:
                raise
        else:
            return


def _resize(mounted: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", mounted], check=True, capture_output=True)


async def _kill_broker(scene: Scene, name: str) -> None:
    broker = scene.grounds.broker
    assert broker is not None and broker.address
    scene.strike()
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    await scene.grounds.ready()


async def _lose_leader(scene: Scene, topic: str) -> None:
    """The broker that leads a partition dies; it comes back when the others have taken over."""
    cluster = scene.grounds.cluster
    assert cluster is not None
    partition = scene.choose.randrange(scene.grounds.settings.partitions)
    node = cluster.nodes[await scene.grounds.leader_of(topic, partition)]
    assert node.address
    scene.strike()
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(3.0)
    await asyncio.to_thread(node.start)
    await scene.grounds.ready()


async def _cut(scene: Scene, name: str) -> None:
    """No network between a service and the broker, for longer or shorter than its session."""
    await _through_detour(scene, name)
    detour = scene.grounds.detour
    assert detour is not None
    scene.strike()
    detour.cut()
    try:
        await asyncio.sleep(scene.choose.choice((2.0, scene.grounds.settings.session_timeout_s * 1.5)))
    finally:
        detour.heal()
    await scene.grounds.ready()


async def _slow(scene: Scene, name: str) -> None:
    await _through_detour(scene, name)
    detour = scene.grounds.detour
    assert detour is not None
    scene.strike()
    detour.delay_s = 0.15
    try:
        await asyncio.sleep(PHASE_S)
    finally:
        detour.delay_s = 0.0
    await scene.grounds.ready()


async def _through_detour(scene: Scene, name: str) -> None:
    """All of the service's connections to the broker go through the proxy from now on, and nobody else's."""
    grounds, detour = scene.grounds, scene.grounds.detour
    assert detour is not None
    if name not in grounds.detoured:
        before = set(grounds.detoured)
        grounds.detoured.clear()
        for other in before:
            await grounds.end(other, signal.SIGTERM)
        grounds.detoured.add(name)
        await grounds.end(name, signal.SIGTERM)
    assert detour.open, f"{name} has no connection through the proxy: a cut would hit nobody"


async def _double(scene: Scene, _: str) -> None:
    client = scene.client
    client.doubled = True
    try:
        await _phase(lambda: client.doubles, "request was sent twice and answered twice")
    finally:
        client.doubled = False


async def _reorder(scene: Scene, _: str) -> None:
    client = scene.client
    client.reordered = True
    try:
        await _phase(lambda: client.reversals_first, "reversal was answered that was sent first")
    finally:
        client.reordered = False


async def _phase(count: Callable[[], int], what: str) -> None:
    """So long, and until it has happened once: a busy machine takes longer."""
    before, until = count(), time.monotonic() + PHASE_MAX_S
    await asyncio.sleep(PHASE_S)
    while count() == before:
        assert time.monotonic() < until, f"no {what} within {PHASE_MAX_S:.0f} s"
        await asyncio.sleep(PHASE_S / 40)


async def _jump(scene: Scene, _: str) -> None:
    """A second gateway's clock jumps ahead and back an hour while it takes half of the traffic, and what it
    writes has that time."""
    file = scene.grounds.home / "clock"
    file.write_text("0")
    with scene.grounds.gateway_with_clock(file) as (process, address):
        while not await scene.grounds.is_ready(address[1]):
            assert process.poll() is None, "the gateway with a clock of its own ended"
            await asyncio.sleep(0.1)
        broker = scene.grounds.address
        start = await ends(broker, topics.CARD_REQUESTS.name)
        scene.client.gateways.append(address)
        try:
            for offset_s in (AHEAD_S, BACK_S):
                file.write_text(str(offset_s))
                await asyncio.sleep(PHASE_S / 2)
                until = time.monotonic() + JUMP_MAX_S
                while not await _has_time(broker, start, offset_s):
                    assert time.monotonic() < until, f"no record has the time of a clock {offset_s} s ahead"
                    await asyncio.sleep(PHASE_S / 4)
                if offset_s > 0:
                    scene.grounds.clock_ahead_until = time.monotonic() + offset_s
            file.write_text("0")
            await asyncio.sleep(PHASE_S / 2)
        finally:
            scene.client.gateways.remove(address)


async def _has_time(broker: str, start: dict[int, int], offset_s: int) -> bool:
    """Whether a record of card.requests since `start` has the time of a clock that jumped by `offset_s`."""
    written, now_ms = await read_all(broker, topics.CARD_REQUESTS.name, start=start), time.time() * 1_000
    if offset_s > 0:
        return written.last_ms > now_ms + offset_s * 500
    return 0 < written.first_ms < now_ms + offset_s * 500


async def _poison(scene: Scene, _: str) -> None:
    """A flood of records on every topic that are no messages of it: the old favourites and random bytes."""
    settings, choose = scene.grounds.settings, scene.choose
    scene.strike()
    for topic in topics.ALL:
        counts = settings.replies_partitions if topic is topics.GATEWAY_REPLIES else settings.partitions
        partition = choose.randrange(counts)
        values = [*POISON, *(choose.randbytes(choose.randint(1, 300)) for _ in range(FLOOD - len(POISON)))]
        for offset in await scene.grounds.poison(topic.name, partition, values):
            scene.client.note(planted=[topic.name, partition, offset])


async def _kill_database(scene: Scene, _: str) -> None:
    """PostgreSQL goes as in a crash, in the middle of what transactions there are, and recovers."""
    database = scene.grounds.database
    assert database is not None and database.process is not None and database.process.poll() is None
    scene.strike()
    await asyncio.to_thread(database.stop, signal.SIGQUIT)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(database.start)
    await scene.grounds.ready()


def _here(holds: Callable[[Grounds], Any], *targets: str) -> Callable[[Grounds], list[str]]:
    return lambda grounds: list(targets) if holds(grounds) else []


KINDS: Final = (
    Kind("kill", _kill, _everyone),
    Kind("wipe", _wipe, _with_disk),
    Kind("freeze", _freeze, _everyone),
    Kind("stop", _stop, _everyone),
    Kind("kill gateway", _kill, _here(lambda _: True, "gateway")),
    Kind("scale", _scale, _workers),
    Kind("disk full", _full_disk, lambda grounds: grounds.with_tables if os.geteuid() == 0 else []),
    Kind("broker", _kill_broker, _here(lambda grounds: grounds.broker, "broker")),
    Kind("leader", _lose_leader, _here(lambda grounds: grounds.cluster, "account.commands")),
    Kind("network cut", _cut, lambda grounds: ["gateway", *_workers(grounds)] if grounds.detour else []),
    Kind("network slow", _slow, lambda grounds: ["gateway", *_workers(grounds)] if grounds.detour else []),
    Kind("duplicates", _double, _here(lambda _: True, "client")),
    Kind("reordered", _reorder, _here(lambda _: True, "client")),
    Kind("clock", _jump, _here(lambda _: True, "gateway")),
    Kind("poison", _poison, _here(lambda _: True, "topics")),
    Kind("database", _kill_database, _here(lambda grounds: grounds.database, "postgresql")),
)  # fmt: skip
