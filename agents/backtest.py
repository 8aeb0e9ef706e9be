"""Back-test of a rule: the risk service itself, twice over the same stretch of card.requests, in memory, by
the rules in force and with the proposed version among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.risk import assess
from mini_visa import topics
from mini_visa.domain.commands import Authorize, Increment
from mini_visa.domain.payment import Verdict
from mini_visa.domain.risk import Rule, RuleSet
from mini_visa.streams import Record
from mini_visa.streams.processor import Execution
from mini_visa.streams.table import SEPARATOR
from mini_visa.streams.testing import DEAD_LETTERS, MemoryStore
from tables.rules import CURRENT, RULES

DIFFERENCES_MAX: Final = 1_000
"""Differences that are shown one by one; all are counted."""
ROW_BYTES: Final = 250
"""What a row in memory takes beside its key and value: their objects, and a place for them."""


@dataclass(frozen=True)
class Difference:
    """A request that the proposed version would have decided otherwise, or with other hits."""

    account: str
    request_id: str
    amount: int
    before: Verdict
    after: Verdict


@dataclass
class Comparison:
    requests: int = 0
    declined_before: int = 0
    declined_after: int = 0
    changed: int = 0
    """Requests whose response code differs."""
    differences: list[Difference] = field(default_factory=list)

    def add(self, other: Comparison) -> None:
        """With what another partition's comparison found."""
        self.requests += other.requests
        self.declined_before += other.declined_before
        self.declined_after += other.declined_after
        self.changed += other.changed
        room = DIFFERENCES_MAX - len(self.differences)
        self.differences += other.differences[:room]

    def see(self, before: Authorize | Increment, after: Authorize | Increment) -> None:
        assert before.request_id == after.request_id and before.verdict and after.verdict
        old, new = before.verdict, after.verdict
        self.requests += 1
        self.declined_before += bool(old.response_code)
        self.declined_after += bool(new.response_code)
        self.changed += old.response_code != new.response_code
        differs = (old.response_code, old.hits) != (new.response_code, new.hits)
        if differs and len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Difference(before.account, before.request_id, before.amount, old, new))


class BackTest:
    """One partition of card.requests from some offset on, fed in order. Windows begin empty there, so start
    one window before what is of interest, which is from `since` (ms) on."""

    def __init__(self, current: RuleSet, proposed: Rule, *, partitions: int, since: int = 0) -> None:
        """`partitions`: of card.requests. Raises `RuleConflict` for a version that could not be put in
        force."""
        self.comparison = Comparison()
        self._runs = [_service(rules, partitions) for rules in (current, current.put(proposed))]
        self._since = since

    @property
    def held_bytes(self) -> int:
        """About what the memory of both services takes."""
        return sum(store.bytes + ROW_BYTES * len(store.rows) for _, store in self._runs)

    def feed(self, batch: Sequence[Record]) -> None:
        before, after = (list(_passed_on(run, batch)) for run in self._runs)
        for (at, old), (_, new) in zip(before, after, strict=True):
            if at >= self._since:
                self.comparison.see(old, new)


def _service(rules: RuleSet, partitions: int) -> tuple[Execution, MemoryStore]:
    store = MemoryStore()
    table = RULES.name.encode() + SEPARATOR
    row = RULES.encode(rules)
    store.write([(table + CURRENT, row), (table + str(rules.number).encode(), row)])
    counts = {topic.name: partitions for topic in (assess.source, *assess.sinks)}
    return Execution(assess, 0, store, dead_letters=DEAD_LETTERS, partition_counts=counts), store


def _passed_on(
    run: tuple[Execution, MemoryStore], batch: Sequence[Record]
) -> Iterator[tuple[int, Authorize | Increment]]:
    """With their times, ms."""
    execution, store = run
    result = execution.run(batch)
    store.write(result.changes)
    execution.committed()
    for topic, _, _, value, at, _ in result.outputs:
        if topic == topics.ACCOUNT_COMMANDS.name:
            command = topics.ACCOUNT_COMMANDS.decode(value)
            assert isinstance(command, Authorize | Increment)
            yield at, command
