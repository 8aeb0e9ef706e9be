"""What a report says of a run, and the summary of reports: without any broker."""

from __future__ import annotations

import asyncio
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from audit.findings import Findings
from tests.faults import harness
from tests.faults.client import Client
from tests.faults.grounds import Grounds
from tests.faults.harness import Report
from tests.faults.kinds import Kind, Scene
from tests.faults.summary import summary

OLD: dict[str, Any] = {
    "seed": 1, "minutes": 1.0, "requests": 10, "acknowledged": 9, "unknown": 1, "faults": {"kill": 2},
    "lost": 0, "duplicated": 0, "violations": [], "recovery_s": {},
}  # fmt: skip
"""What the first harness wrote."""


def audit_of(acknowledged: int, *wrong: str) -> dict[str, Any]:
    findings = Findings()
    check = findings["acknowledged-once"]
    check.looked_at = acknowledged
    for example in wrong:
        check.fails(example)
    findings["velocity"].leaves_out("the log begins later")
    return findings.document()


def scene_at(home: Path) -> Scene:
    client = Client(("127.0.0.1", 1), home / "history", seed=1, shoppers=1, partitions=1)
    return Scene(Grounds(home, home, brokers=1, postgresql=False), client, random.Random(1))


def no_targets(_: Grounds) -> list[str]:
    return []


async def nothing(_: Scene, __: str) -> None:
    pass


async def breaks(_: Scene, __: str) -> None:
    raise RuntimeError("broken")


async def strikes(scene: Scene, _: str) -> None:
    scene.strike()


def ran(seed: int = 7) -> Report:
    return Report(seed, requests=20, reads=5, acknowledged=12, refused=1, unknown=2)


class TestWithoutAnAudit:
    def test_the_report_does_not_say_that_nothing_was_lost(self):
        report = ran()
        assert report.document()["lost"] is None and report.document()["duplicated"] is None
        assert "Lost: not audited. Twice: not audited." in report.markdown()
        assert "whether anything was lost or done twice is not known" in report.markdown()

    def test_the_summary_leaves_the_run_out_of_what_was_lost_and_says_so(self):
        report = ran()
        report.takes(audit_of(13))
        lines = summary([ran(8).document(), report.document()]).splitlines()
        assert lines[2].split(" | ")[7:9] == ["not audited", "not audited"]
        assert lines[3].split(" | ")[7:9] == ["0", "0"]
        assert lines[4].split(" | ")[7:9] == ["**0** (1 not audited)", "**0** (1 not audited)"]

    def test_an_older_report_of_a_run_whose_audit_failed_is_no_audit_either(self):
        assert "not audited" in summary([OLD | {"looked_at": {}}])
        assert "not audited" not in summary([OLD, OLD | {"seed": 2, "looked_at": {"acknowledged-once": 9}}])

    def test_the_report_is_written_whatever_ends_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        async def broken(*_: object) -> None:
            raise ConnectionError("nobody there")

        monkeypatch.setattr(harness, "run", broken)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("sys.argv", ["harness", "--seed", "7", "--reports", str(tmp_path)])
        assert harness.main() == 1
        written = json.loads((tmp_path / "faults-7.json").read_text())
        assert written["violations"] == ["run: ConnectionError: nobody there"] and written["lost"] is None
        assert "lost not audited, twice not audited, 1 violations" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_a_run_that_is_interrupted_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def interrupted(running: Any) -> None:
            running.close()
            raise KeyboardInterrupt

        monkeypatch.setattr("uvloop.run", interrupted)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("sys.argv", ["harness", "--seed", "7", "--reports", str(tmp_path)])
        with pytest.raises(KeyboardInterrupt):
            harness.main()
        written = json.loads((tmp_path / "faults-7.json").read_text())
        assert written["violations"] == ["run: it was interrupted"]


