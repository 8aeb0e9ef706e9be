"""A short run of faults at random, every kind that is possible here, and the audit after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = 14
MINUTES_MAX = 9
"""On a machine that does other things too; alone it takes two or three."""


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_nothing_is_lost_or_done_twice_whatever_dies(tmp_path: Path) -> None:
    """The long one: `make faults MINUTES=60 SEED=n`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.harness", "--faults", str(FAULTS), "--minutes", str(MINUTES_MAX),
         "--seed", "2", "--shoppers", "12", "--reports", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=1_140,
    )  # fmt: skip
    print(done.stdout[-8_000:])
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-4_000:]
    report = json.loads((tmp_path / "faults-2.json").read_text())
    assert set(report) == {
        "seed", "minutes", "requests", "reads", "reads_given_up", "attempts", "acknowledged", "refused",
        "unknown", "faults", "not_recovered", "lost", "duplicated", "violations", "recovery_s",
        "ended_unasked", "zombies", "batches_looked_at", "batches_not_fenced", "done", "looked_at",
        "left_out",
    }  # fmt: skip
    assert report["lost"] == report["duplicated"] == 0 and report["violations"] == []
    assert not report["not_recovered"]
    assert sum(report["faults"].values()) >= 12 and len(report["faults"]) >= 8
    assert report["acknowledged"] > 100 and report["reads"] > 50
    assert report["zombies"] and report["batches_looked_at"] > 100 and report["batches_not_fenced"] == 0
