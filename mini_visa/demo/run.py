"""`mini-visa demo`: start everything, send the script, prove what became of it, and stay or end."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mini_visa.demo import books, checks, evidence, script
from mini_visa.demo.cards import TEST_CARD_LIMIT, TEST_CARDS
from mini_visa.demo.report import Report
from mini_visa.demo.traffic import CONNECTIONS, Sender, Traffic
from mini_visa.errors import UserError
from mini_visa.kafka import committed_records
from mini_visa.settings import Settings
from mini_visa.supervisor import logs, ports
from mini_visa.supervisor.display import Display
from mini_visa.supervisor.system import GROUPS, System, first_of
from mini_visa.supervisor.up import stop_signals

T = TypeVar("T")

EXIT_FAILED: Final = 1
WIDTH_OF_A_PIPE: Final = 110
DEADLINE_S_MIN: Final = 30.0
"""The demo reckons with answers, not with time-outs: on a machine that is slow for a moment it waits."""
EXIT_INTERRUPTED: Final = 130
GUIDE_CALL: Final = {"request_id": "test123", "pan": "4111111111111111", "amount": "10.00"}


QUICK: Final[dict[str, Any]] = {
    "clearing_cycle_s": 5.0,
    "clearing_present_again_s": 2.0,
    "clearing_deadline_s": 20.0,
    "clearing_late_s": 4.0,
    "compensation_retry_s": 5.0,
    "hold_fuel_s": 2.0,
}
"""What takes hours and days in life: seconds here, unless the user has set it."""


@dataclass(frozen=True)
class Conduct:
    """Shares of captures that go another way than usual. `late`: also of payments that are captured when
    their hold has expired."""

    rejections: float = 0.02
    lost_answers: float = 0.02
    late: float = 0.01


class DemoFailed(UserError):
    """The demo cannot even begin."""


class Interrupted(Exception):
    """Ctrl-C before the demo was through."""


@dataclass
class Demo:
    """`seed`: of what is generated; None: another one each time, shown at the end."""

    settings: Settings
    once: bool = False
    payments: int = 3_000
    seed: int | None = None
    connections: int = CONNECTIONS
    as_json: bool = False
    conduct: Conduct = field(default_factory=Conduct)
    console: Console = field(init=False)
    jars: Path = field(init=False)
    """Where Kafka's jars are kept: with the user's own broker, also when the demo has a home of its own."""

    def __post_init__(self) -> None:
        # Progress goes to standard error, so that standard output has the report and nothing else.
        self.console = Console(stderr=self.as_json, highlight=False)
        if not self.console.is_terminal:
            self.console.width = WIDTH_OF_A_PIPE
        self.jars = self.settings.home / "broker"
        if self.seed is None:
            self.seed = secrets.randbelow(2**31)
        if self.once:
            self.settings = _fresh(self.settings)
        deadline_s = max(self.settings.gateway_deadline_s, DEADLINE_S_MIN)
        quick = {name: value for name, value in QUICK.items() if name not in self.settings.model_fields_set}
        self.settings = self.settings.model_copy(
            update={
                **quick,
                "gateway_deadline_s": deadline_s,
                "gateway_answer_target_s": 0.0,  # and none of its requests is turned away: it never has many
                "clearing_rejections": self.conduct.rejections,
                "clearing_lost_answers": self.conduct.lost_answers,
                "clearing_late": self.conduct.late,
            }
        )


def run(
    settings: Settings,
    *,
    once: bool = False,
    payments: int = 3_000,
    seed: int | None = None,
    connections: int = CONNECTIONS,
    as_json: bool = False,
    conduct: Conduct = Conduct(),
) -> int:
    """The process's exit code. Raises `UserError` with one message that says what to do.

    With `once` everything runs in a new home, HOME/runs/demo-N, which is removed when all adds up; without,
    it goes on until Ctrl-C. Either way it is 0 when all adds up.
    """
    demo = Demo(settings, once, payments, seed, connections, as_json, conduct)
    try:
        return asyncio.run(_run(demo))
    except Interrupted:
        return EXIT_INTERRUPTED if once else 0


def _fresh(settings: Settings) -> Settings:
    """The same settings with a new home, and another gateway port if the usual one is taken."""
    runs = settings.home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (runs / f"demo-{number}").mkdir()
            break
        except FileExistsError:
            number += 1
    port = settings.gateway_port
    if not ports.is_free(settings.gateway_host, port):
        port = 0
    return settings.model_copy(update={"home": runs / f"demo-{number}", "gateway_port": port})


async def _run(demo: Demo) -> int:
    stop = asyncio.Event()
    with stop_signals(stop):
        async with _running(demo, stop) as (system, started_in_s):
            report = await _until(_show(demo, system, started_in_s), system, stop)
            if not demo.once:
                report.show(demo.console)
                _print_json(demo, report)
                if not report.passed:
                    demo.console.print(
                        f"\nSomething does not add up: see above, and {system.settings.logs}.",
                        style="bold red",
                    )
                demo.console.print(f"\nReady for yours: {system.gateway_url}/docs. Ctrl-C stops everything.")
                await first_of(asyncio.ensure_future(stop.wait()), system.failure)
                if system.failure.done():
                    system.failure.result()
                return 0 if report.passed else EXIT_FAILED
        # Everything has stopped: what is left over can be seen now.
        if system.killed:
            demo.console.print(f"Killed, for they did not stop in time: {', '.join(system.killed)}")
        pids = [*system.nursery.pids, *system.broker_pids]
        search = _search(report)
        report.checks.append(checks.no_error_in_logs(_logs(demo, system)))
        report.checks.append(checks.no_pan_in_files(demo.settings.home, search))
        report.checks.append(checks.no_process_left(pids))
    report.show(demo.console)
    _print_json(demo, report)
    if report.passed and not system.killed:
        shutil.rmtree(demo.settings.home)
        demo.console.print(f"All adds up. (seed {demo.seed})", style="bold green")
        return 0
    demo.console.print(
        f"Something does not add up. Everything is kept in {demo.settings.home}; "
        f"the same again: mini-visa demo --once --payments {demo.payments} --seed {demo.seed}",
        style="bold red",
        soft_wrap=True,
    )
    return EXIT_FAILED


@asynccontextmanager
async def _running(demo: Demo, stop: asyncio.Event) -> AsyncIterator[tuple[System, float]]:
    """The system, ready, and how long that took; afterwards it has stopped."""
    display = Display(demo.console)
    begun = time.monotonic()
    system = System(demo.settings, jars=demo.jars, changed=display.changed)
    display.watch(system)
    try:
        with display:
            await _until(system.start(), system, stop)
        yield system, time.monotonic() - begun
    finally:
        with display:
            await system.stop()


async def _until(work: Coroutine[Any, Any, T], system: System, stop: asyncio.Event) -> T:
    """The result of `work`, unless the system fails or the user stops it before."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await first_of(working, stopped, system.failure)
        if working.done():
            return working.result()
        if system.failure.done():
            system.failure.result()
        raise Interrupted
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


