"""A canary and its rollback, on this machine: two versions of the gateway, then of a worker, side by side.

    .venv/bin/python scripts/canary.py --old HEAD~20

starts the whole system from the older revision in a home of its own, sends payments all the while, lets a
gateway of this checkout take a tenth and then half of them, takes it back; lets a worker of this checkout
join authorization, and leave. Ends non-zero unless every request was answered, once, and all adds up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

from mini_visa.demo.cards import card_numbers
from mini_visa.settings import Settings
from mini_visa.supervisor.lock import Running, running
from mini_visa.supervisor.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
CARDS = 300
RATE_PER_S = 25.0
START_S = 180.0
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


class Front:
    """Sends each payment to one of the gateways, by weight, and keeps what came back."""

    def __init__(self, session: aiohttp.ClientSession, cards: list[str]) -> None:
        self.gateways: dict[str, str] = {}
        self.weights: dict[str, int] = {}
        self.answers: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        """Version -> (HTTP status, payment id, milliseconds)."""
        self.requests = 0
        self.failures: list[str] = []
        self._session = session
        self._cards = cards
        self._dice = random.Random(1)  # noqa: S311
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """One payment after the other, at a steady rate, until it is cancelled."""
        due = time.monotonic()
        try:
            while True:
                due += 1 / RATE_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._pay())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            await asyncio.gather(*self._tasks)

    async def _pay(self) -> None:
        number = self.requests
        self.requests += 1
        (version,) = self._dice.choices(list(self.weights), list(self.weights.values()))
        body = {
            "request_id": f"canary-{number}",
            "pan": self._cards[number % len(self._cards)],
            "amount": "1.00",
            "merchant_id": "m1",
        }
        began = time.monotonic()
        try:
            url = f"{self.gateways[version]}/payments/authorize"
            async with self._session.post(url, json=body) as answer:
                payment = await answer.json()
                taken_ms = (time.monotonic() - began) * 1000
                self.answers[version].append((answer.status, payment.get("payment_id", ""), taken_ms))
                if answer.status != 200 or payment["response_code"] != "00":
                    self.failures.append(f"{version}: {answer.status} {payment}")
        except (aiohttp.ClientError, OSError) as error:
            self.failures.append(f"{version}: {error!r}")

    async def phase(self, seconds: float, what: str, **weights: int) -> None:
        self.weights = weights
        before = {version: len(answers) for version, answers in self.answers.items()}
        failed = len(self.failures)
        await asyncio.sleep(seconds)
        counts = []
        for version in weights:
            new = self.answers[version][before.get(version, 0) :]
            if new:
                p50 = statistics.median(ms for _, _, ms in new)
                counts.append(f"{version} {len(new)} answers, p50 {p50:.0f} ms")
        say(f"{what}: {'; '.join(counts)}; {len(self.failures) - failed} failed")


def environment_of(code: Path, home: Path) -> dict[str, str]:
    """Both versions are told how many partitions there are: what they take when they are not is their own."""
    return {
        **os.environ,
        "PYTHONPATH": str(code),
        "MINI_VISA_HOME": str(home),
        "MINI_VISA_PARTITIONS": str(Settings().partitions),
    }


def program(code: Path, home: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """`mini-visa ARGUMENTS` of the version in the folder `code`."""
    log = home.parent / f"{code.name}-{'-'.join(arguments)}.log"
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "mini_visa.cli", *arguments],
            env={**environment_of(code, home), "MINI_VISA_GATEWAY_DEADLINE_S": "20", **environment},
            cwd=code,
            stdout=output,
            stderr=output,
        )


async def until(what: str, url: str, process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        deadline = time.monotonic() + START_S
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{what} did not come up: exit code {process.poll()}")
            await asyncio.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def ask(code: Path, home: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "mini_visa.cli", *arguments, "--json"],
        env=environment_of(code, home),
        cwd=code,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout or "null")


async def exercise(old: Path, new: Path, folder: Path) -> bool:
    home = folder / "home"
    (home / "broker").mkdir(parents=True)
    for jars in (Settings().home / "broker").glob("libs-*"):
        if jars.is_dir():
            (home / "broker" / jars.name).symlink_to(jars)
    system = program(old, home, "up", MINI_VISA_GATEWAY_PORT="0")
    try:
        state = await _started(home, system)
        return await _exercise(old, new, folder, state)
    finally:
        say(f"the system stopped with exit code {await asyncio.to_thread(stop, system)}")


async def _started(home: Path, system: subprocess.Popen[bytes]) -> Running:
    deadline = time.monotonic() + START_S
    while (state := running(home)) is None:
        if system.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the system did not come up")
        await asyncio.sleep(0.2)
    await until("the old gateway", f"{state.gateway_url}/readyz", system)
    return state


async def _exercise(old: Path, new: Path, folder: Path, state: Running) -> bool:
    home = folder / "home"
    numbers = card_numbers(random.Random(7))  # noqa: S311
    cards = [next(numbers) for _ in range(CARDS)]
    async with aiohttp.ClientSession() as session:
        front = Front(session, cards)
        front.gateways["old"] = state.gateway_url
        for number, card in enumerate(cards):
            body = {"request_id": f"open-{number}", "pan": card, "limit": "1000.00"}
            while True:
                async with session.post(f"{state.gateway_url}/accounts", json=body) as answer:
                    if answer.status == 200:
                        break
                    assert answer.status in (503, 504), await answer.text()
        say(f"the whole system runs the old version; {CARDS} accounts; {RATE_PER_S:.0f} payments/s from now")
        front.weights = {"old": 100}
        load = asyncio.create_task(front.run())
        await front.phase(5, "old only", old=100)

        port = free_port()
        canary = program(
            new,
            home,
            "gateway",
            MINI_VISA_GATEWAY_PORT=str(port),
            MINI_VISA_GATEWAY_ID="1",
        )
        front.gateways["new"] = f"http://127.0.0.1:{port}"
        await until("the canary", f"{front.gateways['new']}/readyz", canary)
        say("a gateway of the new version is ready beside the old one")
        await front.phase(10, "90 / 10", old=90, new=10)
        await front.phase(6, "50 / 50", old=50, new=50)
        await front.phase(1, "rollback: 100 / 0", old=100)
        say(f"the canary gateway stopped with exit code {await asyncio.to_thread(stop, canary)}")
        await front.phase(3, "old only", old=100)

        probe = free_port()
        worker = program(
            new,
            folder / "canary",
            "worker",
            "authorization",
            MINI_VISA_BROKER=state.broker,
            MINI_VISA_INSTANCE="canary",
            MINI_VISA_WEB_PORT=str(probe),
        )
        await until("the worker", f"http://127.0.0.1:{probe}/readyz", worker)
        say("a worker of the new version joined authorization")
        await front.phase(10, "two workers", old=100)
        async with session.get(f"http://127.0.0.1:{probe}/metrics") as answer:
            metrics = await answer.text()
        say(f"the new worker: {_metric(metrics, 'assigned_partitions')} partitions, "
            f"{_metric(metrics, 'records_total')} commands decided")  # fmt: skip
        say(f"rollback: it stopped with exit code {await asyncio.to_thread(stop, worker)}")
        await front.phase(5, "old only", old=100)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    return await asyncio.to_thread(_adds_up, front, new, home)


def _metric(text: str, name: str) -> str:
    for line in text.splitlines():
        if line.startswith(f"mini_visa_{name}{{"):
            return f"{float(line.rsplit(' ', 1)[1]):.0f}"
    return "0"


def _adds_up(front: Front, new: Path, home: Path) -> bool:
    answers = [answer for of_version in front.answers.values() for answer in of_version]
    ids = {payment_id for _, payment_id, _ in answers}
    say(
        f"{front.requests} requests, {len(answers)} answers, {len(ids)} payments, "
        f"{len(front.failures)} failed"
    )
    for failure in front.failures[:5]:
        say(f"  {failure}")
    failing = [check for check in ask(new, home, "doctor") if check["verdict"] == "FAIL"]
    letters = ask(new, home, "dead-letters", "list")
    compared = ask(new, home, "readmodel", "rebuild", "--check")
    equal = compared["compared"] and not compared["different"]
    say(
        f"doctor: {len(failing)} FAIL; dead letters: {len(letters)}; "
        f"read model against the log: {'equal' if equal else compared}"
    )
    return (
        front.requests == len(answers) == len(ids)
        and not front.failures
        and not failing
        and not letters
        and equal
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--old", default="HEAD~20", help="the older version: a revision of this repository")
    parser.add_argument("--keep", action="store_true", help="leave homes and logs behind, to look at")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mini-visa-canary-"))
    git = ["git", "-C", str(ROOT)]
    old = folder / "old"
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(old), options.old], check=True)
    try:
        for name, code in (("old", old), ("new", ROOT)):
            revision = subprocess.run(
                ["git", "-C", str(code), "log", "-1", "--format=%h %s"],
                check=True,
                capture_output=True,
                text=True,
            )
            say(f"{name}: {revision.stdout.strip()}")
        passed = asyncio.run(exercise(old, ROOT, folder))
        say("passed" if passed else "FAILED")
        sys.exit(0 if passed else 1)
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(old)], check=False)
        if options.keep:
            print(f"left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
