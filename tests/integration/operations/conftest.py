"""A whole running system for what its operators do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_system import Up, environment, make_home, mini_visa


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Up]:
    """`mini-visa up`, once for all tests here."""
    started = Up(make_home(tmp_path_factory.mktemp("operated"), jars_cache))
    try:
        started.until("Ready")
        yield started
    finally:
        started.end()


class Shell:
    """Runs `mini-visa` in the system's home."""

    def __init__(self, system: Up) -> None:
        self.environment = environment(system.home)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            mini_visa(*arguments), env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=180)
        assert process.returncode == code, out + err
        return out

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code))


@pytest.fixture
def shell(system: Up) -> Shell:
    return Shell(system)
