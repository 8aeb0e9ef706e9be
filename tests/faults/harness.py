"""Faults at random from a seed, a client that writes down all that happens, and an auditor at the end.

    python -m tests.faults.harness --minutes 60 --seed 7
    python -m tests.faults.harness --faults 14 --seed 1          # a short one
    python -m tests.faults.harness --minutes 15 --seed 3 --brokers 3

The seed decides which fault comes when and to whom, and what the client buys. What the machine does in
between is not in its hands: a seed brings the same faults again, not the same microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mini_visa.settings import Settings
from tests.bench.processes import stop_in_order_when_told
from tests.faults.client import Client
from tests.faults.fencing import Fences
from tests.faults.grounds import Grounds, Unasked, postgresql_binaries
from tests.faults.kinds import KINDS, RECOVERY_S_MAX, Kind, Scene

ROOT: Final = Path(__file__).parents[2]
QUIET_S: Final = 1.5
"""Between the end of a fault and the next one, on average; a third of it at least, five thirds at most."""
WARM_UP_S: Final = 2.0
WIND_UP_S: Final = 60.0
"""For what is under way when a run has failed."""


@dataclass
class Done:
    """A fault, from its beginning: one that the system does not survive counts too."""

    kind: str
    target: str
    at_s: float
    """Since the start of the run."""
    first_s: float | None = None
    """From the moment of harm until the first decision on a payment that was first sent after it."""
    everywhere_s: float | None = None
    """The same on every partition."""
    whole_s: float | None = None
    """Until every service was ready again; with the time that the harm itself takes."""
    recovered: bool = False
    """The system went on, as far as anything had to."""

    @property
    def outcome(self) -> str:
        if not self.recovered:
            return "did not recover"
        if self.first_s is None:
            return ""
        return f"{self.first_s:.2f} s to the first decision, whole after {self.whole_s:.1f} s"


@dataclass
class Report:
    seed: int
    minutes: float = 0.0
    requests: int = 0
    attempts: int = 0
    reads: int = 0
    """Of the requests: those that only look."""
    reads_given_up: int = 0
    """Reads without an answer: the read model was away or behind for too long."""
    acknowledged: int = 0
    """Writes with an outcome, refusals of the domain included."""
    refused: int = 0
    """Writes of which the answer says that they can never succeed."""
    unknown: int = 0
    """Writes without an outcome."""
    load_began: float = 0.0
    """Monotonic seconds."""
    unasked: list[Unasked] = field(default_factory=list)
    zombies: Counter[str] = field(default_factory=Counter)
    fences: Fences = field(default_factory=lambda: Fences(0, 0, 0, []))
    faults: list[Done] = field(default_factory=list)
    lost: int | None = None
    """None: nothing was audited."""
    duplicated: int | None = None
    violations: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    audit: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def ends(self) -> None:
        """The load has ended: what comes then is no time of the run's."""
        self.minutes = self.minutes or (time.monotonic() - self.began) / 60

    @property
    def not_recovered(self) -> Counter[str]:
        """By kind."""
        return Counter(fault.kind for fault in self.faults if not fault.recovered)

    @property
    def recovery_s(self) -> dict[str, dict[str, float]]:
        """By kind: seconds until the first decision after the fault."""
        found = defaultdict(list)
        for fault in self.faults:
            if fault.first_s is not None:
                found[fault.kind].append(fault.first_s)
        return {
            kind: {"p50": round(statistics.median(values), 2), "max": round(max(values), 2)}
            for kind, values in sorted(found.items())
        }

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "minutes": round(self.minutes, 2),
            "requests": self.requests,
            "reads": self.reads,
            "reads_given_up": self.reads_given_up,
            "attempts": self.attempts,
            "acknowledged": self.acknowledged,
            "refused": self.refused,
            "unknown": self.unknown,
            "faults": dict(sorted(Counter(fault.kind for fault in self.faults).items())),
            "not_recovered": dict(sorted(self.not_recovered.items())),
            "lost": self.lost,
            "duplicated": self.duplicated,
            "violations": self.violations,
            "recovery_s": self.recovery_s,
            "ended_unasked": [
                [round(one.at - self.load_began, 1), one.service, one.code, one.during]
                for one in self.unasked
            ],
            "zombies": dict(sorted(self.zombies.items())),
            "batches_looked_at": self.fences.batches,
            "batches_not_fenced": len(self.fences.stale),
            "done": [
                [
                    round(fault.at_s, 1),
                    fault.kind,
                    fault.target,
                    *(_rounded(one) for one in (fault.first_s, fault.everywhere_s, fault.whole_s)),
                ]
                for fault in self.faults
            ],
            "looked_at": {check["name"]: check["looked_at"] for check in self.audit.get("checks", [])},
            "left_out": {
                check["name"]: why for check in self.audit.get("checks", []) if (why := _left_out(check))
            },
        }

    def takes(self, audit: dict[str, Any]) -> None:
        """What the auditor says. It must have looked at every outcome that the client was told; where
        requests were cut off in the end, some of theirs may be in the history and not in its count."""
        self.audit = audit
        self.lost, self.duplicated = audit["lost"], audit["duplicated"]
        self.violations += audit["violations"]
        told = self.acknowledged + self.refused
        cut_off = self.requests - self.reads - told - self.unknown
        looked_at = next(one["looked_at"] for one in audit["checks"] if one["name"] == "acknowledged-once")
        if not told <= looked_at <= told + cut_off:
            self.violations.append(
                f"audit: it looked at {looked_at} acknowledged requests, the client was told of {told}"
            )

    def markdown(self) -> str:
        lines = [
            f"# Faults, seed {self.seed}",
            "",
            f"{self.minutes:.1f} minutes, {len(self.faults)} faults ({self.not_recovered.total()} did not "
            f"recover), {self.requests:,} requests in {self.attempts:,} attempts. "
            f"{self.reads:,} are reads ({self.reads_given_up:,} given up); of the writes "
            f"{self.acknowledged:,} were acknowledged, {self.refused:,} refused for good and "
            f"{self.unknown:,} left unknown. "
            f"Lost: {_counted(self.lost)}. Twice: {_counted(self.duplicated)}. "
            f"Violations: {len(self.violations)}.",
            "",
            "Attempts by status (0: no answer): "
            + ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items())),
            "",
            "## Recovery",
            "",
            "Seconds from the moment of harm until the first decision on a payment that was first sent after",
            "it. That says nothing of a service that no decision waits for: see when all was whole again.",
            "",
            "| kind | faults | did not recover | p50 | max |",
            "|---|---|---|---|---|",
        ]
        counts = Counter(fault.kind for fault in self.faults)
        for kind, count in sorted(counts.items()):
            times = self.recovery_s.get(kind)
            p50, most = (f"{times['p50']:.2f}", f"{times['max']:.2f}") if times else ("", "")
            lines.append(f"| {kind} | {count} | {self.not_recovered[kind] or ''} | {p50} | {most} |")
        lines += [
            "",
            "## Faults",
            "",
            "| at s | kind | target | first decision s | every partition s | whole s | |",
            "|---|---|---|---|---|---|---|",
        ]
        for fault in self.faults:
            times = (fault.first_s, fault.everywhere_s, fault.whole_s)
            shown = " | ".join("" if one is None else f"{one:.2f}" for one in times)
            end = "" if fault.recovered else fault.outcome
            lines.append(f"| {fault.at_s:.1f} | {fault.kind} | {fault.target} | {shown} | {end} |")
        lines += [
            "",
            "## Zombies",
            "",
            "Workers that woke after their session was over: "
            + (", ".join(f"{count} {how}" for how, count in sorted(self.zombies.items())) or "none")
            + f". Of {self.fences.batches:,} batches of {self.fences.producers} producers in the broker's "
            f"files, {len(self.fences.stale)} came after a successor's.",
        ]
        lines += ["", "## Ended unasked", ""]
        if self.unasked:
            lines += ["Services that ended though no fault told them to.", ""]
            lines += ["| at s | service | exit code | during |", "|---|---|---|---|"]
        else:
            lines.append("No service ended that no fault told to.")
        for one in self.unasked:
            at_s = one.at - self.load_began
            lines.append(f"| {at_s:.1f} | {one.service} | {one.code} | {one.during or 'no fault'} |")
        lines += ["", "## Audit", ""]
        if self.audit:
            lines += ["| check | looked at | wrong | left out |", "|---|---|---|---|"]
        else:
            lines.append("There was none: whether anything was lost or done twice is not known.")
        for check in self.audit.get("checks", []):
            looked_at = f"{check['looked_at']:,} {check['unit']}"
            lines.append(f"| {check['says']} | {looked_at} | {check['wrong']:,} | {_left_out(check)} |")
        lines += ["", *(f"- {violation}" for violation in self.violations)]
        return "\n".join(lines) + "\n"


