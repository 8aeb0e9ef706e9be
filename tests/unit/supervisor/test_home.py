"""What a home directory and a machine's ports allow."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mini_visa.supervisor import logs
from mini_visa.supervisor.lock import AlreadyRunning, HomeLock, Running, running
from mini_visa.supervisor.ports import PortTaken, free_port, holder_of, is_free, require_free


def a_state(**changes: object) -> Running:
    values = {
        "supervisor": os.getpid(),
        "gateway_url": "http://127.0.0.1:8080",
        "broker": "kafka://h:1",
        "started_at": "now",
    }
    return Running(**{**values, **changes})


def test_a_second_one_in_the_same_home_is_told_who_runs_there(tmp_path):
    first, second = HomeLock(tmp_path), HomeLock(tmp_path)
    first.acquire()
    first.publish(a_state())
    with pytest.raises(AlreadyRunning, match=f"kill {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_what_a_killed_system_left_is_not_taken_for_a_running_one(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "running.json").write_text(json.dumps(vars(a_state(supervisor=ended.pid))))
    assert running(tmp_path) is None
    lock = HomeLock(tmp_path)
    lock.acquire()
    assert not (tmp_path / "running.json").exists()
    lock.release()


@pytest.mark.parametrize("text", ["", "{", '{"supervisor": 1}', "[]"])
def test_a_damaged_state_file_means_that_nothing_runs(tmp_path, text):
    (tmp_path / "running.json").write_text(text)
    assert running(tmp_path) is None


def test_the_running_system_can_be_found(tmp_path):
    lock = HomeLock(tmp_path)
    lock.acquire()
    lock.publish(a_state(pids={"risk": 5}))
    found = running(tmp_path)
    assert found is not None and found.pids == {"risk": 5}
    lock.release()
    assert running(tmp_path) is None


def test_a_taken_port_is_refused_with_its_holder_and_a_way_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(PortTaken, match=rf"process {os.getpid()} .*GATEWAY_PORT={port + 1}"):
            require_free("127.0.0.1", port, setting="MINI_VISA_GATEWAY_PORT")
    require_free("127.0.0.1", port, setting="MINI_VISA_GATEWAY_PORT")


def test_nobody_holds_a_free_port():
    assert holder_of(free_port()) == ""


def test_a_log_begins_empty_and_keeps_the_one_before(tmp_path):
    log = logs.path_of(tmp_path, "risk")
    logs.begin(log)
    log.write_text("first run\n")
    logs.begin(log)
    assert log.read_text() == ""
    assert Path(tmp_path / "risk.old").read_text() == "first run\n"


def test_a_log_that_grows_too_large_is_cut_while_it_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 100)
    log = logs.path_of(tmp_path, "risk")
    logs.begin(log)
    with log.open("a") as writer:
        writer.write("x" * 150 + "\n")
        writer.flush()
        logs.bound(log)
        writer.write("after\n")
    assert log.read_text() == "after\n"
    assert (tmp_path / "risk.log.1").stat().st_size == 151


def test_the_end_of_a_log_is_what_an_error_shows(tmp_path):
    log = tmp_path / "risk.log"
    assert logs.last_lines(log) == []
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert logs.last_lines(log, 2) == ["line 98", "line 99"]
