"""A real service's worker, started for a benchmark: `python tests/bench/worker.py authorization`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mini_visa.settings import settings
from mini_visa.streams.worker import run
from tests.bench.profiling import profiled

if __name__ == "__main__":
    with profiled():
        run(sys.argv[1:], settings())