async def _show(demo: Demo, system: System, started_in_s: float) -> Report:
    """Send everything and check everything that can be checked while the system runs."""
    settings = system.settings.model_copy(update={"broker": system.backbone.address})
    console = demo.console
    assert demo.seed is not None
    run_id = f"demo-{demo.seed}-{int(time.time())}"
    lines = script.write(
        demo.seed, demo.payments, run_id, late=demo.conduct.late, fuel_hold_s=settings.hold_fuel_s
    )
    start = await evidence.positions(settings, await evidence.topic_names(settings))
    async with Sender(system.gateway_url, demo.connections) as sender:
        await _open_test_cards(sender, f"cards-{demo.seed}-{int(time.time())}")
        guide = await _guide_call(sender) if demo.once else None
        if not demo.once:
            _print_guide(console, system.gateway_url)
        with _progress(console, "opening accounts", sum(1 for lane in lines.lanes if lane.opening)) as done:
            not_opened = await sender.open_accounts(lines.lanes, done)
        with _progress(console, "sending requests", lines.requests) as done:
            traffic = await sender.send(lines, done)
        money = books.Books()
        with _progress(console, "waiting for the clearing house", 1) as done:
            await books.until_cleared(settings, money, GROUPS)
            decided = await books.decisions(settings.clearing_house, _presented(lines, traffic))
            _learn(lines, traffic, decided)
            done(1)
        with _progress(console, "refunds and disputes", script.write_aftermath(lines, run_id)) as done:
            await sender.go_on(lines, traffic, done)
        with _progress(console, "waiting for settlement", 1) as done:
            await books.until_settled(settings, money, GROUPS)
            done(1)
        found = [checks.answered(lines, traffic), checks.as_reckoned(traffic)]
        found.append(checks.codes_add_up(lines, traffic))
        for line in not_opened:
            found[0].wrong(line)
        if guide is not None:
            found.insert(0, guide)
        found += await _evidence(settings, start, run_id, lines, traffic, money, decided, sender, console)
    report = Report(lines, traffic, found, started_in_s, money)
    if not demo.once:
        report.checks.append(checks.no_error_in_logs(_logs(demo, system)))
        report.checks.append(checks.no_pan_in_files(settings.home, _search(report)))
    return report


