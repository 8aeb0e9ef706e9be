"""What is checked, how much of it was looked at, and what does not hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

EXAMPLES_MAX: Final = 10


@dataclass
class Check:
    """One invariant."""

    name: str
    says: str
    """A sentence that must hold."""
    unit: str
    looked_at: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why nothing was looked at, where that is no fault."""
    partly: str = ""
    """Why some of it was not looked at, where that is no fault."""

    def fails(self, example: str) -> None:
        self.wrong += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(example)

    def leaves_out(self, reason: str) -> None:
        """Not all of it can be looked at."""
        self.partly = self.partly or reason

    def expect(self, holds: bool, example: str) -> None:
        self.looked_at += 1
        if not holds:
            self.fails(example)


CHECKS: Final = (
    ("acknowledged-once", "every acknowledged outcome is in the log exactly once", "acknowledged requests"),
    ("answers-stable", "a request that was answered is answered the same ever after", "answers"),
    ("event-has-request", "no event without a request that somebody sent", "events"),
    ("command-decided-once", "every command is decided exactly once", "commands"),
    ("unknown-ended", "a request without an answer took effect once or not at all", "requests"),
    ("time-out-leaves-no-hold", "an authorization answered 504 or 68 holds nothing", "requests"),
    ("reads", "what a reader is shown is a state of the log, with all it was told before", "reads"),
    ("account-sums", "held, posted and available of every account follow from its events", "events"),
    ("payment-sums", "the sums of every payment follow from its events", "events"),
    (
        "lifecycle",
        "a payment's status changes only as the domain allows, its merchant and card never",
        "events",
    ),
    ("decisions", "approvals and declines follow from the account as it was", "decisions"),
    ("velocity", "velocity decisions equal a recount from the log", "assessments"),
    ("journal-balanced", "every journal entry sums to zero in each currency", "entries"),
    ("hash-chain", "each journal partition is an unbroken chain", "entries"),
    ("journal-complete", "every event that moves money has its one entry, with the right postings", "events"),
    ("trial-balance", "all ledger accounts together sum to zero in each currency", "ledger accounts"),
    ("captures", "captured = cleared + rejected + pending, and suspense is what is pending", "captures"),
    (
        "presentments",
        "each capture goes to the clearing house, as it was, and nothing else does",
        "submissions",
    ),
    ("merchant-items", "each change of what a merchant is owed is settled by one item", "items"),
    ("settlement", "a closed cycle pays each merchant what its items say, once", "positions"),
    ("sagas", "every saga has ended", "sagas"),
    ("tables", "the tables equal a fold of the log", "rows"),
    ("read-model", "the read model equals the log", "rows"),
    ("all-processed", "no processor has records left to do", "partitions"),
    ("dead-letters", "dead letters are the poison that was planted, and nothing else", "dead letters"),
    ("no-pan", "no card number is in any topic or in the read model", "values"),
)


NEEDED: Final = (
    "event-has-request", "command-decided-once", "account-sums", "tables", "all-processed",
)  # fmt: skip
"""Checks for which any system that was ever used has something to look at."""


class Findings:
    """All checks by name. A name that is not in `CHECKS` does not exist."""

    def __init__(self) -> None:
        self.checks = {name: Check(name, says, unit) for name, says, unit in CHECKS}
        self.lost = 0
        """Acknowledged outcomes that the log does not have."""
        self.duplicated = 0
        """Requests that took effect more than once."""
        self.counts: dict[str, int] = {}
        """What was read."""

    def __getitem__(self, name: str) -> Check:
        return self.checks[name]

    def end(self) -> None:
        """All has been read. Where there was nothing to read, nothing adds up."""
        for name in NEEDED:
            check = self.checks[name]
            if not check.looked_at and not check.wrong:
                check.fails("there is nothing to look at")

    @property
    def passed(self) -> bool:
        return not self.violations

    @property
    def violations(self) -> list[str]:
        """A line for each example of what does not hold."""
        lines = []
        for check in self.checks.values():
            lines += [f"{check.name}: {example}" for example in check.examples]
            if check.wrong > len(check.examples):
                lines.append(f"{check.name}: {check.wrong - len(check.examples)} more like these")
        return lines

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "passed": self.passed,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "read": self.counts,
            "violations": self.violations,
            "checks": [
                {
                    "name": check.name,
                    "says": check.says,
                    "looked_at": check.looked_at,
                    "unit": check.unit,
                    "wrong": check.wrong,
                    "examples": check.examples,
                    **({"skipped": check.skipped} if check.skipped else {}),
                    **({"partly": check.partly} if check.partly else {}),
                }
                for check in self.checks.values()
            ],
        }

    def text(self) -> str:
        """For people: one line a check, what it counted, and the first that does not hold."""
        lines = ["read: " + ", ".join(f"{count:,} {what}" for what, count in self.counts.items())]
        for check in self.checks.values():
            if check.wrong:
                mark, more = "WRONG", f", {check.wrong:,} wrong"
            elif check.looked_at:
                mark, more = "ok", ""
            else:
                mark, more = "-", f" ({check.skipped or check.partly or 'there are none'})"
            lines.append(f"{mark:5}  {check.name:24} {check.says}: {check.looked_at:,} {check.unit}{more}")
            if check.partly and check.looked_at:
                lines.append(f"{'':7}  not all of it: {check.partly}")
            lines += [f"{'':7}  {example}" for example in check.examples]
        lines.append(
            "everything adds up"
            if self.passed
            else f"{sum(c.wrong for c in self.checks.values()):,} violations"
        )
        return "\n".join(lines)
