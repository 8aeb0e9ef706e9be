"""Results: figures with their spread, as a table in the terminal and as JSON in reports/."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from tests.bench.aims import AIMS

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
console = Console(width=None if os.isatty(1) else 150)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity over the runs of a benchmark."""

    name: str
    """Key in `AIMS` where it has a floor and an aim."""
    unit: str
    values: tuple[float, ...]
    """One a run, in the order of the runs."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def spread(self) -> str:
        """min / median / max; the median alone of a single run."""
        if len(self.values) == 1:
            return number(self.values[0])
        return " / ".join(number(value) for value in (min(self.values), self.median, max(self.values)))


@dataclass(slots=True)
class Result:
    """What one benchmark found. `error` set: it failed, and why."""

    benchmark: str
    command: str
    """That measures it again."""
    figures: list[Figure] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Everything each run measured."""
    notes: list[str] = field(default_factory=list)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Curves for the plots: name -> [(x, y)]."""
    cores: dict[str, list[int]] = field(default_factory=dict)
    """The cores that each process was on, read while it ran."""
    error: str = ""
    partial: str = ""
    """Why it is not the whole benchmark: what was asked to be smaller than usual."""
    seconds: float = 0.0

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)


def number(value: float) -> str:
    """Four significant digits, thousands separated."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Where the figures were measured: cores, memory, versions, the commit, the load before."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    packages = ("faust-streaming", "aiokafka", "rocksdict", "msgspec", "uvloop", "aiohttp")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "commit": commit or "unknown",
        "load1_before": round(os.getloadavg()[0], 2),
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


PARTIAL = ".partial"


def write_json(result: Result, where: dict[str, Any], folder: Path = REPORTS) -> Path:
    """Keep `result` as BENCHMARK.json (the latest) and return its path; one that failed, or is `partial`, as
    BENCHMARK.partial.json, so that it does not replace a whole one."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{result.benchmark}{PARTIAL if result.error or result.partial else ''}.json"
    machine = {**where, "load1_after": round(os.getloadavg()[0], 2)}
    path.write_text(json.dumps({"machine": machine, **asdict(result)}, indent=1) + "\n")
    return path


def read_results(folder: Path = REPORTS) -> dict[str, Result]:
    """The latest whole result of every benchmark that `folder` holds."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        if kept.pop("machine", None) is None:
            continue  # of another tool
        if kept["error"] or path.stem.endswith(PARTIAL):
            continue
        kept["figures"] = [Figure(f["name"], f["unit"], tuple(f["values"])) for f in kept["figures"]]
        found[path.stem] = Result(**kept)
    return found


def print_result(result: Result) -> None:
    """The figures of one benchmark: min / median / max over its runs."""
    table = RichTable(title=f"{result.benchmark}  ({result.command})", title_justify="left")
    table.add_column("what")
    table.add_column("runs", justify="right")
    table.add_column("min / median / max", justify="right")
    table.add_column("unit")
    for figure in result.figures:
        table.add_row(figure.name, str(len(figure.values)), figure.spread(), figure.unit)
    console.print(table)
    for note in result.notes:
        console.print(f"  {note}", style="dim")
    if result.partial:
        console.print(f"  not the whole benchmark: {result.partial}", style="dim")
    if result.error:
        console.print(f"  FAILED: {result.error}", style="bold red")


def print_against_aims(results: Sequence[Result]) -> None:
    """The closing table: each figure that has one beside its floor and its aim."""
    found = {figure.name: figure for result in results for figure in result.figures}
    table = RichTable(title="against floors and aims (median over the runs)", title_justify="left")
    for column, justify in (
        ("what", "left"),
        ("measured", "right"),
        ("min / median / max", "right"),
        ("floor", "right"),
        ("aim", "right"),
        ("reached", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    style = {"aim": "green", "floor": "yellow", "below": "red"}
    for name, aim in AIMS.items():
        bounds = (f"{number(aim.floor)} {aim.unit}", f"{number(aim.aim)} {aim.unit}")
        figure = found.get(name)
        if figure is None:
            table.add_row(aim.what, "not measured", "", *bounds, "", style="dim")
            continue
        verdict = aim.verdict(figure.median)
        table.add_row(
            aim.what,
            f"{number(figure.median)} {aim.unit}",
            figure.spread() if len(figure.values) > 1 else "one run",
            *bounds,
            f"[{style[verdict]}]{verdict}",
        )
    console.print(table)
    for result in results:
        if result.error:
            console.print(f"{result.benchmark} FAILED: {result.error}", style="bold red")