def portable(text: str, home: Path) -> str:
    """Without the places of this machine: a report is read elsewhere."""
    for place, name in ((home, "HOME"), (sys.prefix, "PYTHON"), (sys.base_prefix, "PYTHON"), (ROOT, ".")):
        text = text.replace(str(place), name)
    return text


def _left_out(check: dict[str, Any]) -> str:
    """Why the auditor did not look at all of it; "" when it did."""
    return str(check.get("skipped") or check.get("partly") or "")


def _counted(number: int | None) -> str:
    return "not audited" if number is None else f"{number:,}"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def schedule(choose: random.Random, kinds: list[Kind]) -> Iterator[Kind]:
    """Every kind once, in random order, then again: none is left out of a short run."""
    while True:
        turn = list(kinds)
        choose.shuffle(turn)
        yield from turn


@dataclass(frozen=True)
class Plan:
    seed: int
    minutes: float
    faults_max: int
    shoppers: int
    brokers: int
    postgresql: bool
    kinds: tuple[str, ...] = ()
    """Only these; (): all that are possible here."""
    requests: int = 0
    """Go on without faults until there are so many."""
    record: Path | None = None
    """Where to write a recording of what is audited."""
    quiet_s: float = QUIET_S


async def run(plan: Plan, home: Path, report: Report, console: Console) -> None:
    """Everything from the start to the audit. Whatever ends it, `report` has what was done until then."""
    choose = random.Random(plan.seed)
    history = home / "history.jsonl"
    jars = Settings().home / "broker"
    async with Grounds(home, jars, brokers=plan.brokers, postgresql=plan.postgresql) as grounds:
        client = Client(
            grounds.gateway,
            history,
            seed=plan.seed,
            shoppers=plan.shoppers,
            partitions=grounds.settings.partitions,
        )
        scene = Scene(grounds, client, choose)
        try:
            await _under_load(plan, scene, report, console)
        finally:
            report.ends()
            report.requests, report.attempts = client.requests, client.attempts
            report.acknowledged, report.unknown = client.acknowledged, client.unknown
            report.refused, report.statuses = client.refused, client.statuses
            report.reads, report.reads_given_up = client.reads, client.reads_given_up
            report.zombies, report.unasked = grounds.zombies, grounds.unasked
            report.load_began = scene.began
        await grounds.stop_services()
        for name in grounds.system.killed:
            report.violations.append(f"run: {name} did not end when it was asked to")
        report.fences = await asyncio.to_thread(grounds.fences)
        report.violations += [f"fencing: {line}" for line in report.fences.stale]
        console.print(f"audit of {client.attempts:,} attempts ...")
        await _audit(grounds, history, report, console, plan.record)


