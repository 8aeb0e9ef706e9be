"""What docs/kernel.md says of the code is so: its table, its assertions, its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mini_visa.streams.ownership import TRANSITIONS, State

ROOT = Path(__file__).parents[3]
LINES = (ROOT / "docs" / "kernel.md").read_text().splitlines()
ASSERTION = re.compile(r"\| .+ \| (\w+\.py) \| `(assert [^`]+)` \|")
TEST = re.compile(r"`(test_\w+)(\.py)?`")


def test_the_documented_ways_of_an_ownership_are_the_ones_it_can_go() -> None:
    documented: dict[State, set[State]] = {state: set() for state in State}
    for line in LINES:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not (line.startswith("|") and len(cells) == 3 and cells[1] in list(State)):
            continue
        start, end = cells[0], State(cells[1])
        if start.startswith("any but "):
            left_out = {State(start.removeprefix("any but ")), end}
            starts = set(State) - left_out
        else:
            starts = {State(name) for name in start.split(", ")}
        for state in starts:
            documented[state].add(end)
    assert documented == TRANSITIONS


def test_the_diagram_shows_the_ways_of_the_table() -> None:
    drawn = {tuple(re.findall(r"\w+", line)[:2]) for line in LINES if re.match(r"    \w+ --> \w+", line)}
    assert drawn == {
        (state.value, target.value)
        for state, targets in TRANSITIONS.items()
        for target in targets
        if target is not State.POISONED
    }


@pytest.mark.parametrize(("file", "assertion"), [m.groups() for m in map(ASSERTION.match, LINES) if m])
def test_every_invariant_is_asserted_where_the_document_says(file: str, assertion: str) -> None:
    assert assertion in (ROOT / "mini_visa" / "streams" / file).read_text()


def test_every_test_that_the_document_names_exists() -> None:
    named = {match for line in LINES for match in TEST.findall(line)}
    assert len(named) > 50
    files = list((ROOT / "tests").rglob("test_*.py"))
    modules = {path.stem for path in files}
    defined = {name for path in files for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    for name, file in named:
        assert name in (modules if file else defined), name
