"""W1 as a newcomer to Faust would write it: one agent, one event at a time, a RocksDB table.

The yardstick of the benchmark smoke. Takes BROKER, IN_TOPIC, OUT_TOPIC, APP_ID and STATE_DIR from
the environment, like tests/bench/w1/app.py beside it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import faust

from tests.bench.w1.rule import START_BALANCE, decide

app = faust.App(
    os.environ["APP_ID"],
    broker=f"kafka://{os.environ['BROKER']}",
    store="rocksdb://",
    datadir=os.environ["STATE_DIR"],
    topic_partitions=4,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)
requests = app.topic(os.environ["IN_TOPIC"], key_type=bytes, value_type=None, value_serializer="json")
decisions = app.topic(os.environ["OUT_TOPIC"], key_type=bytes, value_serializer="json")
cards = app.Table("cards", key_type=str, partitions=4)


@app.agent(requests)  # type: ignore[untyped-decorator]
async def authorize(stream: Any) -> None:
    async for event in stream.events():
        request = event.value
        balance, seen_at = cards.get(request["card"], (START_BALANCE, []))
        approved, reason, balance, seen_at = decide(balance, seen_at, request["amount"], request["ts"])
        cards[request["card"]] = (balance, seen_at)
        decision = {
            "request_id": request["request_id"],
            "card": request["card"],
            "approved": approved,
            "reason": reason,
            "balance": balance,
        }
        await decisions.send(key=event.key, value=decision)


if __name__ == "__main__":
    app.main()