async def _under_load(plan: Plan, scene: Scene, report: Report, console: Console) -> None:
    """Returns when all has come to rest, or never will: then `report` says why."""
    grounds, client = scene.grounds, scene.client
    load = asyncio.create_task(client.run())
    harm = asyncio.create_task(_harm(plan, scene, report, console))
    try:
        await asyncio.wait([load, harm, grounds.system.failure], return_when=asyncio.FIRST_COMPLETED)
        for task in (grounds.system.failure, load, harm):
            if task.done() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
        while client.requests < plan.requests:
            done, _ = await asyncio.wait(
                [load, grounds.system.failure], timeout=0.1, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        client.stop()
        await load
        report.ends()
        await grounds.quiet()
    except Exception as error:
        # A system that does not come back is a finding like any other: what it left is audited.
        _failed(report, error, console)
        harm.cancel()
        client.stop()
        await asyncio.wait([load], timeout=WIND_UP_S)
        load.cancel()
        await asyncio.gather(load, harm, return_exceptions=True)
        client.flush()
        report.ends()
        try:
            await grounds.quiet()
        except Exception as unrest:
            _failed(report, unrest, console)


def _failed(report: Report, error: Exception, console: Console) -> None:
    report.violations.append(f"run: {type(error).__name__}: {str(error)[:2_000]}")
    console.print("".join(traceback.format_exception(error))[-3_000:], style="red", markup=False)


async def _harm(plan: Plan, scene: Scene, report: Report, console: Console) -> None:
    grounds, client, choose = scene.grounds, scene.client, scene.choose
    kinds = [kind for kind in KINDS if kind.targets(grounds) and (not plan.kinds or kind.name in plan.kinds)]
    began = scene.began
    ends = began + plan.minutes * 60
    await asyncio.sleep(WARM_UP_S)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=plan.faults_max or plan.minutes * 60)
        for number, kind in enumerate(schedule(choose, kinds)):
            if number == plan.faults_max if plan.faults_max else time.monotonic() >= ends:
                return
            done = number if plan.faults_max else time.monotonic() - began
            progress.update(bar, completed=done, description=f"{client.requests:,} requests, {number} faults")
            if plan.faults_max and time.monotonic() >= ends:
                raise TimeoutError(f"only {number} of {plan.faults_max} faults in {plan.minutes:g} minutes")
            target = choose.choice(kind.targets(grounds))
            console.print(f"{time.monotonic() - began:7.1f} s  {kind.name}: {target}", end="")
            try:
                await do(kind, target, scene, report)
            finally:
                console.print(f"  {report.faults[-1].outcome}")
            await asyncio.sleep(choose.uniform(plan.quiet_s / 3, plan.quiet_s * 5 / 3))


