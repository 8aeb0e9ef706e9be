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

RECOVERY: Final = ("first decision s, p50 / max", "on every partition", "whole again")
"""Of each fault that something had to recover from. Older reports did not count from the moment of harm:
their faults are not timed here."""
SUMMED: Final = ("requests", "reads", "acknowledged", "unknown")
AUDITED: Final = ("lost", "duplicated")
"""What only an audit can tell."""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _times(recoveries: list[list[float]]) -> list[object]:
    """How many there are; of each kind of seconds the median and the largest."""
    if not recoveries:
        return ["", *("" for _ in RECOVERY)]
    columns = zip(*recoveries, strict=True)
    return [len(recoveries), *(f"{statistics.median(one):.2f} / {max(one):.2f}" for one in columns)]


def _audited(one: dict[str, Any]) -> bool:
    """Older reports say of a run without an audit that nothing was lost; but they looked at nothing."""
    return one["lost"] is not None and one.get("looked_at") != {}


def summary(reports: list[dict[str, Any]]) -> str:
    """Raises ValueError when two reports are of one seed. What an older report does not have is left out."""
    if len({one["seed"] for one in reports}) < len(reports):
        raise ValueError("two reports of one seed: a run would count twice")
    rows: list[list[object]] = []
    for one in reports:
        faults = one["faults"]
        rows.append([
            one["seed"], f"{one['minutes']:.1f}", f"{sum(faults.values())} ({len(faults)})",
            *(f"{one[name]:,}" if name in one else "" for name in SUMMED),
            *(f"{one[name]:,}" if _audited(one) else "not audited" for name in AUDITED),
            len(one["violations"]),
            f"{one.get('batches_looked_at', 0):,} / {one.get('batches_not_fenced', 0)}",
        ])  # fmt: skip
    kinds = sum((Counter(one["faults"]) for one in reports), Counter[str]())
    # Older reports do not have what did not recover among their faults.
    failed = sum((Counter(one.get("not_recovered", {})) for one in reports), Counter[str]())
    minutes = sum(one["minutes"] for one in reports)
    audited = [one for one in reports if _audited(one)]
    unknown = f" ({len(reports) - len(audited)} not audited)" if len(audited) < len(reports) else ""
    rows.append([
        "**sum**", f"{minutes:.1f}", f"**{sum(kinds.values())}** ({len(kinds)})",
        *(f"**{sum(one.get(name, 0) for one in reports):,}**" for name in SUMMED),
        *(f"**{sum(one[name] for one in audited):,}**{unknown}" for name in AUDITED),
        sum(len(one["violations"]) for one in reports),
        f"{sum(one.get('batches_looked_at', 0) for one in reports):,} / "
        f"{sum(one.get('batches_not_fenced', 0) for one in reports)}",
    ])  # fmt: skip
    head = (
        "seed", "minutes", "faults (kinds)", "requests", "of them reads", "acknowledged", "unknown", "lost",
        "twice", "violations", "batches / not fenced",
    )  # fmt: skip
    lines = [*table(head, rows), ""]
    by_kind: dict[str, list[list[float]]] = defaultdict(list)
    killed: dict[str, list[list[float]]] = defaultdict(list)
    for one in reports:
        for _, kind, target, *seconds in one.get("done", ()):
            if len(seconds) == len(RECOVERY) and None not in seconds:
                by_kind[kind].append(seconds)
                if kind.startswith("kill"):
                    killed[target].append(seconds)
    lines += table(
        ("kind", "faults", "did not recover", "timed", *RECOVERY),
        ([kind, count, failed[kind] or "", *_times(by_kind[kind])] for kind, count in sorted(kinds.items())),
    )
    lines += ["", *table(
        ("SIGKILL of", "timed", *RECOVERY),
        ([name, *_times(values)] for name, values in sorted(killed.items())),
    )]  # fmt: skip
    zombies = sum((Counter(one.get("zombies", {})) for one in reports), Counter[str]())
    lines += [
        "",
        "Zombies: " + (", ".join(f"{n} {how}" for how, n in sorted(zombies.items())) or "none") + ".",
    ]
    # Older reports did not look.
    looked = [one["ended_unasked"] for one in reports if "ended_unasked" in one]
    unasked = Counter(service for ends in looked for _, service, *_ in ends)
    if looked:
        lines += [
            "",
            f"Ended though no fault told them to, in {len(looked)} runs: "
            + (", ".join(f"{n} {service}" for service, n in sorted(unasked.items())) or "none")
            + ".",
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
