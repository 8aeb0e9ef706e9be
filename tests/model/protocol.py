"""The kernel's protocol as a model that is searched completely: acquire, run, release, and all that can go
wrong between any two of their steps.

    python -m tests.model.protocol          (or: make model)

One partition with a few records, two workers, the broker's side of transactions, a changelog, a store on each
worker's disk. Nothing is assumed about the group: any worker may believe at any time that the partition is
its own, so one that was frozen and wakes is simply one that goes on. Between any two steps a worker may die,
with its disk or without; a produce may be refused; a commit's answer may get lost; a commit that is on its
way may arrive after its sender has died; the group may forget what it was told, and remember it later.
`check` looks at every state that can come to be, and says how the first bad one is reached. `Rules` takes
single rules out of the protocol: each must be found out.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Rules(NamedTuple):
    """What the protocol keeps; the model must find out when one of them is not kept."""

    fence_before_read: bool = True
    """Offset and changelog are read after InitProducerId, never before."""
    fence: bool = True
    """Starting the producer raises the epoch and aborts what is open."""
    await_every_acknowledgement: bool = True
    """A transaction one of whose batches was refused is not committed."""
    store_after_commit: bool = True
    restore_to_the_end: bool = True
    """All of the changelog's committed records are applied before the first batch."""
    one_transaction: bool = True
    """A source offset is committed in the transaction whose progress record says so."""
    unknown_outcome_ends: bool = True
    """A commit whose answer does not come is not taken for one that did not happen."""
    begin_at_the_changelog: bool = True
    """The first batch begins where the changelog's progress is, also when the group has forgotten it."""


class Bounds(NamedTuple):
    records: int = 2
    batch_records_max: int = 2
    workers: int = 2
    deaths: int = 2
    refusals: int = 1
    acquisitions: int = 3
    lapses: int = 0
    """How often the group forgets."""


ALL_RULES = Rules()
BOUNDS = Bounds()


class Entry(NamedTuple):
    """A committed transaction's part in the changelog: the row, and the progress record."""

    row: int
    """The model's only row: how many records were counted. Outputs carry it, so each is a witness."""
    next_offset: int
    told: int
    """The group's committed offset: not every transaction carries it."""


EMPTY = Entry(0, 0, 0)


class Open(NamedTuple):
    """A transaction at the broker that is neither committed nor aborted."""

    outputs: tuple[int, ...] = ()
    entry: Entry | None = None
    offset: int | None = None


class Broker(NamedTuple):
    epoch: int = 0
    open: Open | None = None
    on_its_way: int = 0
    """The epoch of a commit that was sent and has not arrived; 0: there is none."""
    answer: int = 0
    """The epoch of a commit that was done and whose answer has not been read."""
    offset: int = 0
    """The group's committed offset."""
    sink: tuple[int, ...] = ()
    changelog: tuple[Entry, ...] = ()


class Disk(NamedTuple):
    entry: Entry = EMPTY
    applied: int = 0
    """How many of the changelog's entries are in it."""


class Worker(NamedTuple):
    at: str = "idle"
    epoch: int = 0
    committed: int = -1
    """The group's offset, as read while acquiring."""
    end: int = -1
    """The changelog's end, as read while acquiring."""
    batch: int = 0
    """The records of the batch at hand."""
    tells: bool = False
    """Its transaction carries the group's offset."""
    refused: bool = False
    wiped: bool = False
    disk: Disk = Disk()


class State(NamedTuple):
    broker: Broker
    workers: tuple[Worker, ...]
    deaths: int = 0
    refusals: int = 0
    acquisitions: int = 0
    lapses: int = 0


Become = Callable[..., State]
"""The state with one worker changed, and maybe the broker."""


class Wrong(Exception):
    """A state that must never be."""


def steps(state: State, rules: Rules, bounds: Bounds) -> Iterator[tuple[str, State]]:
    """Everything that may happen next."""
    broker = state.broker
    if broker.on_its_way:
        # It arrives: the coordinator commits for the newest epoch only. Whether anybody still waits is open.
        if broker.on_its_way == broker.epoch and broker.open is not None:
            done = broker.open
            yield (
                "broker commits",
                state._replace(
                    broker=broker._replace(
                        open=None,
                        on_its_way=0,
                        answer=broker.on_its_way,
                        sink=broker.sink + done.outputs,
                        changelog=broker.changelog + ((done.entry,) if done.entry else ()),
                        offset=broker.offset if done.offset is None else done.offset,
                    )
                ),
            )
        else:
            yield "broker refuses a commit", state._replace(broker=broker._replace(on_its_way=0))
    told = broker.changelog[-1].told if broker.changelog else 0
    if state.lapses < bounds.lapses:
        for offset in range(broker.offset):
            forgetful = state._replace(broker=broker._replace(offset=offset), lapses=state.lapses + 1)
            yield f"the group goes back to {offset}", forgetful
    if broker.offset < told:
        yield "the group remembers", state._replace(broker=broker._replace(offset=told))
    for number, worker in enumerate(state.workers):

        def become(broker: Broker = broker, number: int = number, **changes: object) -> State:
            workers = list(state.workers)
            workers[number] = workers[number]._replace(**changes)
            return state._replace(broker=broker, workers=tuple(workers))

        for what, following in _worker(worker, state, rules, bounds, become):
            yield f"worker {number} {what}", following
        if worker.at != "idle" and state.deaths < bounds.deaths:
            for disk, how in ((worker.disk, ""), (Disk(), " with its disk")):
                dead = become(**{**_dead(worker), "disk": disk})
                yield f"worker {number} dies{how}", dead._replace(deaths=state.deaths + 1)


