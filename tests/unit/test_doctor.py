"""What doctor says about a machine, where it needs no broker to say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_visa import doctor
from mini_visa.doctor import Verdict
from mini_visa.settings import Settings


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere but on a file system that is mounted so."""
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)


def test_a_home_that_cannot_be_written_to_is_a_failure(tmp_path: Path, read_only: None):
    for broker in ("embedded", "kafka://kafka:9092"):
        found = doctor._disk(Settings(home=tmp_path, broker=broker))
        assert (found.verdict, found.finding) == (Verdict.FAIL, f"{tmp_path} cannot be written to")


def test_a_gateway_in_a_pod_keeps_nothing_and_needs_no_disk(tmp_path: Path, read_only: None):
    keys = tmp_path / "token-keys"
    found = doctor._disk(Settings(home=tmp_path, broker="kafka://kafka:9092", token_keys_file=keys))
    assert found.verdict is Verdict.OK and "keeps nothing" in found.finding