async def _evidence(
    settings: Settings,
    start: evidence.Positions,
    run_id: str,
    lines: script.Script,
    traffic: Traffic,
    money: books.Books,
    decided: dict[str, str],
    sender: Sender,
    console: Console,
) -> list[checks.Check]:
    with _progress(console, "reading events, balances and topics", 5) as done:
        lag = await checks.no_lag(settings, GROUPS)
        done(1)
        events = await checks.history(committed_records(settings, ["payment.events"], start), run_id)
        found = [checks.events_once(lines, traffic, events), checks.payments_of(events, lines)]
        done(1)
        found += await checks.balances(lines, events, sender)
        found.append(await checks.read_model(events, sender))
        done(1)
        found.append(checks.clearing_outcomes(lines, traffic, events, decided))
        found.append(checks.no_open_saga(money))
        found.append(checks.compensated(money))
        found.append(checks.balanced(money))
        found.append(checks.ledger_accounts(money, events, lines))
        found.append(await checks.shown_ledger(money, sender))
        found.append(checks.settlement(money))
        found.append(await checks.rebuilt(settings))
        done(1)
        topics = await evidence.topic_names(settings)
        found.append(await checks.no_dead_letters(settings, topics, start))
        found.append(lag)
        search = checks.PanSearch(lines.lanes, TEST_CARDS)
        found.append(await checks.no_pan_in_topics(settings, topics, start, search))
        done(1)
    return found


def _presented(lines: script.Script, traffic: Traffic) -> list[str]:
    """The key of each capture at the clearing house: payment id and number."""
    return [
        f"{payment_id}-{n}"
        for number, lane in enumerate(lines.lanes)
        for request_id, payment_id in traffic.payment_ids(number).items()
        for n in range(1, len(lane.account.payments[request_id].captures) + 1)
    ]


def _learn(lines: script.Script, traffic: Traffic, decided: dict[str, str]) -> None:
    """Tell the generator's model what the clearing house decided."""
    for number, lane in enumerate(lines.lanes):
        for request_id, payment_id in traffic.payment_ids(number).items():
            payment = lane.account.payments[request_id]
            for n in range(1, len(payment.captures) + 1):
                if decision := decided[f"{payment_id}-{n}"]:
                    lane.account.clear(payment, n, accepted=decision == "accepted")


async def _open_test_cards(sender: Sender, prefix: str) -> None:
    """409 is as good: they are there from a run before."""

    async def open_(number: int, pan: str) -> None:
        body = {"request_id": f"{prefix}-{number}", "pan": pan, "limit": TEST_CARD_LIMIT}
        status, _, answer = await sender.call("POST", "/accounts", body)
        if status not in (200, 409):
            raise DemoFailed(f"The gateway does not open an account: {status} {answer.decode()[:300]}")

    await asyncio.gather(*(open_(number, pan) for number, pan in enumerate(TEST_CARDS)))


async def _guide_call(sender: Sender) -> checks.Check:
    check = checks.Check("the guide's own call is approved", 1, "call")
    status, _, body = await sender.call("POST", "/payments/authorize", GUIDE_CALL)
    document = orjson.loads(body)
    if (status, document.get("status"), document.get("response_code")) != (200, "authorized", "00"):
        check.wrong(f"{status} {document}")
    return check


def _print_guide(console: Console, url: str) -> None:
    """So that the reader can try it while the demo runs."""
    console.print("\nThe system is up. Try it, in another terminal:\n")
    console.print(
        f"  curl -X POST {url}/payments/authorize -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(GUIDE_CALL, separators=(',', ':'))}'\n",
        markup=False,
        soft_wrap=True,
    )


def _search(report: Report) -> checks.PanSearch:
    return checks.PanSearch(report.script.lanes, TEST_CARDS)


def _logs(demo: Demo, system: System) -> list[Path]:
    """Of every process; the JVM's too."""
    names = [*(part.log for part in system.parts), logs.path_of(system.settings.logs, "nursery")]
    names += [path.with_suffix(".log.1") for path in names]
    broker = system.settings.home / "broker"
    return [path for path in (*names, broker / "broker.log", broker / "jvm.log") if path.exists()]


def _print_json(demo: Demo, report: Report) -> None:
    if demo.as_json:
        sys.stdout.write(orjson.dumps(report.as_json()).decode() + "\n")
        sys.stdout.flush()


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line when it is done."""
    if not console.is_terminal:
        begun = time.monotonic()
        yield lambda _: None
        count = f"{total:,} in " if total > 1 else ""
        console.print(f"{what}: {count}{time.monotonic() - begun:.1f} s")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, advance=count)
