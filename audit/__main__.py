"""python -m audit: the auditor on its own, without anything of Mini-Visa installed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from audit.auditor import Audit
from audit.evidence import Cluster, Recording, Unreadable, record
from audit.rules import CYCLE_MS, DEFAULT_HOLDS, Holds


def main(arguments: list[str] | None = None) -> int:
    """0: everything adds up; 1: something does not; 2: the evidence cannot be read."""
    parser = argparse.ArgumentParser(
        prog="audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--broker", metavar="HOST:PORT", help="a Kafka that runs, without TLS")
    where.add_argument("--recording", type=Path, metavar="FOLDER", help="what --record wrote")
    parser.add_argument("--environment", default="dev", help="of the services (%(default)s)")
    parser.add_argument(
        "--database", default="", help="of the read model: sqlite:///FILE or postgresql://..."
    )
    parser.add_argument("--history", type=Path, help="JSON lines of a client")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write a recording before the audit")
    parser.add_argument("--running", action="store_true", help="services are at work: lag is no fault")
    parser.add_argument("--other-fees", action="store_true", help="the fee schedule is not the default one")
    parser.add_argument(
        "--holds", type=_holds, default=DEFAULT_HOLDS, metavar="D,D,S",
        help="how long holds last: days, days of travel, seconds at fuel pumps (7,31,7200)",
    )  # fmt: skip
    parser.add_argument(
        "--cycle", type=float, default=CYCLE_MS / 1_000, metavar="S",
        help="how long a cycle of settlement is, seconds (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.recording is not None:
            return run(
                Recording(given.recording),
                running=given.running,
                as_json=given.json,
                usual_fees=not given.other_fees,
            )
        options = {"bootstrap_servers": given.broker.removeprefix("kafka://").split(",")}
        cluster = Cluster(
            options, given.environment, given.database, given.history, given.holds, round(given.cycle * 1_000)
        )
        try:
            cluster.open()
            return run(
                cluster,
                running=given.running,
                as_json=given.json,
                recorded=given.record,
                usual_fees=not given.other_fees,
            )
        finally:
            cluster.close()
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2


def _holds(text: str) -> Holds:
    days, travel_days, fuel_s = map(float, text.split(","))
    return Holds.lasting(days, travel_days, fuel_s)


def run(
    evidence: Cluster | Recording,
    *,
    running: bool,
    as_json: bool,
    recorded: Path | None = None,
    usual_fees: bool = True,
) -> int:
    """Audit and print. Returns the exit code."""
    if recorded is not None:
        record(evidence, recorded)
        evidence = Recording(recorded)
    told = (
        (lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True))
        if sys.stderr.isatty()
        else None
    )
    findings = Audit(evidence, running=running, usual_fees=usual_fees, told=told).run()
    if told is not None:
        told("")
    print(json.dumps(findings.document()) if as_json else findings.text())
    return 0 if findings.passed else 1


if __name__ == "__main__":
    sys.exit(main())
