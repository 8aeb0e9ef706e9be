"""How much of what a load needs, from measured figures, with the formulas to see.

    .venv/bin/python scripts/capacity.py --payments-per-s 500 --years 2

docs/capacity.md explains it and has its table; a test compares the two. `--core-price`, `--gib-price` and
`--disk-price` are whatever your provider asks for a core, a GiB of memory and a GiB of disk in a month.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Final

# -- measured: one worker on one core (docs/capacity.md says where each figure is from) ------------

CPU_US: Final = {
    # service -> microseconds of a core for one of its source records, in full batches
    "risk": 20,
    "authorization": 57,
    "ledger": 57,
    "clearing": 57,
    "reversal": 57,
    "projection": 57,
}
RECORDS: Final = {
    # service -> source records of a payment that is authorized, captured in full and cleared
    "risk": 2,  # the request, its outcome
    "authorization": 3,  # authorize, capture, clearing's outcome
    "ledger": 6,  # three events, three sets of postings
    "clearing": 4,  # three events, one item
    "reversal": 3,
    "projection": 7,  # three events, three entries, a share of positions
}
GATEWAY_CPU_US: Final = 1_000
"""Of a core for one HTTP request."""
REQUESTS: Final = 3
"""HTTP requests of a payment: authorize, capture, a look at it."""
LOG_BYTES: Final = 4_600
"""Of one payment in the topics that are kept for ever, one copy."""
TABLE_BYTES: Final = 1_000
"""Of one payment in workers' tables, on their disks."""
SQL_BYTES: Final = 4_600
"""Of one payment in the read model, indexes included."""
WORKER_MIB: Final = 750
"""More than a busy authorization worker with four partitions takes, which is the largest."""
GATEWAY_MIB: Final = 200
RESTORE_ROWS_PER_S: Final = 250_000
ROWS: Final = 1
"""Rows of authorization's tables that a payment leaves for ever: itself. Its hold goes when it is captured,
its request ids after a day."""

# -- chosen ----------------------------------------------------------------------------------------

HEADROOM: Final = 0.5
"""Share of a core that is planned for: the rest is for peaks, restarts, and batches that are not full."""
PARTITION_PER_S: Final = 250
"""Payments a second of one partition, at the peak: some twentieth of the commands that one core decides, so
that a partition that is hot by chance stays below a core."""
REPLICATION: Final = 3
DISK_FULL: Final = 0.7
PAYMENTS_A_DAY_OF_PEAK: Final = 86_400 / 4
"""A day has as many payments as six hours of the peak."""
PODS_MIN: Final = {"gateway": 3, **dict.fromkeys(CPU_US, 2)}


@dataclass(frozen=True)
class Plan:
    """For a peak of `payments_per_s`, after `years` of such days."""

    payments_per_s: float
    years: float
    partitions: int
    cores: dict[str, float]
    """Service -> cores at the peak."""
    pods: dict[str, int]
    memory_gib: float
    log_gib: float
    """Of all brokers together."""
    table_gib: float
    sql_gib: float
    restore_s: float
    """Of one worker that lost its disk."""

    def cost(self, core: float, gib: float, disk: float) -> float:
        """A month, in the unit of the prices; brokers and PostgreSQL as twelve cores and 48 GiB."""
        cores = sum(max(1.0, pods * 0.5) for pods in self.pods.values()) + 12
        return (
            cores * core
            + (self.memory_gib + 48) * gib
            + (self.log_gib + self.table_gib + self.sql_gib) / DISK_FULL * disk
        )


def plan(payments_per_s: float, years: float) -> Plan:
    payments = payments_per_s * PAYMENTS_A_DAY_OF_PEAK * 365 * years
    # A power of two or three times one: divides evenly over 2, 3, 4, 6, 8 and 12 workers.
    partitions = next(
        count
        for count in (4, 6, 12, 24, 48, 96, 192, 384, 768)
        if count * PARTITION_PER_S >= payments_per_s or count == 768
    )
    cores = {
        "gateway": payments_per_s * REQUESTS * GATEWAY_CPU_US / 1e6 / HEADROOM,
        **{name: payments_per_s * RECORDS[name] * us / 1e6 / HEADROOM for name, us in CPU_US.items()},
    }
    pods = {name: max(PODS_MIN[name], math.ceil(needed)) for name, needed in cores.items()}
    pods = {name: count if name == "gateway" else min(count, partitions) for name, count in pods.items()}
    memory_mib = sum(
        count * (GATEWAY_MIB if name == "gateway" else WORKER_MIB) for name, count in pods.items()
    )
    return Plan(
        payments_per_s,
        years,
        partitions,
        cores,
        pods,
        memory_mib / 1024,
        payments * LOG_BYTES * REPLICATION / 2**30,
        payments * TABLE_BYTES / 2**30,
        payments * SQL_BYTES / 2**30,
        payments * ROWS / pods["authorization"] / RESTORE_ROWS_PER_S,
    )


def table(loads: tuple[float, ...] = (10, 100, 500, 1_000, 3_000), years: float = 1) -> str:
    """For docs/capacity.md."""
    lines = [
        "| payments/s at the peak | partitions | gateways | authorization | ledger | pods in all "
        "| cores at the peak | memory | log, 3 copies | read model | restore of one worker |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for load in loads:
        made = plan(load, years)
        lines.append(
            f"| {load:,.0f} | {made.partitions} | {made.pods['gateway']} | {made.pods['authorization']} "
            f"| {made.pods['ledger']} | {sum(made.pods.values())} | {sum(made.cores.values()):.1f} "
            f"| {made.memory_gib:,.0f} GiB | {made.log_gib:,.0f} GiB | {made.sql_gib:,.0f} GiB "
            f"| {made.restore_s / 60:,.0f} min |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--payments-per-s", type=float, help="at the peak; without: docs/capacity.md's table")
    parser.add_argument("--years", type=float, default=1.0)
    parser.add_argument("--core-price", type=float, default=0.0)
    parser.add_argument("--gib-price", type=float, default=0.0)
    parser.add_argument("--disk-price", type=float, default=0.0)
    options = parser.parse_args()
    if not options.payments_per_s:
        print(table())
        return
    made = plan(options.payments_per_s, options.years)
    print(f"partitions {made.partitions}")
    for name, cores in made.cores.items():
        print(f"{name:14} {cores:6.2f} cores at the peak, {made.pods[name]} pods")
    print(f"memory         {made.memory_gib:6.1f} GiB in {sum(made.pods.values())} pods")
    disks = {"log": made.log_gib, "tables": made.table_gib, "SQL": made.sql_gib}
    print("disk           " + ", ".join(f"{gib:,.0f} GiB {name}" for name, gib in disks.items()))
    print(f"restore        {made.restore_s:,.0f} s of a worker that lost its disk")
    if options.core_price or options.gib_price or options.disk_price:
        cost = made.cost(options.core_price, options.gib_price, options.disk_price)
        millions = options.payments_per_s * PAYMENTS_A_DAY_OF_PEAK * 30 / 1e6
        print(f"cost           {cost:,.0f} a month, {cost / millions:,.2f} for a million payments")


if __name__ == "__main__":
    main()
