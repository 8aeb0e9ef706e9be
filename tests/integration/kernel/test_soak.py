"""The soak, short. `python -m tests.integration.kernel.soak --help` runs it for as long as you like."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import soak

pytestmark = pytest.mark.broker


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_random_faults_lose_and_repeat_nothing(broker: str, tmp_path: Path) -> None:
    report = await soak(
        broker, seconds=40, rate=1_000, every_s=3.0, records_min=40_000, seed=20261123, home=tmp_path
    )
    assert report["compared"]["items"] >= 40_000 and report["compared"]["outputs"] > 38_000
    assert report["leaves"] and report["joins"] > 2
