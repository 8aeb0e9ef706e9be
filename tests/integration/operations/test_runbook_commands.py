"""The commands that runbooks find out with, run on a running system: those that change nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PAGES = Path(__file__).parents[3] / "docs" / "runbooks"
LOOKS = {
    ("doctor",), ("lag",), ("dead-letters", "list"), ("topics", "list"),
    ("broker", "status"), ("keys", "list"), ("readmodel", "rebuild"),
}  # fmt: skip


def test_every_command_that_only_looks_runs_and_finds_nothing_wrong(shell):
    lines = {
        line.removeprefix("mini-visa ").strip()
        for page in PAGES.glob("*.md")
        for block in re.findall(r"```sh\n(.*?)```", page.read_text().split("## Fix")[0], re.S)
        for line in block.splitlines()
        if line.startswith("mini-visa ")
    }
    ran = 0
    for line in sorted(lines):
        words = shlex.split(line)
        if (words[0],) in LOOKS or tuple(words[:2]) in LOOKS:
            assert shell.run(*words), f"mini-visa {line} says nothing"
            ran += 1
    assert ran >= 8
    assert "No dead letters." in shell.run("dead-letters", "list")
    groups = {one["group"] for one in shell.json("lag")}
    assert {"dev.risk.assess", "dev.authorization.decide", "dev.ledger.journal"} <= groups