def _worker(
    worker: Worker, state: State, rules: Rules, bounds: Bounds, become: Become
) -> Iterator[tuple[str, State]]:
    """The steps of one worker: those of ownership.py and commit.py, by their names in docs/kernel.md."""
    broker = state.broker
    mine = worker.epoch == broker.epoch or not rules.fence
    die = _dead(worker)
    match worker.at:
        case "idle":
            if state.acquisitions < bounds.acquisitions:
                begun = become(at="acquiring")
                yield "is assigned", begun._replace(acquisitions=state.acquisitions + 1)
        case "acquiring" if rules.fence_before_read:
            yield "fences", _fence(broker, rules, become, at="fenced")
        case "acquiring":
            yield "reads", become(at="read", committed=broker.offset, end=len(broker.changelog))
        case "read":
            yield "fences", _fence(broker, rules, become, at="restoring")
        case "fenced":
            yield "reads", become(at="restoring", committed=broker.offset, end=len(broker.changelog))
        case "restoring":
            applied, end = worker.disk.applied, worker.end
            if applied < end and rules.restore_to_the_end:
                disk = Disk(broker.changelog[applied], applied + 1)
                yield "restores", become(disk=disk)
            elif worker.disk.entry.told == worker.committed or not rules.restore_to_the_end:
                yield "runs", become(at="running")
            elif applied and not worker.wiped:
                yield "wipes", become(disk=Disk(), wiped=True)
            elif worker.committed < worker.disk.entry.told and rules.begin_at_the_changelog:
                yield "tells the group anew", become(at="handled", batch=0, tells=True)
            elif worker.committed < worker.disk.entry.told:
                entry = worker.disk.entry._replace(next_offset=worker.committed, told=worker.committed)
                yield "runs where the group is", become(at="running", disk=worker.disk._replace(entry=entry))
            else:
                raise Wrong("tables and offset disagree, with nothing changed from outside")
        case "running":
            entry = worker.disk.entry
            for count in range(1, min(bounds.batch_records_max, bounds.records - entry.next_offset) + 1):
                for tells in (False, True):
                    yield f"handles {count}", become(at="handled", batch=count, tells=tells)
            if entry.told < entry.next_offset:
                yield "has an offset to tell", become(at="handled", batch=0, tells=True)
            yield "is released", become(**die)
        case "handled":
            yield "begins", become(at="begun", refused=False)
        case "begun":
            # Outputs, rows and offset are on their way together: they may arrive in any order.
            yield from _send(worker, state, rules, bounds, become, mine)
            yield "is released in a batch", become(**die)
        case "sent":
            if worker.refused and rules.await_every_acknowledgement:
                aborted = broker._replace(open=None) if mine else broker
                yield "aborts and ends", become(aborted, **die)
            elif not rules.store_after_commit:
                yield "stores early", become(at="stored early", disk=_stored(worker))
            elif broker.on_its_way == 0:
                yield "sends the commit", become(broker._replace(on_its_way=worker.epoch), at="committing")
        case "stored early":
            if broker.on_its_way == 0:
                yield "sends the commit", become(broker._replace(on_its_way=worker.epoch), at="committing")
        case "committing":
            if broker.answer == worker.epoch:
                yield "is told", become(broker._replace(answer=0), at="committed")
            elif broker.on_its_way != worker.epoch:
                yield "is fenced and ends", become(**die)
            if broker.on_its_way == worker.epoch or broker.answer == worker.epoch:
                given_up = (
                    die if rules.unknown_outcome_ends else {"at": "running", "batch": 0, "tells": False}
                )
                yield "waits too long and ends", become(**given_up)
        case "committed":
            yield "stores", become(at="running", batch=0, tells=False, disk=_stored(worker))


def _fence(broker: Broker, rules: Rules, become: Become, at: str) -> State:
    """InitProducerId: a commit that has arrived is finished first, an open transaction is aborted."""
    epoch = broker.epoch + 1
    fenced = broker._replace(epoch=epoch, open=None) if rules.fence else broker._replace(epoch=epoch)
    return become(fenced, at=at, epoch=epoch)


