"""The journals: chains, balance, and what they add up to. From docs/ledger.md."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

import msgspec

from audit.accounts import Postings
from audit.findings import Findings

_encode = msgspec.json.Encoder().encode


class Chain:
    """One partition of one journal."""

    def __init__(self, findings: Findings, totals: Counter[tuple[str, str]]) -> None:
        self.number = 0
        self.hash = ""
        self._findings = findings
        self._totals = totals
        """(ledger account, currency) -> debits less credits, of all journals."""

    def feed(self, entry: dict[str, Any], where: str) -> Postings:
        """Check an entry against the one before it and add it up. Returns its postings."""
        chain = self._findings["hash-chain"]
        facts = [
            entry["previous"], entry["journal"], entry["partition"], entry["number"], entry["at"],
            entry["source"], entry["kind"], entry.get("account", ""), entry.get("payment_id", ""),
            entry.get("merchant_id", ""), entry.get("reference", ""), entry["postings"],
        ]  # fmt: skip
        if entry["number"] != self.number + 1:
            reason = f"entry {entry['number']} follows {self.number}"
        elif entry["previous"] != self.hash:
            reason = f"entry {entry['number']} was not written after the one before it"
        elif entry["hash"] != sha256(_encode(facts)).hexdigest():
            reason = f"entry {entry['number']} was changed after it was written"
        else:
            reason = ""
        chain.expect(not reason, f"{where}: {reason}")
        self.number, self.hash = entry["number"], entry["hash"]
        sums: Counter[str] = Counter()
        postings: Postings = {}
        for account, currency, amount in entry["postings"]:
            sums[currency] += amount
            postings[account, currency] = postings.get((account, currency), 0) + amount
            self._totals[account, currency] += amount
        self._findings["journal-balanced"].expect(
            not any(sums.values()), f"{where}: entry {entry['number']} sums to {dict(sums)}"
        )
        return postings
