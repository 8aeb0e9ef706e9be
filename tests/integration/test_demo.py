"""The commands as a user runs them: `mini-visa demo --once` and `mini-visa up`, in homes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_system import START_S, Up, environment, left_over, make_home, mini_visa, none_left_within

from mini_visa.supervisor.lock import running
from mini_visa.supervisor.ports import free_port
from mini_visa.supervisor.system import SERVICES

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def home(tmp_path: Path, jars_cache: Path) -> Path:
    return make_home(tmp_path, jars_cache)


@pytest.fixture
def up(home: Path) -> Iterator[Up]:
    started = Up(home)
    try:
        started.until("Ready")
        yield started
    finally:
        started.end()


@pytest.mark.timeout(600)
def test_the_demo_adds_up_and_leaves_nothing(home: Path) -> None:
    done = subprocess.run(
        mini_visa("demo", "--once", "--payments", "300", "--json"),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=START_S * 2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["passed"] and report["payments"] == 300
    assert report["approved"] >= 0.85 * report["payments"]
    assert len(report["checks"]) == 23 and all(check["looked_at"] for check in report["checks"])
    assert not none_left_within(home, 5.0)
    assert not list((home / "runs").iterdir())


@pytest.mark.timeout(600)
def test_a_killed_service_comes_back_and_a_stop_is_clean(up: Up) -> None:
    before = up.pids()
    assert set(before) == {service.name for service in SERVICES}
    os.kill(before["authorization"], signal.SIGKILL)
    up.until("authorization: restarting")
    up.until("restarted 1 times")
    after = up.pids()
    assert after["authorization"] != before["authorization"]
    assert {name: pid for name, pid in after.items() if name != "authorization"} == {
        name: pid for name, pid in before.items() if name != "authorization"
    }

    second = subprocess.run(mini_visa("up"), env=environment(up.home), capture_output=True, text=True)
    assert second.returncode == 1
    assert f"kill {up.process.pid}" in second.stderr

    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(90) == 0, up.output.read_text()
    assert up.output.read_text().rstrip().endswith("Stopped.")
    assert not none_left_within(up.home, 5.0)
    for log in (up.home / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text()


@pytest.mark.timeout(600)
def test_nothing_outlives_a_killed_supervisor(up: Up) -> None:
    assert len(left_over(up.home)) >= len(SERVICES) + 4  # supervisor, nursery, broker and its launcher
    up.process.kill()
    up.process.wait()
    assert not none_left_within(up.home, 30.0)
    assert running(up.home) is None


@pytest.mark.timeout(600)
def test_a_service_that_cannot_run_ends_everything_with_the_end_of_its_log(home: Path) -> None:
    # A read model where no file can be: the projection says so and gives up.
    up = Up(home, MINI_VISA_DATABASE_URL="sqlite:////proc/no-such-directory/readmodel.sqlite")
    assert up.process.wait(START_S) == 1
    said = up.output.read_text()
    assert "projection ended 3 times before it was ready" in said and "no-such-directory" in said
    assert "Traceback" not in said
    assert not none_left_within(home, 5.0)


def test_a_taken_port_is_named_with_who_holds_it(home: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            mini_visa("up"),
            env=environment(home, MINI_VISA_GATEWAY_PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken by process {os.getpid()}" in done.stderr