def _send(
    worker: Worker, state: State, rules: Rules, bounds: Bounds, become: Become, mine: bool
) -> Iterator[tuple[str, State]]:
    broker = state.broker
    if not mine:
        yield "is fenced and ends", become(**_dead(worker))
        return
    current = broker.open or Open()
    entry, upto = worker.disk.entry, _upto(worker)
    missing = []
    if worker.batch and not current.outputs:
        outputs = tuple(range(entry.row + 1, upto.row + 1))
        missing.append(("outputs", current._replace(outputs=outputs)))
    if current.entry is None:
        missing.append(("rows and progress", current._replace(entry=upto)))
    if rules.one_transaction and worker.tells and current.offset is None:
        missing.append(("the offset", current._replace(offset=upto.told)))
    for what, following in missing:
        last = len(missing) == 1
        at = "sent" if last else "begun"
        if last and worker.tells and not rules.one_transaction:
            broker = broker._replace(offset=upto.told)
        yield f"sends {what}", become(broker._replace(open=following), at=at)
        if state.refusals < bounds.refusals and what != "the offset":
            refused = become(broker._replace(open=current), at="sent", refused=True)
            yield f"sends {what}, refused", refused._replace(refusals=state.refusals + 1)


def _dead(worker: Worker) -> dict[str, Any]:
    """Nothing is left of it but its disk."""
    return Worker(disk=worker.disk)._asdict()


def _upto(worker: Worker) -> Entry:
    """What the batch at hand makes of the tables."""
    row, next_offset, told = worker.disk.entry
    next_offset += worker.batch
    return Entry(row + worker.batch, next_offset, next_offset if worker.tells else told)


def _stored(worker: Worker) -> Disk:
    return Disk(_upto(worker), worker.disk.applied + 1)


def inspect(state: State) -> None:
    """Raises `Wrong` unless what readers see, the tables, the progress and the offset are one."""
    broker = state.broker
    if broker.sink != tuple(range(1, len(broker.sink) + 1)):
        raise Wrong(f"outputs are lost or repeated: {broker.sink}")
    last = broker.changelog[-1] if broker.changelog else EMPTY
    same = last.told == broker.offset if not state.lapses else last.told >= broker.offset
    if not (len(broker.sink) == last.row == last.next_offset and same):
        raise Wrong(f"outputs {broker.sink}, table {last}, committed offset {broker.offset}")
    for number, worker in enumerate(state.workers):
        applied = worker.disk.applied
        if applied > len(broker.changelog):
            raise Wrong(f"worker {number}'s store is ahead of Kafka")
        if worker.disk.entry != (broker.changelog[applied - 1] if applied else EMPTY):
            raise Wrong(f"worker {number}'s store is not what the changelog says")


@dataclass(frozen=True)
class Result:
    states: int
    seconds: float
    wrong: str
    """Empty: every state is good, and from every one of them all records can still be processed."""
    trace: tuple[str, ...]
    """How the first bad state comes to be."""


def check(rules: Rules = ALL_RULES, bounds: Bounds = BOUNDS) -> Result:
    """Look at every state, in the order of the number of steps to it."""
    began = time.monotonic()
    start = State(Broker(), (Worker(),) * bounds.workers)
    came: dict[State, tuple[State | None, str]] = {start: (None, "")}
    queue = deque([start])

    def trace(state: State | None) -> tuple[str, ...]:
        found = []
        while state is not None:
            state, what = came[state]
            found.append(what)
        return tuple(reversed(found[:-1]))

    before: dict[State, list[State]] = {}
    complete = []
    while queue:
        state = queue.popleft()
        try:
            inspect(state)
            following = list(steps(state, rules, bounds))
        except Wrong as wrong:
            return Result(len(came), time.monotonic() - began, str(wrong), trace(state))
        if state.broker.offset == bounds.records:
            complete.append(state)
        for what, other in following:
            before.setdefault(other, []).append(state)
            if other not in came:
                came[other] = state, what
                queue.append(other)
    # Nothing is stuck: while a worker may still be assigned, all records can be processed.
    good = set(complete)
    queue = deque(complete)
    while queue:
        for state in before.get(queue.popleft(), ()):
            if state not in good:
                good.add(state)
                queue.append(state)
    for state in came:
        if state not in good and state.acquisitions < bounds.acquisitions:
            return Result(len(came), time.monotonic() - began, "it is stuck", trace(state))
    return Result(len(came), time.monotonic() - began, "", ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--without", choices=Rules._fields, help="take this rule out")
    for name, default in Bounds()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args())
    without = options.pop("without")
    result = check(Rules(**({without: False} if without else {})), Bounds(**options))
    print(f"{result.states:,} states in {result.seconds:.1f} s")
    for what in result.trace:
        print(f"  {what}")
    print(
        f"WRONG: {result.wrong}" if result.wrong else "all good: nothing lost, nothing twice, nothing stuck"
    )
    raise SystemExit(bool(result.wrong))


if __name__ == "__main__":
    main()
