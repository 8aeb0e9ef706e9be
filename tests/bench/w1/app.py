"""W1 on this project's kernel, as a program: what the harness of the peers and the smoke start.

Takes BROKER (host:port), IN_TOPIC, OUT_TOPIC, APP_ID and STATE_DIR from the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ["MINI_VISA_BROKER"] = f"kafka://{os.environ['BROKER']}"
os.environ["MINI_VISA_HOME"] = os.environ["STATE_DIR"]
os.environ["MINI_VISA_ENVIRONMENT"] = os.environ["APP_ID"].lower()
os.environ["MINI_VISA_LOG_LEVEL"] = "warning"

from mini_visa.settings import settings
from mini_visa.streams.app import create_app
from mini_visa.streams.worker import run_apps
from tests.bench.profiling import profiled
from tests.bench.w1.service import CARDS, decisions_topic, make_handler, requests_topic

decisions = decisions_topic(os.environ["OUT_TOPIC"])
app = create_app("w1")
app.processor(source=requests_topic(os.environ["IN_TOPIC"]), tables=[CARDS], sinks=[decisions])(
    make_handler(decisions)
)

if __name__ == "__main__":
    with profiled():
        run_apps([app], settings())
