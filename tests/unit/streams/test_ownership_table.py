"""The table in docs/kernel.md is the table in the code."""

from __future__ import annotations

from pathlib import Path

from mini_visa.streams.ownership import TRANSITIONS, State

DOCUMENT = Path(__file__).parents[3] / "docs" / "kernel.md"


def test_the_documented_ways_of_an_ownership_are_the_ones_it_can_go() -> None:
    documented: dict[State, set[State]] = {state: set() for state in State}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[1] in list(State):
            if cells[0].startswith("any"):
                continue  # poisoned: from wherever there is something to lose
            for name in cells[0].split(", "):
                documented[State(name)].add(State(cells[1]))
    assert documented == {state: set(targets) - {State.POISONED} for state, targets in TRANSITIONS.items()}
