"""mini-visa with a clock that jumps: `python -m tests.faults.clock FILE gateway`.

FILE holds the seconds that time.time() is off by; it is read anew while the process runs, so the clock can
jump forth and back under its feet. time.time() is where every timestamp of the program comes from, and of its
Kafka client too as long as that does without its C extensions, which ask the system; the monotonic clock,
which no administrator can set, stays right.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path


def jump(file: Path) -> None:
    """From now on time.time() is off by what `file` says."""
    real, offset, looked_at = time.time, 0.0, 0.0

    def jumping() -> float:
        nonlocal offset, looked_at
        now = time.monotonic()
        if now - looked_at > 0.05:
            looked_at = now
            with contextlib.suppress(OSError, ValueError):
                offset = float(file.read_text())
        return real() + offset

    time.time = jumping


if __name__ == "__main__":
    os.environ["AIOKAFKA_NO_EXTENSIONS"] = "1"
    jump(Path(sys.argv[1]))
    from mini_visa.cli import main

    sys.argv = ["mini-visa", *sys.argv[2:]]
    main()
