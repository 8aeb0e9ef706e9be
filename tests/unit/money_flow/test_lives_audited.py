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
from audit.evidence import READ_MODEL_TABLES, Record
from audit.findings import Findings
from audit.rules import Holds
from audit.settlement import Cycles
from mini_visa import topics
from mini_visa.domain.commands import RecordClearing, RefundPayment, ReversePayment
from mini_visa.domain.risk import DEFAULT_RULES, RuleInForce
from mini_visa.domain.turn import Turn
from mini_visa.readmodel.views import ALL
from mini_visa.readmodel.writes import Changes
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
    begins: dict[str, int] = {}
    holds = Holds()
    cycle_ms = 86_400_000
    committed: dict[str, dict[str, int]] = {}

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


class Projected(Left):
    """With the rows that the projection makes of it."""

    has_read_model = True

    def __init__(self, flow: Pipeline) -> None:
        super().__init__(flow)
        rule = RuleInForce(rule=DEFAULT_RULES[1], at=flow.at)
        self.topics["risk.rules"] = [Record(0, 0, flow.at, b"", topics.RISK_RULES.encode(rule), {})]
        self.partitions = dict.fromkeys(self.topics, 1)
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in READ_MODEL_TABLES}
        for view in ALL:
            records, changes = self.topics.get(view.topic.name, []), Changes()
            view.rows(0, records, changes, lambda record, reason: pytest.fail(reason))
            for write in view.writes:
                rows = changes.rows(write).values()
                self.tables[write.table.name] += [dict(zip(write.columns, row, strict=True)) for row in rows]
            if records:
                self.tables["positions"].append(
                    {"topic": view.topic.name, "partition": 0, "next_offset": records[-1].offset + 1}
                )

    def rows(self, table: str) -> Iterator[dict[str, Any]] | None:
        return iter(self.tables[table])


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life["life"].replace(" ", "-"))
def test_the_auditor_agrees_with_the_services(life: dict[str, Any]) -> None:
    flow = Pipeline(**life["account"])
    payments: dict[str, str] = {}
    for step in life["steps"]:
        take(flow, step, payments)
    findings = Audit(Projected(flow)).run()
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


def change(left: Left, topic: str, kind: str, **fields: Any) -> None:
    """The last message of a kind says something else."""
    log = left.topics[topic]
    for index in reversed(range(len(log))):
        message = msgspec.json.decode(log[index].value or b"")
        if message["type"].startswith(kind):
            log[index] = log[index]._replace(value=msgspec.json.encode(message | fields))
            return
    raise AssertionError(f"there is no {kind}")


def disputed() -> Pipeline:
    """A payment with a chargeback of all and a represented one of a part."""
    flow = Pipeline()
    payment = flow.authorize("10.00")
    flow.capture(payment)
    flow.clear(payment)
    flow.charge_back(payment, "4.00")
    flow.charge_back(payment, "6.00")
    flow.represent(payment, 1)
    return flow


def test_the_end_of_another_chargeback_is_seen() -> None:
    left = Left(disputed())
    change(left, "account.commands", "represent_chargeback", n=2)
    change(left, "payment.events", "chargeback_represented", n=2)
    assert Audit(left).run()["decisions"].wrong


def test_a_chargeback_that_is_still_open_after_its_end_is_seen() -> None:
    left = Left(disputed())
    log = left.topics["payment.events"]
    event = msgspec.json.decode(log[-1].value or b"")
    event["payment"]["chargebacks"][0].pop("state")
    log[-1] = log[-1]._replace(value=msgspec.json.encode(event))
    assert Audit(left).run()["payment-sums"].wrong


def test_a_part_that_nobody_asked_to_approve_is_seen() -> None:
    flow = Pipeline(limit="5.00")
    flow.authorize("10.00", partial_approval=True)
    left = Left(flow)
    change(left, "account.commands", "authorize", partial_approval=False)
    assert Audit(left).run()["decisions"].wrong


def test_what_is_decided_while_a_hold_is_overdue_is_seen() -> None:
    flow = Pipeline()
    flow.authorize("10.00")
    flow.authorize("20.00")
    left = Left(flow)
    log = left.topics["payment.events"]
    event = msgspec.json.decode(log[-1].value or b"")
    event["at"] += 8 * 86_400_000
    log[-1] = log[-1]._replace(value=msgspec.json.encode(event))
    examples = Audit(left).run()["decisions"].examples
    assert any("a hold that ended at" in example for example in examples)


def wrong(flow: Pipeline) -> list[str]:
    return [line for line in Audit(Projected(flow)).run().violations if not line.startswith(NOT_HERE)]


