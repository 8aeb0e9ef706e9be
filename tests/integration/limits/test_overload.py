"""Five times what the system can take: it says no at once to what is too much, and serves the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.limits.overload import IN_FLIGHT_MAX, run

MEMORY_MB_MAX = 120
"""That any process may grow by during the overload, caches included."""


@pytest.mark.broker
@pytest.mark.slow
async def test_what_is_too_much_is_refused_at_once_and_the_rest_is_served_as_before(tmp_path: Path) -> None:
    found = await run(6.0, 1, tmp_path / "home")
    overload, calm, after = found.overload, found.calm, found.after
    assert set(overload["statuses"]) <= {"200", "503"}, f"only yes and not now: {overload}"
    assert overload["statuses"].get("503", 0) > overload["sent"] / 4, f"the rest was too much: {overload}"
    assert overload["without_retry_after"] == 0
    # Those that are in flight share what there is: each waits for as many before it, and not for more.
    waits_ms = 1_000 * IN_FLIGHT_MAX / overload["accepted_per_s"]
    assert overload["accepted_p50_ms"] < 4 * waits_ms + 100, f"{overload} beside {calm}"
    assert set(after["statuses"]) == {"200"}, "it recovers by itself, at once"
    assert after["accepted_p50_ms"] < 3 * calm["accepted_p50_ms"] + 50, f"{after} beside {calm}"
    for name, peak in found.memory_peak_mb.items():
        assert peak - found.memory_before_mb.get(name, peak) < MEMORY_MB_MAX, f"{name} grew to {peak} MB"
