"""Every service is killed under load, its disk wiped, and every payment is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mini_visa.supervisor.system import SERVICES

ROOT = Path(__file__).parents[2]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_payment_is_there_once_whatever_is_killed() -> None:
    """The short form: each service once, all with a disk of their own wiped. The long one:
    `python -m tests.faults.kill --rounds 5`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill", "--rounds", "1", "--json"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=840,
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and report["kills"] == len(SERVICES)
    assert set(report["wiped"]) == {service.name for service in SERVICES} - {
        "gateway", "connector", "clearing-house",
    }  # fmt: skip
    assert report["purchases"] > 100
