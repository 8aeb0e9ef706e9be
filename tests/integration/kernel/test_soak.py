"""The soak, short. `python -m tests.integration.kernel.soak --help` runs it for as long as you like."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import soak

pytestmark = pytest.mark.broker


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="known: on a busy machine the last worker, stopped right after the others were killed, may not "
    "end with 0. Every record is processed by then; what is open is that one clean stop",
)
@pytest.mark.timeout(900)
async def test_random_faults_lose_and_repeat_nothing(broker: str, tmp_path: Path) -> None:
    counts = await soak(broker, seconds=40, rate=1_000, every_s=3.0, seed=20261123, home=tmp_path)
    assert counts["items"] > 5_000 and counts["outputs"] > 5_000
