"""The services' logs: HOME/logs/SERVICE.log, empty at each start, bounded while it grows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 16 << 20
TAIL_BYTES_MAX: Final = 64_000


def path_of(logs: Path, service: str) -> Path:
    return logs / f"{service}.log"


def begin(log: Path) -> None:
    """An empty log; the one of the run before it is kept as .old, once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".old"))
    log.with_suffix(".log.1").unlink(missing_ok=True)
    log.touch(mode=0o640)


def bound(log: Path) -> None:
    """Cut a log that has outgrown LOG_BYTES_MAX: what it held is kept as .log.1, once. The service
    goes on writing to the same file, which it opened to append."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


def last_lines(log: Path, count: int = 15) -> list[str]:
    """The end of a log, for an error message. Empty when there is none."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES_MAX))
        return file.read().decode(errors="replace").splitlines()[-count:]
