"""The auditor agrees with the services on every worked life: its rules are written from the same pages, and
share no code. So what changes in a rule, a table or an event has to be told to it too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agents.testing import Pipeline
from audit.auditor import Audit
from audit.evidence import Record
from tests.unit.money_flow.test_lives_through_services import LIVES, take

SERVICES = {
    "decide": "authorization", "journal": "ledger", "settle": "ledger", "balances": "ledger",
    "present": "clearing", "net": "clearing", "compensate": "reversal",
}  # fmt: skip
NOT_HERE = ("velocity", "sagas")
"""Risk is no part of this pipeline, and a life may end before its sagas do."""


class Left:
    """What a pipeline in memory has left, as evidence: one partition, no read model, no history."""

    environment = "dev"
    has_read_model = False

    def __init__(self, flow: Pipeline) -> None:
        self.topics: dict[str, list[Record]] = defaultdict(list)
        sources = {driver.processor.source.name for driver in flow.drivers.values()}
        for name, driver in flow.drivers.items():
            source = driver.processor.source.name
            self.topics[source] = [
                Record(0, one.offset, one.timestamp, one.key, one.value, {}) for one in driver.log
            ]
            for sent in driver.outputs:
                if sent.topic not in sources:
                    log = self.topics[sent.topic]
                    log.append(Record(0, len(log), sent.timestamp, sent.key, sent.value, {}))
            progress = msgspec.msgpack.encode([1, driver.offset, flow.at, ["cluster", b"", b""]])
            rows = [*driver.store.rows.items(), (b"\0progress", progress)]
            self.topics[f"dev.{SERVICES[name]}.{name}.changelog"] = [
                Record(0, offset, flow.at, key, value, {}) for offset, (key, value) in enumerate(rows)
            ]
        self.partitions = dict.fromkeys(self.topics, 1)

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        return iter(self.topics.get(topic, ()))

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        return None

    def history(self) -> Iterator[dict[str, Any]] | None:
        return None


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life["life"].replace(" ", "-"))
def test_the_auditor_agrees_with_the_services(life: dict[str, Any]) -> None:
    flow = Pipeline(**life["account"])
    payments: dict[str, str] = {}
    for step in life["steps"]:
        take(flow, step, payments)
    findings = Audit(Left(flow)).run()
    assert not [line for line in findings.violations if not line.startswith(NOT_HERE)]
    assert findings["account-sums"].looked_at and findings["tables"].looked_at


def test_a_cent_that_is_missing_is_seen() -> None:
    flow = Pipeline()
    flow.capture(flow.authorize("10.00"))
    left = Left(flow)
    row = left.topics["ledger.journal"][0]
    entry = msgspec.json.decode(row.value or b"")
    entry["postings"][0][2] -= 1
    left.topics["ledger.journal"][0] = row._replace(value=msgspec.json.encode(entry))
    findings = Audit(left).run()
    assert all(findings[name].wrong for name in ("journal-balanced", "hash-chain", "journal-complete"))
