"""What the demo sets, whatever the machine: it reckons with answers."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from mini_visa.demo.run import CONNECTIONS, Demo
from mini_visa.gateway import limits
from mini_visa.gateway.limits import InFlight
from mini_visa.settings import Settings


def test_a_slow_machine_turns_none_of_its_requests_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "monotonic", count().__next__)
    settings = Demo(Settings(home=tmp_path)).settings
    assert settings.gateway_deadline_s >= 30.0
    bound = InFlight(settings.gateway_in_flight_max, settings.gateway_answer_target_s)
    for _ in range(100):
        bound.answered(5.0)
    bound.in_flight = CONNECTIONS
    bound.admit()
