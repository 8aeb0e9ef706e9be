"""See `laboratory`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from laboratory import Laboratory


@pytest.fixture
async def laboratory(broker: str, environment: str, tmp_path: Path) -> AsyncIterator[Laboratory]:
    lab = Laboratory(broker, environment, tmp_path)
    try:
        yield lab
    finally:
        await lab.close()