def test_a_hold_that_no_tick_ends_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an account that does nothing more."""
    flow = Pipeline()
    flow.authorize("10.00")
    flow.tick(8 * 86_400)
    flow.tick(1)
    assert not wrong(flow)
    flow.authorize("20.00")
    monkeypatch.setattr(Turn, "expire_due", lambda turn, limit=None: 0)
    flow.tick(8 * 86_400)
    flow.tick(1)
    assert [line.partition(":")[0] for line in wrong(flow)] == ["decisions"]


def test_a_refusal_without_a_reason_is_seen() -> None:
    flow = Pipeline()
    flow.capture(flow.authorize("10.00"), "11.00")
    left = Left(flow)
    assert not [line for line in Audit(left).run().violations if not line.startswith(NOT_HERE)]
    change(left, "account.commands", "capture", amount=1_000)
    assert Audit(left).run()["decisions"].wrong == 1


def test_a_reversal_that_finds_no_reason_not_to_cancel_is_seen() -> None:
    """By the id of a request that has not come."""
    flow = Pipeline()
    flow.authorize("10.00")
    refused = {"http_status": 409, "reason": "no"}
    flow.command(ReversePayment, request_id="undo", original_request_id="later")
    assert not wrong(flow)
    left = Left(flow)
    change(left, "payment.events", "request_cancelled", type="request_refused/1", **refused)
    assert Audit(left).run()["command-decided-once"].wrong == 1


def release(flow: Pipeline, payment: str) -> None:
    flow.command(ReversePayment, payment_id=payment, client="reversal", request_id=f"release-{payment}-0-0")


def test_reversal_releases_only_what_a_rejected_capture_left() -> None:
    flow = Pipeline()
    payment = flow.authorize("10.00")
    flow.capture(payment, "4.00", final=False)
    flow.clear(payment, accepted=False)
    release(flow, payment)
    assert not wrong(flow)
    release(flow, flow.authorize("20.00"))
    assert [line.partition(":")[0] for line in wrong(flow)] == ["event-has-request"]


def test_clearing_tells_outcomes_and_nothing_else_and_nobody_else_does() -> None:
    flow = Pipeline()
    payment = flow.authorize("10.00")
    flow.capture(payment)
    flow.clear(payment)
    assert not wrong(flow)
    flow.command(RefundPayment, payment_id=payment, client="clearing", request_id="x", amount=100)
    assert len(wrong(flow)) == 1
    other = flow.authorize("20.00")
    flow.capture(other)
    flow.command(RecordClearing, payment_id=other, n=1, accepted=True)
    assert [line.partition(":")[0] for line in wrong(flow)] == ["event-has-request"] * 2


def noted() -> Projected:
    """A payment with notes, one with a character that no database takes."""
    flow = Pipeline()
    flow.authorize("10.00", metadata={"order": "4711", "note": "a\0b"})
    return Projected(flow)


def test_notes_and_rules_are_rows_too() -> None:
    left = noted()
    assert len(left.tables["payment_metadata"]) == 2 and left.tables["rules"]
    assert not [line for line in Audit(left).run().violations if not line.startswith(NOT_HERE)]


@pytest.mark.parametrize(
    ("table", "column"),
    [("payment_metadata", "value"), ("rules", "body"), ("rules", "at"), ("accounts", "place")],
)
def test_a_row_that_is_another_is_seen(table: str, column: str) -> None:
    left = noted()
    left.tables[table][0][column] = "another"
    assert Audit(left).run()["read-model"].wrong


def test_a_rule_that_nobody_put_in_force_is_seen() -> None:
    left = noted()
    left.tables["rules"].append({**left.tables["rules"][0], "version": 7})
    assert Audit(left).run()["read-model"].wrong


@pytest.mark.parametrize(("days", "right"), [(1, True), (365, False)])
def test_a_cycle_that_no_tick_closes_is_seen(days: int, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles are told to last a day."""
    monkeypatch.setattr("agents.clearing.CYCLE_MS", days * 86_400_000)
    flow = Pipeline()
    payment = flow.authorize("10.00")
    flow.capture(payment)
    flow.clear(payment)
    flow.tick(2 * 86_400)
    flow.tick(1)
    assert [line.partition(":")[0] for line in wrong(flow)] == ([] if right else ["settlement"])


@pytest.mark.parametrize(("first", "end", "right"), [(0, 2, True), (1, 2, False), (0, 1, True)])
def test_a_cycle_that_leaves_an_item_out_is_seen(first: int, end: int, right: bool) -> None:
    item = {"merchant_id": "m1", "currency": "USD", "sale": 10}
    findings = Findings()
    cycles = Cycles(findings, [(0, item), (1, item)])
    count = end - first
    cycles.tell({"merchant_id": "m1", "currency": "USD", "items": count, "sales": 10 * count})
    cycles.close({"cycle": "c", "positions": 1, "first_item": first, "end_item": end}, "here")
    assert (not findings["settlement"].wrong) == right
    assert cycles.open["m1", "USD"] == 10 * (2 - end)