async def do(kind: Kind, target: str, scene: Scene, report: Report) -> None:
    """One fault. It is in the report before it is done."""
    fault = Done(kind.name, target, time.monotonic() - scene.began)
    report.faults.append(fault)
    scene.recovery = None
    scene.grounds.fault = f"{kind.name}: {target}"
    try:
        async with asyncio.timeout(RECOVERY_S_MAX):
            await kind.harm(scene, target)
            if scene.recovery is not None:
                fault.whole_s = time.monotonic() - scene.struck_at
                fault.first_s = await scene.recovery.first
                fault.everywhere_s = await scene.recovery.everywhere
    except TimeoutError as error:
        raise TimeoutError(f"{kind.name}: {target} did not recover in time") from error
    fault.recovered = True
    scene.grounds.fault = ""


async def _audit(
    grounds: Grounds, history: Path, report: Report, console: Console, record: Path | None
) -> None:
    settings = grounds.settings
    database = settings.database_url
    holds = f"{settings.hold_days},{settings.hold_days_travel},{settings.hold_fuel_s}"
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "audit", "--broker", grounds.address,
        "--environment", grounds.settings.environment, "--database", database,
        "--history", str(history), "--holds", holds,
        "--cycle", str(settings.clearing_cycle_s), "--json", *(["--record", str(record)] if record else []),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=64 << 20,
    )  # fmt: skip
    out, err = await done.communicate()
    if done.returncode not in (0, 1) or not out:
        report.violations.append(f"audit: it ended with {done.returncode}: {err.decode()[-1_000:]}")
        return
    report.takes(json.loads(out))
    for check in report.audit["checks"]:
        mark = "[red]WRONG[/]" if check["wrong"] else "[green]ok[/]" if check["looked_at"] else "-"
        console.print(f"{mark}  {check['says']}: {check['looked_at']:,} {check['unit']}")
        for line in (*filter(None, [_left_out(check)]), *check["examples"]):
            console.print(f"       {line}", markup=False)


