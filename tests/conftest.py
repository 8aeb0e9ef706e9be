"""What every test may ask for: a real broker, an environment of its own, settings."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mini_visa.broker import EmbeddedBroker
from mini_visa.settings import Settings

SettingsBuilder = Callable[..., Settings]


@pytest.fixture(scope="session")
def jars_cache() -> Path:
    """Where Kafka's jars are kept between sessions: the user's own home, so Maven runs once."""
    return Settings().home / "broker"


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[str]:
    """HOST:PORT of a real Kafka for the whole session: MINI_VISA_TEST_BROKER's, or one started here.

    It is shared: use topics, groups and environments of your own (`environment`)."""
    if given := os.environ.get("MINI_VISA_TEST_BROKER"):
        yield given.removeprefix("kafka://")
        return
    started = EmbeddedBroker(tmp_path_factory.mktemp("broker"), libs_cache=jars_cache)
    started.start()
    try:
        assert started.address is not None
        yield started.address
    finally:
        started.kill()  # nobody needs what is in it


@pytest.fixture
def fresh_broker(tmp_path: Path, jars_cache: Path) -> Iterator[EmbeddedBroker]:
    """An empty broker of this test alone, running: for tests that use the real topics or kill it."""
    started = EmbeddedBroker(tmp_path / "broker", libs_cache=jars_cache)
    started.start()
    try:
        yield started
    finally:
        started.kill()  # nobody needs what is in it


@pytest.fixture
def environment() -> str:
    """A name that no other test has: part of groups, transactional ids, changelogs."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def settings_for(tmp_path: Path, environment: str) -> SettingsBuilder:
    """Builds settings with a home and an environment of the test's own:
    `settings_for(broker, partitions=2)`. The process's environment variables play no part."""

    def build(broker: str | None = None, **changes: Any) -> Settings:
        values: dict[str, Any] = {"home": tmp_path / "home", "environment": environment}
        if broker is not None:
            values["broker"] = f"kafka://{broker}"
        return Settings(**(values | changes))

    return build


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the developer's shell must not change what a test shows."""
    for name in os.environ:
        if name.startswith("MINI_VISA_") and name not in ("MINI_VISA_HOME", "MINI_VISA_TEST_BROKER"):
            monkeypatch.delenv(name)
