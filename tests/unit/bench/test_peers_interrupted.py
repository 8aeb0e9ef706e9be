"""However a run of the peers ends, nothing of it is left: no peer, and no broker that it started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.bench import peers
from tests.bench.peers import Harness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

RUNNER = """
import os, signal, subprocess, sys, time
peer = subprocess.Popen(["sleep", "300"], start_new_session=True)
open(os.environ["PEERS_HOME"] + "/peer", "w").write(str(peer.pid))
try:
    time.sleep(300)
finally:
    peer.kill()
"""
BROKER = """#!/bin/sh
case $1 in
start) sleep 300 & echo $! >"$PEERS_HOME/kafka.pid";;
stop) kill "$(cat "$PEERS_HOME/kafka.pid")"; rm "$PEERS_HOME/kafka.pid";;
esac
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """A harness whose peer never ends, set up already."""
    home, folder = tmp_path / "home", tmp_path / "peers"
    monkeypatch.setenv("PEERS_HOME", str(home))
    monkeypatch.setattr(peers, "INTERRUPT_S", 10.0)
    (home / "v/bin").mkdir(parents=True)
    (home / "v/bin/python").symlink_to(sys.executable)
    scripts = {
        "runner.py": RUNNER,
        "common/w1.py": "",
        "common/broker.sh": BROKER,
        "w1/run.sh": f'#!/bin/sh\n"{sys.executable}" "{folder}/runner.py"\n',
    }
    for name, text in scripts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setattr(Harness, "is_set_up", lambda self: True)
    return Harness(folder)


def _runs(file: Path) -> bool:
    try:
        return bool(psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE)
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False


def _await_start(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not _runs(file):
        assert time.monotonic() < deadline, "the peer was not started"
        time.sleep(0.05)


async def test_an_interrupt_ends_the_peer_and_the_broker(harness: Harness, tmp_path: Path):
    task = asyncio.create_task(harness.run(["mini-visa"], records=10, reps=1, out=tmp_path / "out"))
    await asyncio.to_thread(_await_start, harness.work / "peer")
    broker = tmp_path / "broker"
    broker.write_text((harness.work / "kafka.pid").read_text())
    assert _runs(broker)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _runs(harness.work / "peer")
    await asyncio.sleep(0.1)
    assert not _runs(broker)


async def test_a_broker_that_ran_before_is_left_alone(harness: Harness, tmp_path: Path):
    (harness.folder / "w1/run.sh").write_text("#!/bin/sh\nexit 0\n")
    before = await asyncio.create_subprocess_exec("sleep", "300")
    try:
        (harness.work / "kafka.pid").write_text(str(before.pid))
        (harness.folder / "common/broker.sh").write_text('#!/bin/sh\n[ "$1" = start ]\n')
        assert await harness.run(["mini-visa"], records=10, reps=1, out=tmp_path / "out") == []
        assert before.returncode is None
    finally:
        os.kill(before.pid, signal.SIGKILL)
        await before.wait()