class TestFaults:
    async def test_a_fault_that_ends_the_run_is_among_its_faults(self, tmp_path: Path):
        report, scene = ran(), scene_at(tmp_path)
        await harness.do(Kind("poison", nothing, no_targets), "topics", scene, report)
        with pytest.raises(RuntimeError, match="broken"):
            await harness.do(Kind("broker", breaks, no_targets), "broker", scene, report)
        report.takes(audit_of(13))
        written = report.document()
        assert written["faults"] == {"broker": 1, "poison": 1} and written["not_recovered"] == {"broker": 1}
        assert "2 faults (1 did not recover)" in report.markdown()
        assert "| broker | broker |  |  |  | did not recover |" in report.markdown()
        assert scene.grounds.fault == "broker: broker"
        assert "| broker | 1 | 1 |" in summary([OLD, written])

    async def test_one_after_which_nothing_is_decided_any_more_did_not_recover(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(harness, "RECOVERY_S_MAX", 0.05)
        report = ran()
        with pytest.raises(TimeoutError, match="kill: risk did not recover in time"):
            await harness.do(Kind("kill", strikes, no_targets), "risk", scene_at(tmp_path), report)
        (fault,) = report.faults
        assert not fault.recovered and fault.first_s is None and fault.whole_s is not None

    async def test_the_moments_of_recovery_count_from_the_strike(self, tmp_path: Path):
        report, scene = ran(), scene_at(tmp_path)

        async def late(scene: Scene, _: str) -> None:
            await asyncio.sleep(0.2)
            scene.strike()
            assert scene.recovery is not None
            scene.recovery.first.set_result(0.01)
            scene.recovery.everywhere.set_result(0.02)

        await harness.do(Kind("scale", late, no_targets), "risk", scene, report)
        (fault,) = report.faults
        assert fault.recovered and (fault.first_s, fault.everywhere_s) == (0.01, 0.02)
        assert fault.whole_s is not None and fault.whole_s < 0.2
        assert fault.outcome.startswith("0.01 s to the first decision")
        assert "| scale | 1 |  | 1 | 0.01 / 0.01 |" in summary([OLD, report.document()])


class TestWithAnAudit:
    def test_it_counts_what_was_lost_and_names_each_violation(self):
        report = ran()
        report.takes(audit_of(13, *(f"c{n} is not there" for n in range(11))) | {"lost": 11})
        assert report.lost == 11 and report.duplicated == 0
        assert report.violations[0] == "acknowledged-once: c0 is not there"
        assert report.violations[-1] == "acknowledged-once: 1 more like these"
        assert "Lost: 11. Twice: 0." in report.markdown()

    def test_what_was_not_looked_at_is_named(self):
        report = ran()
        report.takes(audit_of(13))
        assert report.document()["left_out"] == {"velocity": "the log begins later"}
        assert "| 0 assessments | 0 | the log begins later |" in report.markdown()

    def test_an_auditor_that_did_not_see_every_outcome_does_not_add_up(self):
        for looked_at, violations in ((12, 1), (13, 0), (14, 1)):
            report = ran()
            report.takes(audit_of(looked_at))
            assert len(report.violations) == violations

    def test_of_requests_that_were_cut_off_it_may_have_seen_more(self):
        for looked_at, violations in ((12, 1), (13, 0), (15, 0), (16, 1)):
            report = ran()
            report.requests += 2
            report.takes(audit_of(looked_at))
            assert len(report.violations) == violations


def test_every_end_of_a_write_is_counted_once(tmp_path: Path):
    client = Client(("127.0.0.1", 1), tmp_path / "history", seed=1, shoppers=1, partitions=1)
    for status in (200, 409, 400, 404, 422, 0, 503, 504):
        client._count(status)
    assert (client.acknowledged, client.refused, client.unknown) == (2, 3, 3)


def test_what_is_kept_of_a_failed_run_is_named(tmp_path: Path):
    home, said = tmp_path / "home", io.StringIO()
    home.mkdir()
    report = ran()
    report.violations.append(f"run: {home}/logs/risk.log")
    assert not harness._tell(report, home, tmp_path, False, Console(file=said, width=300))
    assert home.exists() and f"Everything is kept in {home}" in said.getvalue()
    assert report.violations == ["run: HOME/logs/risk.log"]
