"""Evidence is replaced by a whole run only, and says how to get it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import command_of, parser, partial
from tests.bench.report import Figure, Result, machine, read_results, write_json


def _result(value: float, **more: str) -> Result:
    return Result("risk", "make bench ARGS=risk", [Figure("risk.per_s", "records/s", (value,))], **more)


def test_a_whole_result_is_read_back_with_where_it_was_measured(tmp_path: Path):
    path = write_json(_result(1.0), machine(), tmp_path)
    assert path.name == "risk.json"
    kept = json.loads(path.read_text())
    assert kept["command"] == "make bench ARGS=risk"
    assert kept["machine"]["commit"]
    assert {"load1_before", "load1_after"} <= set(kept["machine"])
    assert read_results(tmp_path) == {"risk": _result(1.0)}


@pytest.mark.parametrize("why", [{"error": "a count is wrong"}, {"partial": "--reps 1"}])
def test_what_failed_or_is_not_whole_replaces_nothing_and_is_not_drawn(tmp_path: Path, why: dict[str, str]):
    write_json(_result(1.0), {}, tmp_path)
    assert write_json(_result(2.0, **why), {}, tmp_path).name == "risk.partial.json"
    assert read_results(tmp_path) == {"risk": _result(1.0)}


def test_a_failed_result_of_before_is_not_drawn(tmp_path: Path):
    path = write_json(_result(1.0), {}, tmp_path)
    path.write_text(path.read_text().replace('"error": ""', '"error": "too slow"'))
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ""),
        ("all", ""),
        ("all --only http", ""),
        ("all --reps 1", "--reps 1"),
        ("authorization", ""),
        ("authorization --hot --records 200000 --reps 5", ""),
        ("authorization --records 20000", "--records 20000"),
        ("risk --profile out", "--profile"),
        ("http --rate 500 --rate 1000 --rate 1500", ""),
        ("http --rate 100 --seconds 5", "--seconds 5.0, --rate [100]"),
        ("parts authorization --reps 2", "--reps 2"),
        ("growth --accounts-max 25000", "--accounts-max 25000"),
        ("peers --peers mini-visa", "--peers mini-visa"),
        ("w1 --records 1500000", ""),
        ("smoke --reps 2", ""),
        ("failover --kills 1", "--kills 1"),
    ],
)
def test_less_than_the_whole_benchmark_is_seen(arguments: str, expected: str):
    assert partial(parser().parse_args(arguments.split())) == expected


def test_the_command_can_be_typed():
    assert command_of([]) == "make bench"
    assert command_of(["risk"]) == "make bench ARGS=risk"
    assert command_of(["risk", "--reps", "5"]) == "make bench ARGS='risk --reps 5'"
