"""docs/capacity.md says what scripts/capacity.py reckons."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "capacity.py"


def _script():
    spec = importlib.util.spec_from_file_location("capacity", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["capacity"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_scripts_table():
    assert _script().table() in (ROOT / "docs" / "capacity.md").read_text()


def test_more_load_never_needs_less_and_workers_never_exceed_partitions():
    plan = _script().plan
    plans = [plan(load, 1) for load in (1, 10, 100, 1_000, 10_000, 100_000)]
    for smaller, larger in pairwise(plans):
        assert larger.partitions >= smaller.partitions and larger.log_gib > smaller.log_gib
        assert all(larger.pods[name] >= smaller.pods[name] for name in larger.pods)
    for made in plans:
        assert all(count <= made.partitions for name, count in made.pods.items() if name != "gateway")
    assert plan(10, 2).log_gib == 2 * plan(10, 1).log_gib


def test_the_cost_is_told_when_prices_are_given():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--payments-per-s", "500", "--core-price", "25", "--disk-price", "0.1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "for a million payments" in done.stdout and "partitions 4" in done.stdout
