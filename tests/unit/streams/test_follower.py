"""A service that follows topics by itself: it is run, waited for at a stop, and never dies in silence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mini_visa.errors import UserError
from mini_visa.settings import Settings
from mini_visa.streams import follower as follower_module
from mini_visa.streams.app import create_app


class Steps:
    """Notes what it is told, and takes its time to end."""

    ready = False

    def __init__(self, error: BaseException | None = None, ends_after_s: float = 0.0) -> None:
        self.error, self.ends_after_s = error, ends_after_s
        self.seen: list[str] = []
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        try:
            self.ready = True
            if self.error is not None:
                raise self.error
            await self.stopping.wait()
            await asyncio.sleep(self.ends_after_s)
            self.seen.append("done")
        finally:
            self.seen.append("closed")

    def stop(self) -> None:
        self.stopping.set()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, drain_timeout_s=1.0)


async def run_and_stop(settings: Settings, steps: Steps) -> None:
    app = create_app("following", settings)
    app.follower(lambda _: steps)
    async with app:
        await asyncio.sleep(0.05)
        assert app.ready is steps.ready
    await asyncio.sleep(0)


async def test_a_stop_lets_it_finish_what_it_is_at(settings: Settings) -> None:
    steps = Steps(ends_after_s=0.2)
    await run_and_stop(settings, steps)
    assert steps.seen == ["done", "closed"]


async def test_one_that_does_not_end_in_time_is_given_up_and_still_closes_what_it_opened(
    settings: Settings,
) -> None:
    steps = Steps(ends_after_s=60.0)
    await run_and_stop(settings, steps)
    assert steps.seen == ["closed"]


@pytest.mark.parametrize("error", [UserError("no topic: make it"), RuntimeError("a bug")], ids=str)
async def test_an_error_ends_the_process(
    settings: Settings, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[str, str]] = []
    monkeypatch.setattr(follower_module, "poison", lambda where, error: ended.append((where, str(error))))
    await run_and_stop(settings, Steps(error))
    assert ended == [("following", str(error))]


async def test_it_is_made_with_the_apps_settings(settings: Settings) -> None:
    made: list[Any] = []
    app = create_app("following", settings)
    app.follower(lambda given: made.append(given) or Steps())
    async with app:
        pass
    assert made == [settings]
