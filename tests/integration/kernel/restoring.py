"""How long a partition is without an owner when a worker dies with its disk, by the number of its rows, with
static membership and without it. What the decision about standby replicas in docs/kernel.md rests on.

    python -m tests.integration.kernel.restoring --rows 1000000 --rows 10000000

Each time: a worker owns the partition, is killed, and a new process is started at once, on an empty disk, on
the same disk, or as a member that the group does not know (it must wait for the dead one's session to end).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from laboratory import Laboratory, Worker

from mini_visa.broker import EmbeddedBroker
from mini_visa.settings import Settings

ACQUIRED = re.compile(r": acquired in ([0-9.]+) s, (\d+) changelog records restored")
LONG_S = 1_800.0
BATCH_BYTES = 900_000
IN_FLIGHT = 4


async def fill(laboratory: Laboratory, rows: int) -> int:
    """Write `rows` rows of about 80 bytes, key and value, straight into the changelog; their bytes."""
    producer = AIOKafkaProducer(max_batch_size=BATCH_BYTES, enable_idempotence=True, **laboratory.options)
    await producer.start()
    waiting: deque[Any] = deque()
    size = 0
    batch = producer.create_batch()

    async def send() -> None:
        waiting.append(await producer.send_batch(batch, laboratory.changelog(), partition=0))
        if len(waiting) > IN_FLIGHT:
            await waiting.popleft()

    try:
        for number in range(rows):
            key = b"notes\0%010d" % number
            # A text of 60 characters, as msgpack after the version byte; half of it does not compress.
            value = b"\x01\xd9\x3c%-60s" % hashlib.blake2b(key, digest_size=15).hexdigest().encode()
            size += len(key) + len(value)
            if batch.append(key=key, value=value, timestamp=None) is None:
                await send()
                batch = producer.create_batch()
                assert batch.append(key=key, value=value, timestamp=None) is not None
        await send()
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()
    return size


def usage(pid: int) -> tuple[float, float]:
    """Processor seconds so far, and the most memory resident, MiB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return seconds, int(peak) / 1024


async def comes_to_run(worker: Worker, began: float) -> dict[str, float]:
    await worker.says(": acquired in ", timeout_s=LONG_S)
    until_running = time.monotonic() - began
    seconds, memory = usage(worker.process.pid)
    ((acquire, restored),) = ACQUIRED.findall(worker.log)
    return {
        "until_running_s": round(until_running, 2),
        "acquire_s": float(acquire),
        "cpu_s": round(seconds, 2),
        "memory_mib": round(memory),
        "restored": int(restored),
    }


async def measure(broker: str, rows: int, home: Path) -> dict[str, Any]:
    laboratory = Laboratory(broker, f"restore-{secrets.token_hex(4)}", home)
    try:
        await laboratory.create_topics(partitions=1)
        await laboratory.put([1])
        worker = laboratory.worker(home="disk")
        await laboratory.done(worker)
        size = await fill(laboratory, rows)
        print(f"{rows:,} rows, {size / rows:.0f} bytes each", flush=True)
        runs: dict[str, Any] = {}
        for name, home_name, static in (
            ("static, disk lost", "empty", True),
            ("static, disk kept", "empty", True),
            ("not static, disk lost", "empty too", False),
        ):
            if "lost" in name:
                shutil.rmtree(laboratory.home / home_name, ignore_errors=True)
            # A new name, so that the group does not know the next one: what membership without static is.
            instance = "worker-1" if static else "worker-2"
            await worker.kill()
            began = time.monotonic()
            worker = laboratory.worker(instance=instance, home=home_name)
            runs[name] = await comes_to_run(worker, began)
            print(f"  {name:24} {runs[name]}", flush=True)
        return {"rows": rows, "row_bytes": round(size / rows), "load_average": os.getloadavg()[0], **runs}
    finally:
        await laboratory.close()


async def measure_all(broker: str, rows: list[int], home: Path) -> list[dict[str, Any]]:
    found = []
    for count in rows:
        place = home / str(count)
        place.mkdir()
        found.append(await measure(broker, count, place))
        shutil.rmtree(place)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, action="append", help="several times for several (1,000,000)")
    parser.add_argument("--report", type=Path, default=Path("reports/restoring.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        broker = EmbeddedBroker(Path(name) / "broker", libs_cache=Settings().home / "broker")
        broker.start()
        try:
            found = asyncio.run(measure_all(str(broker.address), options.rows or [1_000_000], Path(name)))
        finally:
            broker.stop()
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(found, indent=2) + "\n")
    print(f"the report is in {options.report}")


if __name__ == "__main__":
    main()
