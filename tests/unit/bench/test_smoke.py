"""The guard, and the harness of the peers: a decision that is wrong, missing or made twice is an error."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.peers import reckon
from tests.bench.report import Figure
from tests.bench.smoke import CPU_RATIO_MIN, RATIO_MIN, check_decisions, verdict
from tests.bench.w1.rule import oracle

RIGHT = oracle(100)


def test_right_decisions_are_no_error():
    check_decisions("mini-visa", RIGHT, dict(RIGHT), 100)


def test_a_wrong_and_a_missing_decision_are_counted():
    found = {**RIGHT, "r0000001": ("c00000", False, "velocity", 0)}
    del found["r0000002"]
    with pytest.raises(RuntimeError, match="2 of 100 decisions wrong or missing"):
        check_decisions("mini-visa", RIGHT, found, 99)


def test_a_decision_made_twice_is_an_error_though_both_are_right():
    with pytest.raises(RuntimeError, match="101 decisions for 100 requests"):
        check_decisions("mini-visa", RIGHT, dict(RIGHT), 101)


def _verdict(ratios: tuple[float, ...], cpu_ratios: tuple[float, ...]) -> str:
    return verdict(Figure("ratio", "x", ratios), Figure("cpu", "x", cpu_ratios), RATIO_MIN)


def test_one_disturbed_turn_is_no_slow_kernel():
    assert _verdict((RATIO_MIN / 2, RATIO_MIN), (CPU_RATIO_MIN, CPU_RATIO_MIN)) == ""


def test_slow_in_every_turn_is_an_error():
    assert "records/s" in _verdict((RATIO_MIN - 1, RATIO_MIN - 2), (CPU_RATIO_MIN, CPU_RATIO_MIN))


@pytest.mark.parametrize("found", [CPU_RATIO_MIN - 1, float("nan")])
def test_too_much_cpu_time_is_an_error_and_so_is_none(found: float):
    assert "CPU time" in _verdict((RATIO_MIN,), (found,))


def _run(peer: str, **more: Any) -> dict[str, Any]:
    found = {"wrong": 0, "missing": 0, "records_out": 1_000, "visible_seconds": 0.5}
    return {"peer": peer, "cpu_s": 1.0, "peak_rss_mib": 100, **found, **more}


def test_peers_are_compared_by_turn():
    runs = [_run("mini-visa"), _run("kstreams-eos", visible_seconds=2.0)]
    result = reckon(runs, ["mini-visa", "kstreams-eos"], records=1_000, reps=1)
    ratio = result.figure("w1.ratio.kstreams-eos")
    assert ratio is not None
    assert ratio.values == (4.0,)
    assert result.error == ""


@pytest.mark.parametrize("fault", [{"records_out": 1_001}, {"wrong": 1}, {"missing": 1}])
def test_a_peer_run_with_a_fault_is_an_error_and_gives_no_figure(fault: dict[str, int]):
    result = reckon([_run("mini-visa", **fault)], ["mini-visa"], records=1_000, reps=1)
    assert result.error.endswith("0 good runs of 1")
    assert not result.figures
