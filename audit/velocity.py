"""A recount of what risk counts, from docs/risk.md: lists and sums, nothing clever."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any, Final, NamedTuple

from audit.rules import decimals_of

LATE_MS: Final = 10_000
SEEN_MS: Final = 24 * 3_600_000
NOT_DECLINES: Final = {"00", "10", "68", "91", "94", "96"}
CODES: Final = {"count": "65", "amount": "61", "distinct_merchants": "59", "declines": "59"}
FIRST: Final = ("65", "61", "59")
KNOWN: Final = ("USD", "EUR", "GBP", "JPY", "KWD")
"""Currencies whose thresholds this auditor knows; a rule on amounts is not recounted for others."""


class Rule(NamedTuple):
    id: str
    version: int
    metric: str
    window_s: int
    threshold: int
    outcome: str
    thresholds: dict[str, int]

    @property
    def width_ms(self) -> int:
        return 1_000 if self.window_s <= 60 else self.window_s * 1_000 // 60

    def limit(self, currency: str, exponent: int) -> int:
        if self.metric != "amount":
            return self.threshold
        if currency in self.thresholds:
            return self.thresholds[currency]
        return self.threshold * int(10**exponent) // 100


IN_FORCE: Final = (
    Rule("velocity-count-60s", 1, "count", 60, 10, "decline", {}),
    Rule("velocity-amount-60s", 1, "amount", 60, 500_000, "decline", {"JPY": 750_000, "KWD": 1_500_000}),
    Rule("declines-10m", 1, "declines", 600, 4, "alert", {}),
)


class Verdict(NamedTuple):
    code: str
    hits: frozenset[tuple[str, int, int]]
    """(rule, version, value)"""
    certain: bool
    """False: a currency whose thresholds are not known here."""


class Entry(NamedTuple):
    at: int
    kind: str
    """request or decline"""
    amount: int
    exponent: int
    merchant: str


class Recount:
    """Of one partition of card.requests, record by record."""

    def __init__(self) -> None:
        self.now = 0
        self._rules = list(IN_FORCE)
        self._entries: dict[str, deque[Entry]] = defaultdict(deque)
        self._currency: dict[str, str] = {}
        self._seen: dict[tuple[str, str, str], tuple[int, Verdict, str]] = {}
        """Request -> when it was judged, how, its fingerprint."""
        self._had: dict[tuple[str, str], int] = {}
        """(account, client) -> the day in which a client whose key is for its own payments last had it."""
        self.counts: dict[str, dict[int, int]] = {}
        """Account -> second -> requests, as risk's ring of 60 s has to have them after the last request."""
        self.verdicts = self._seen

    def feed(self, timestamp: int, message: dict[str, Any]) -> Verdict | None:
        """The verdict that a request must get; None for what is not a request."""
        self.now = max(self.now, timestamp)
        kind = message["type"].partition("/")[0]
        if kind in ("authorize", "increment"):
            return self._judge(timestamp, message, kind)
        if kind == "payment_outcome" and message["response_code"] not in NOT_DECLINES:
            at = max(timestamp, self.now - LATE_MS)
            self._entries[message["account"]].append(Entry(at, "decline", 0, 2, ""))
        elif kind == "put_rule":
            self._put(message)
        return None

    def _put(self, message: dict[str, Any]) -> None:
        body = message["body"]
        rule = Rule(
            message["rule"], message["version"], body["metric"], body["window_s"], body["threshold"],
            body["outcome"], {n[10:]: v for n, v in body.items() if n.startswith("threshold.")},
        )  # fmt: skip
        if all(known.version < rule.version for known in self._rules if known.id == rule.id):
            self._rules = [known for known in self._rules if known.id != rule.id]
            if not body.get("retired"):
                self._rules.append(rule)

    def _judge(self, timestamp: int, message: dict[str, Any], kind: str) -> Verdict:
        account, now = message["account"], self.now
        request = account, message.get("client", "local"), message["request_id"]
        seen, fingerprint = self._seen.get(request), message.get("fingerprint", "")
        if seen is not None and seen[0] <= now - SEEN_MS:
            seen = None
        if seen is not None and seen[2] == fingerprint:
            return seen[1]
        if kind == "authorize":
            assumed = message["currency"]
            given = assumed if message.get("currency_given") else ""
            exponent = decimals_of(assumed)
            merchant = message.get("merchant", {}).get("id", "")
        else:
            assumed, given, merchant, exponent = "", "", "", message["exponent"]
        client, day = (account, request[1]), now // SEEN_MS
        if message.get("own") and kind == "authorize":
            self._had[client] = day
        counts_on = not message.get("own") or self._had.get(client, -2) >= day - 1
        currency = given or self._currency.get(account, "") or assumed
        if counts_on:
            self._currency[account] = currency
        entries = self._entries[account]
        at = max(timestamp, now - LATE_MS)
        entries.append(Entry(at, "request", message["amount"], exponent, merchant))
        longest = max(rule.window_s for rule in self._rules) * 1_000
        while entries and entries[0].at < now - 2 * longest:
            entries.popleft()
        hits, codes = set(), set()
        for rule in self._rules:
            value = self._value(rule, entries, exponent)
            if value > rule.limit(currency if decimals_of(currency) == exponent else "", exponent):
                hits.add((rule.id, rule.version, value))
                if rule.outcome == "decline":
                    codes.add(CODES[rule.metric])
        code = next((code for code in FIRST if code in codes), "")
        verdict = Verdict(code, frozenset(hits), not currency or currency in KNOWN)
        if not counts_on:
            entries.pop()
            return verdict
        if seen is None:
            self._seen[request] = now, verdict, fingerprint
        oldest = now // 1_000 - 60
        counts: dict[int, int] = {}
        for entry in entries:
            if entry.kind == "request" and entry.at // 1_000 > oldest:
                counts[entry.at // 1_000] = counts.get(entry.at // 1_000, 0) + 1
        self.counts[account] = counts
        return verdict

    def _value(self, rule: Rule, entries: deque[Entry], exponent: int) -> int:
        width = rule.width_ms
        oldest = self.now // width - rule.window_s * 1_000 // width
        kind = "decline" if rule.metric == "declines" else "request"
        counted = [entry for entry in entries if entry.kind == kind and entry.at // width > oldest]
        if rule.metric == "amount":
            return sum(entry.amount for entry in counted if entry.exponent == exponent)
        if rule.metric == "distinct_merchants":
            return len({entry.merchant for entry in counted if entry.merchant})
        return len(counted)
