"""cProfile around a worker: BENCH_PROFILE=FILE writes what each function of its main thread cost."""

from __future__ import annotations

import contextlib
import cProfile
import os
from collections.abc import Iterator


@contextlib.contextmanager
def profiled() -> Iterator[None]:
    """Profile the block if BENCH_PROFILE names a file (for `python -m pstats`)."""
    target = os.environ.get("BENCH_PROFILE", "")
    if not target:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(target)