def _tell(report: Report, home: Path, folder: Path, keep: bool, console: Console) -> bool:
    """Write the report and remove all data, unless somebody needs them. Whether everything adds up."""
    report.violations = [portable(one, home) for one in report.violations]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"faults-{report.seed}.json").write_text(json.dumps(report.document(), indent=2) + "\n")
    (folder / f"faults-{report.seed}.md").write_text(report.markdown())
    console.print(
        f"{len(report.faults)} faults ({report.not_recovered.total()} did not recover), "
        f"{report.requests:,} requests, {report.acknowledged:,} acknowledged, "
        f"{report.unknown:,} unknown, lost {_counted(report.lost)}, twice {_counted(report.duplicated)}, "
        f"{len(report.violations)} violations: {folder}/faults-{report.seed}.md"
    )
    for one in report.unasked:
        console.print(
            f"ended unasked: {one.service}, with {one.code}, during {one.during or 'no fault'}", markup=False
        )
    if not report.violations and not keep:
        shutil.rmtree(home)
    else:
        style = "bold red" if report.violations else ""
        console.print(f"Everything is kept in {home}", style=style, soft_wrap=True)
    return not report.violations


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long faults go on (%(default)s)")
    parser.add_argument(
        "--faults", type=int, default=0, help="end after so many; --minutes is then the most it may take"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--shoppers", type=int, default=24, help="requests at the same time (%(default)s)")
    parser.add_argument(
        "--brokers", type=int, choices=(1, 3), default=1, help="three: each partition has three copies"
    )
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgresql"),
        default=None,
        help="default: PostgreSQL where there is one and the seed is even",
    )
    parser.add_argument(
        "--kinds", nargs="*", default=[], help="only these: " + ", ".join(kind.name for kind in KINDS)
    )
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder (%(default)s)")
    parser.add_argument(
        "--quiet", type=float, default=QUIET_S, help="seconds from one fault to the next (%(default)s)"
    )
    parser.add_argument("--requests", type=int, default=0, help="go on until there are so many")
    parser.add_argument("--record", type=Path, help="write a recording for the auditor: a new folder")
    parser.add_argument("--keep", action="store_true", help="keep all data also when everything adds up")
    given = parser.parse_args()
    stop_in_order_when_told()
    unknown = set(given.kinds) - {kind.name for kind in KINDS}
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    seed = random.randrange(2**31) if given.seed is None else given.seed
    postgresql = given.database == "postgresql" or (
        given.database is None and seed % 2 == 0 and postgresql_binaries() is not None
    )
    plan = Plan(
        seed, given.minutes, given.faults, given.shoppers, given.brokers, postgresql,
        tuple(given.kinds), given.requests, given.record, given.quiet,
    )  # fmt: skip
    console = Console(highlight=False, width=140)
    console.print(
        f"seed {seed}, {plan.brokers} broker{'s' * (plan.brokers > 1)}, "
        f"{'PostgreSQL' if postgresql else 'SQLite'}"
    )
    home = Path(tempfile.mkdtemp(prefix="mini-visa-faults-"))
    report = Report(seed)
    try:
        uvloop.run(run(plan, home, report, console))
    except KeyboardInterrupt:
        report.violations.append("run: it was interrupted")
        raise
    except Exception as error:
        _failed(report, error, console)
    finally:
        adds_up = _tell(report, home, given.reports, given.keep, console)
    return 0 if adds_up else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
