"""A new rule, run over the log before it is put in force."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from a_risk_service import NOON, SECOND, RiskService, an_authorize, an_increment, an_outcome

from agents.backtest import BackTest, Comparison
from mini_visa import topics
from mini_visa.domain.commands import PutRule, Tick
from mini_visa.domain.risk import DEFAULT_RULE_SET, Rule, RuleConflict, RuleSet, rule_of
from mini_visa.streams import Record


def a_rule(threshold: int, version: int = 2) -> Rule:
    body = {"metric": "count", "window_s": 60, "threshold": threshold, "outcome": "decline"}
    return rule_of(PutRule(rule="velocity-count-60s", version=version, body=body))


def a_log(*messages) -> list[Record]:
    """One message a second."""
    return [
        Record(
            n, NOON + n * SECOND, getattr(one, "account", "any").encode(), topics.CARD_REQUESTS.encode(one)
        )
        for n, one in enumerate(messages)
    ]


def back_test(log: list[Record], current: RuleSet, proposed: Rule) -> Comparison:
    """In batches of three."""
    test = BackTest(current, proposed, partitions=4)
    for start in range(0, len(log), 3):
        test.feed(log[start : start + 3])
    return test.comparison


def test_decisions_that_would_change_are_counted_and_shown():
    log = a_log(*(an_authorize(f"r{n}") for n in range(12)))
    comparison = back_test(log, DEFAULT_RULE_SET, a_rule(threshold=4))
    assert (comparison.requests, comparison.declined_before, comparison.declined_after) == (12, 2, 8)
    assert comparison.changed == 6
    first = comparison.differences[0]
    assert (first.request_id, first.before.response_code, first.after.response_code) == ("r4", "", "65")
    assert first.after.hits[0].version == 2
    assert len(comparison.differences) == 8, "two are declined by both, by another version"


def test_it_decides_as_the_service_with_that_rule_would():
    messages = [
        *(an_authorize(f"r{n}", amount=700_00 * (n % 3)) for n in range(8)), an_outcome("51"), Tick(),
        an_increment("i1"), an_authorize("r3"), *(an_authorize(f"s{n}") for n in range(8)),
    ]  # fmt: skip
    service = RiskService()
    service.ask(PutRule(rule="velocity-count-60s", version=2, body={
        "metric": "count", "window_s": 60, "threshold": 4, "outcome": "decline"}))  # fmt: skip
    verdicts = [service.ask(one, at=NOON + n * SECOND) for n, one in enumerate(messages)]
    declined = sum(verdict is not None and verdict.response_code != "" for verdict in verdicts)
    assert back_test(a_log(*messages), DEFAULT_RULE_SET, a_rule(4)).declined_after == declined > 5


def test_the_same_rule_under_a_new_number_changes_no_decision():
    log = a_log(*(an_authorize(f"r{n}") for n in range(12)))
    comparison = back_test(log, DEFAULT_RULE_SET, a_rule(threshold=10))
    assert comparison.changed == 0 and comparison.declined_after == 2


def test_a_version_that_could_not_be_put_in_force_is_refused():
    with pytest.raises(RuleConflict):
        back_test([], DEFAULT_RULE_SET, a_rule(threshold=1, version=1))


def test_garbage_in_the_log_is_passed_over():
    log = [*a_log(an_authorize("r0")), Record(1, NOON, b"k", b"\xff"), Record(2, NOON, None, None)]
    assert back_test(log, DEFAULT_RULE_SET, a_rule(1)).requests == 1


def test_shown_differences_are_bounded(monkeypatch):
    monkeypatch.setattr("agents.backtest.DIFFERENCES_MAX", 2)
    log = a_log(*(an_authorize(f"r{n}") for n in range(9)))
    comparison = back_test(log, DEFAULT_RULE_SET, a_rule(threshold=1))
    assert (len(comparison.differences), comparison.changed) == (2, 8)


def test_what_it_takes_of_memory_is_known_while_it_grows():
    test = BackTest(DEFAULT_RULE_SET, a_rule(1), partitions=4)
    sizes = [test.held_bytes]
    for start in range(0, 3_000, 1_000):
        test.feed(a_log(*(an_authorize(f"r{start + n}") for n in range(1_000))))
        sizes.append(test.held_bytes)
    grown = [after - before for before, after in pairwise(sizes)]
    assert all(1_000 * 2 * 300 < one < 1_000 * 2 * 600 for one in grown), "a row for each in two services"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not bound a process's memory")
def test_a_process_that_would_take_too_much_ends_with_what_to_do():
    program = "from mini_visa.backtest import bounded_memory\nwith bounded_memory(): bytearray(300 << 20)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "needs more than 288 MiB of memory: choose a shorter one" in ended.stderr
