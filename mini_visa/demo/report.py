"""The closing table, and the same as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from mini_visa.demo.books import Books
from mini_visa.demo.checks import Check
from mini_visa.demo.script import Script, text_of
from mini_visa.demo.traffic import Traffic

TEXTS: Final = {
    "00": "approved",
    "05": "do not honor (CVV mismatch)",
    "10": "partial approval",
    "14": "invalid card",
    "41": "lost card",
    "43": "stolen card",
    "51": "insufficient funds",
    "54": "expired card",
    "57": "not permitted (other currency)",
    "61": "exceeds amount limit",
    "62": "restricted card",
    "65": "exceeds frequency",
    "68": "response too late (its reversal came first)",
}
"""ISO 8583 field 39, as the demo meets them."""
APPROVALS: Final = ("00", "10")
NAMES: Final = {"10": "of these", "68": "reversed"}
PERCENTILES: Final = (50, 95, 99)


@dataclass(frozen=True)
class Report:
    script: Script
    traffic: Traffic
    checks: list[Check]
    started_in_s: float
    money: Books = field(default_factory=Books)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        traffic = self.traffic
        codes = self._codes()
        latencies = latencies_ms(traffic)
        return {
            "passed": self.passed,
            "seed": self.script.seed,
            "started_in_s": round(self.started_in_s, 2),
            "requests": len(traffic.all()),
            "cards": len(self.script.lanes),
            "seconds": round(traffic.seconds, 3),
            "requests_per_s": round(len(traffic.all()) / max(traffic.seconds, 1e-9), 1),
            "latency_ms": {name: round(value, 2) for name, value in latencies.items()},
            "payments": codes.total(),
            "approved": sum(codes[code] for code in APPROVALS),
            "codes": dict(sorted(codes.items())),
            "kinds": dict(sorted(Counter(a.step.kind for a in traffic.all()).items())),
            "life": self._life(),
            "ledger": {
                currency: {name: text_of(amount, currency) for name, amount in sums.items()}
                for currency, sums in self._ledger().items()
            },
            "checks": [
                {
                    "name": check.name,
                    "passed": check.passed,
                    "looked_at": check.looked_at,
                    "unit": check.unit,
                    "wrong": check.offenders_count,
                    "offenders": check.offenders,
                }
                for check in self.checks
            ],
        }

    def _life(self) -> dict[str, int]:
        """What happened after the decision, by the ledger's entries."""
        money, kinds = self.money, self.money.kinds
        return {
            "captures": kinds["payment_captured"],
            "cleared": kinds["capture_cleared"],
            "rejected": kinds["capture_rejected"],
            "compensated payments": sum(money.was_compensated(payment_id) for payment_id in money.lives),
            "sagas that were late": money.compensations["overdue"],
            "holds expired": kinds["hold_expired"],
            "refunds": kinds["payment_refunded"],
            "chargebacks": kinds["chargeback_opened"],
            "represented": kinds["chargeback_represented"],
            "settlement cycles": len(money.closed),
            "net positions": money.nets,
            "journal entries": money.entries,
        }

    def _ledger(self) -> dict[str, dict[str, int]]:
        """Currency -> what each kind of ledger account holds, debit > 0; in sum zero."""
        found: dict[str, Counter[str]] = {}
        for (account, currency), amount in self.money.balances.items():
            name = account if account.count(":") == 1 else account[: account.rindex(":")]
            found.setdefault(currency, Counter())[name] += amount
        return {currency: dict(sorted(sums.items())) for currency, sums in sorted(found.items())}

    def _codes(self) -> Counter[str]:
        return Counter(a.code for a in self.traffic.all() if a.step.kind == "authorize")

    def show(self, console: Console) -> None:
        traffic = self.traffic
        answers = traffic.all()
        kinds = Counter(answer.step.kind for answer in answers)
        latencies = latencies_ms(traffic)
        codes = self._codes()
        payments = codes.total() or 1
        table = _table("", "#", "", title=f"{payments:,} payments on {len(self.script.lanes):,} cards")
        table.show_header = False
        table.add_row("requests", f"{len(answers):,}", f"{', '.join(_kinds(kinds))}")
        table.add_row(
            "rate", f"{len(answers) / max(traffic.seconds, 1e-9):,.0f}/s", f"{traffic.seconds:.1f} s"
        )
        for name, value in latencies.items():
            table.add_row(f"latency {name}", f"{value:,.1f} ms", "")
        approved = sum(codes[code] for code in APPROVALS)
        table.add_section()
        table.add_row("approved", f"{approved:,}", f"{approved / payments:.1%}")
        for code in sorted(codes, key=lambda code: (code not in APPROVALS, code)):
            if code != "00":
                name = NAMES.get(code, "declined")
                table.add_row(f"{name} {code}", f"{codes[code]:,}", TEXTS.get(code, ""))
        table.add_section()
        table.add_row("in the ledger", "", "of all runs in this home")
        for what, count in self._life().items():
            table.add_row(what, f"{count:,}", "")
        console.print(table)
        self._show_ledger(console)
        show_checks(self.checks, console)

    def _show_ledger(self, console: Console) -> None:
        ledger = self._ledger()
        names = sorted({name for sums in ledger.values() for name in sums})
        table = _table("ledger (debit > 0)", *(f"#{currency}" for currency in ledger), title="")
        for name in names:
            table.add_row(name, *(text_of(sums.get(name, 0), currency) for currency, sums in ledger.items()))
        table.add_section()
        table.add_row("sum", *(text_of(sum(sums.values()), currency) for currency, sums in ledger.items()))
        console.print(table)


def show_checks(checks: list[Check], console: Console) -> None:
    table = _table("check", "#looked at", "", title="")
    for check in checks:
        verdict = (
            "[green]ok[/]" if check.passed else f"[bold red]{check.offenders_count or 'nothing'} wrong[/]"
        )
        table.add_row(check.name, f"{check.looked_at:,} {check.unit}", verdict)
    console.print(table)
    for check in checks:
        if check.passed:
            continue
        console.print(f"{check.name}:", style="bold red", highlight=False)
        if not check.looked_at:
            console.print("  there was nothing to look at", markup=False)
        for offender in check.offenders:
            console.print(f"  {offender}", markup=False, highlight=False, soft_wrap=True)
        if check.offenders_count > len(check.offenders):
            console.print(f"  and {check.offenders_count - len(check.offenders)} more", markup=False)


def latencies_ms(traffic: Traffic) -> dict[str, float]:
    """Nearest-rank percentiles of the answered requests."""
    values = sorted(answer.latency_ms for answer in traffic.all() if answer.status)
    if not values:
        return {}
    found = {f"p{p}": values[min(len(values) - 1, -(-len(values) * p // 100) - 1)] for p in PERCENTILES}
    return {**found, "max": values[-1]}


def _kinds(kinds: Counter[str]) -> list[str]:
    return [f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in kinds.most_common()]


def _table(*columns: str, title: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left")
    return made
