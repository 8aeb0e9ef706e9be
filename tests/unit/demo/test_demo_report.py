"""The closing table and its figures."""

from __future__ import annotations

import io

from rich.console import Console

from mini_visa.demo.checks import Check
from mini_visa.demo.report import Report, latencies_ms
from mini_visa.demo.script import Script, Step
from mini_visa.demo.traffic import Answer, Traffic


def traffic(*latencies: float, code: str = "00") -> Traffic:
    step = Step("authorize", "r", "/", {})
    return Traffic({0: [Answer(step, 200, code, "authorized", False, latency) for latency in latencies]}, 2.0)


def test_percentiles_are_latencies_that_were_measured():
    assert latencies_ms(traffic(*range(1, 101))) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert latencies_ms(traffic(7.0)) == {"p50": 7.0, "p95": 7.0, "p99": 7.0, "max": 7.0}


def test_a_failed_check_is_shown_with_its_first_offenders():
    check = Check("balances", 3, "accounts")
    for number in range(9):
        check.wrong(f"account {number}")
    report = Report(Script(1, []), traffic(1.0), [Check("fine", 1, "call"), check], 3.0)
    console = Console(file=io.StringIO(), width=100)
    report.show(console)
    shown = console.file.getvalue()
    assert not report.passed
    assert "9 wrong" in shown and "account 4" in shown and "account 5" not in shown and "4 more" in shown


def test_the_json_has_what_the_table_has():
    report = Report(Script(5, []), traffic(1.0, 2.0, code="10"), [Check("fine", 1, "call")], 3.0)
    found = report.as_json()
    assert found["passed"] and found["seed"] == 5
    assert (found["payments"], found["approved"], found["codes"]) == (2, 2, {"10": 2})
    assert found["requests_per_s"] == 1.0
