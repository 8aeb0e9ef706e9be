"""Five times what the system can take: it says no to what is too much, and recovers by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_visa.settings import Settings
from tests.integration.limits.overload import run

IN_FLIGHT_MAX = 64
"""So low that five times the rate is too much on any machine. The long form has the default."""
MEMORY_MB_MAX = 120
"""That any process may grow by during the overload, caches included."""


@pytest.mark.broker
@pytest.mark.slow
async def test_what_is_too_much_is_refused_and_when_it_is_over_all_is_as_before(tmp_path: Path) -> None:
    found = await run(6.0, 1, tmp_path / "home", gateway_in_flight_max=IN_FLIGHT_MAX)
    overload, calm, after = found.overload, found.calm, found.after
    assert set(overload["statuses"]) <= {"200", "503"}, f"only yes and not now: {overload}"
    assert overload["statuses"].get("503", 0) > overload["sent"] / 4, f"the rest was too much: {overload}"
    assert overload["without_retry_after"] == 0
    assert set(after["statuses"]) == {"200"}, "it recovers by itself, at once"
    # Half of those that are accepted are answered about as fast as the bound aims at. Other tests load the
    # machine, too: what a quiet one shows is in docs/proof.md.
    target_ms = Settings().gateway_answer_target_s * 1_000
    assert overload["settled_p50_ms"] < 3 * target_ms + calm["accepted_p50_ms"], f"{overload} beside {calm}"
    assert after["accepted_p50_ms"] < 5 * calm["accepted_p50_ms"] + 200, f"{after} beside {calm}"
    for name, peak in found.memory_peak_mb.items():
        assert peak - found.memory_before_mb.get(name, peak) < MEMORY_MB_MAX, f"{name} grew to {peak} MB"
