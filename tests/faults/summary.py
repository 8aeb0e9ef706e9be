"""What all runs of faults together have shown, from their reports.

    python -m tests.faults.summary reports/faults-*.json

Markdown: a line for each run and one for their sum, faults and recovery by kind, and SIGKILLs by service.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

SUMMED: Final = ("requests", "reads", "acknowledged", "unknown", "lost", "duplicated")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _times(values: list[float]) -> tuple[str, str]:
    return (f"{statistics.median(values):.2f}", f"{max(values):.2f}") if values else ("", "")


def summary(reports: list[dict[str, Any]]) -> str:
    """Raises ValueError when two reports are of one seed. What an older report does not have is left out."""
    if len({one["seed"] for one in reports}) < len(reports):
        raise ValueError("two reports of one seed: a run would count twice")
    rows: list[list[object]] = []
    for one in reports:
        faults = one["faults"]
        rows.append([
            one["seed"], f"{one['minutes']:.1f}", f"{sum(faults.values())} ({len(faults)})",
            *(f"{one[name]:,}" if name in one else "" for name in SUMMED), len(one["violations"]),
            f"{one.get('batches_looked_at', 0):,} / {one.get('batches_not_fenced', 0)}",
        ])  # fmt: skip
    kinds = sum((Counter(one["faults"]) for one in reports), Counter[str]())
    minutes = sum(one["minutes"] for one in reports)
    rows.append([
        "**sum**", f"{minutes:.1f}", f"**{sum(kinds.values())}** ({len(kinds)})",
        *(f"**{sum(one.get(name, 0) for one in reports):,}**" for name in SUMMED),
        sum(len(one["violations"]) for one in reports),
        f"{sum(one.get('batches_looked_at', 0) for one in reports):,} / "
        f"{sum(one.get('batches_not_fenced', 0) for one in reports)}",
    ])  # fmt: skip
    head = (
        "seed", "minutes", "faults (kinds)", "requests", "of them reads", "acknowledged", "unknown", "lost",
        "twice", "violations", "batches / not fenced",
    )  # fmt: skip
    lines = [*table(head, rows), ""]
    by_kind: dict[str, list[float]] = defaultdict(list)
    killed: dict[str, list[float]] = defaultdict(list)
    for one in reports:
        for _, kind, target, first_s in one.get("done", ()):
            if first_s is not None:
                by_kind[kind].append(first_s)
                if kind.startswith("kill"):
                    killed[target].append(first_s)
    lines += table(
        ("kind", "faults", "first decision, p50 s", "max s"),
        ([kind, count, *_times(by_kind[kind])] for kind, count in sorted(kinds.items())),
    )
    lines += ["", *table(
        ("SIGKILL of", "times", "first decision, p50 s", "max s"),
        ([name, len(values), *_times(values)] for name, values in sorted(killed.items())),
    )]  # fmt: skip
    zombies = sum((Counter(one.get("zombies", {})) for one in reports), Counter[str]())
    lines += [
        "",
        "Zombies: " + (", ".join(f"{n} {how}" for how, n in sorted(zombies.items())) or "none") + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, nargs="+", help="reports/faults-SEED.json")
    print(summary([json.loads(path.read_text()) for path in parser.parse_args().reports]))


if __name__ == "__main__":
    main()
