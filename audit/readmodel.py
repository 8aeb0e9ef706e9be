"""The read model held against the log: each row of each table is what the applied records make it, and there
is no row besides. From docs/readmodel.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from audit.accounts import name_of
from audit.evidence import Evidence, Record
from audit.findings import Findings
from audit.rules import DECIMALS

VIEWS: Final = (
    "payment.events", "fraud.alerts", "ledger.journal", "ledger.settlement-journal", "clearing.items",
    "settlement.positions", "payment.sagas", "risk.rules",
)  # fmt: skip
"""What it is made from."""
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "payment_events": ("place",),
    "accounts": ("account_id",),
    "payments": ("payment_id",),
    "journal_entries": ("entry_key",),
    "alerts": ("alert_id",),
    "clearing_items": ("payment_id", "n"),
    "settlement_positions": ("cycle", "merchant_id", "currency"),
    "settlement_cycles": ("cycle", "partition"),
    "sagas": ("payment_key",),
    "rules": ("rule", "version", "partition"),
}
"""Tables whose rows are looked at one by one -> their keys."""
SUMMED: Final[dict[str, tuple[str, ...]]] = {
    "journal_postings": ("account", "currency"),
    "payment_metadata": (),
}
"""Tables of many small rows, of which number and sum of hashes are compared -> by which columns."""
EXPIRE: Final = {"alerts": "fraud.alerts", "sagas": "payment.sagas"}
"""Tables that keep what retention has taken from their topics."""

PAYMENT: Final = re.compile(r"pay_[A-Za-z0-9_-]{1,64}_(?:0|[1-9a-f][0-9a-f]{0,11})")
Row = dict[str, Any]
Key = tuple[Any, ...]
Search = Callable[[Iterable[bytes], str], None]
"""For card numbers: texts, and where they are."""


def digest(row: Row, key: tuple[str, ...]) -> int:
    """Of all columns but those of the key."""
    return hash(tuple(sorted((name, value) for name, value in row.items() if name not in key)))


class ReadModel:
    """`given`: there is one. What it holds is read at once; the log is told to it record by record."""

    def __init__(self, evidence: Evidence, findings: Findings, search: Search) -> None:
        self._check = findings["read-model"]
        self._begins = evidence.begins
        self._rows: dict[str, dict[Any, int]] = {name: {} for name in KEYS}
        self._wanted: dict[str, dict[Any, int]] = {name: {} for name in KEYS}
        self._sums: dict[str, dict[Key, list[int]]] = {}
        self._wanted_sums: dict[str, dict[Key, list[int]]] = {}
        for name in (*SUMMED, "ledger_balances"):
            self._sums[name] = defaultdict(lambda: [0, 0])
            self._wanted_sums[name] = defaultdict(lambda: [0, 0])
        self.applied: dict[tuple[str, int], int] = {}
        """(topic, partition) -> the first record that has not been applied."""
        self.given = evidence.has_read_model
        if self.given:
            self._read(evidence, search)
        else:
            self._check.skipped = "no read model was given"

    def _read(self, evidence: Evidence, search: Search) -> None:
        for row in evidence.rows("positions") or ():
            self.applied[row["topic"], row["partition"]] = row["next_offset"]
        for table in (*KEYS, *SUMMED, "ledger_balances"):
            rows = evidence.rows(table)
            if rows is None:
                self._check.fails(f"the database has no table {table}")
            for row in rows or ():
                search([str(value).encode() for value in row.values()], f"read model, {table}")
                if table in KEYS:
                    self._rows[table][_key(table, row)] = digest(row, KEYS[table])
                elif table in SUMMED:
                    _add(self._sums[table], table, row)
                else:
                    _balance(self._sums[table], row, row["debits"], row["credits"])

    def has(self, topic: str, partition: int, offset: int) -> bool:
        """The record has been applied."""
        return offset < self.applied.get((topic, partition), 0)

    # -- what the log says

    def want(self, table: str, row: Row) -> None:
        """A row must be there, unless a later record says otherwise of its key."""
        self._wanted[table][_key(table, row)] = digest(row, KEYS[table])

    def compare(self, *tables: str) -> None:
        """All rows that were wanted so far."""
        for table in tables:
            rows, wanted = self._rows[table], self._wanted[table]
            for key, expected in wanted.items():
                found = rows.pop(key, None)
                self._check.expect(
                    found == expected, f"{table}: {key} is {'missing' if found is None else 'another'}"
                )
            wanted.clear()

    def event(self, record: Record, event: dict[str, Any], account: str) -> None:
        """One of payment.events, and the account and the payment as it leaves them."""
        place = record.offset << 14 | record.partition
        payment = event.get("payment")
        payment_id = payment["payment_id"] if payment else event.get("payment_id", "")
        known = PAYMENT.fullmatch(payment_id) is not None and event.get("http_status") not in (404, 422)
        payment_key = _payment_key(payment_id, record.partition) if known else None
        self.want("payment_events", {
            "place": place, "account_id": account, "seq": event.get("seq"), "payment_key": payment_key,
            "at": event["at"], "type": event["type"], "event": _text(record),
        })  # fmt: skip
        self.compare("payment_events")
        if "account" in event:
            shown = event["account"]
            self.want("accounts", {
                "account_id": account, "status": shown.get("status", "active"), "currency": shown["currency"],
                "credit_limit": shown["limit"], "held": shown.get("held", 0),
                "posted": shown.get("posted", 0), "version": shown.get("version", 0), "place": place,
            })  # fmt: skip
        if payment:
            if payment_id not in self._wanted["payments"]:
                self._metadata(payment, payment_key)
            self.want("payments", {
                "payment_key": payment_key, "payment_id": payment_id, "account_id": payment["account"],
                "client": _storable(payment["client"]),
                "merchant_id": _storable(payment.get("merchant", {}).get("id", "")),
                "currency": payment["currency"], "amount_e4": payment["amount"] * _scale(payment["currency"]),
                "created_at": payment["created_at"], "status": payment["status"], "place": place,
                "clearing": _clearing(payment),
            })  # fmt: skip

    def _metadata(self, payment: dict[str, Any], payment_key: int | None) -> None:
        """It is the same in all events of a payment."""
        pairs = {(_storable(key), _storable(value)) for key, value in payment.get("metadata", {}).items()}
        for key, value in pairs:
            _add(self._wanted_sums["payment_metadata"], "payment_metadata", {
                "key": key, "value": value, "created_at": payment["created_at"], "payment_key": payment_key,
            })  # fmt: skip

    def entry(self, record: Record, entry: dict[str, Any]) -> None:
        """One of either journal, with its postings and what they add to balances."""
        settles = entry["journal"] == "settlement"
        key = (entry["number"] << 1 | settles) << 14 | record.partition
        payment_id = entry.get("payment_id")
        self.want("journal_entries", {
            "entry_key": key, "journal": entry["journal"], "at": entry["at"], "kind": entry["kind"],
            "payment_key": _payment_key(payment_id, record.partition) if payment_id else None,
            "entry": _text(record),
        })  # fmt: skip
        self.compare("journal_entries")
        for account, currency, amount in entry["postings"]:
            row = {
                "account": _storable(account), "at": entry["at"], "entry_key": key, "currency": currency,
                "amount": amount,
            }  # fmt: skip
            _add(self._wanted_sums["journal_postings"], "journal_postings", row)
            _balance(self._wanted_sums["ledger_balances"], row, max(0, amount), max(0, -amount))

    def other(self, record: Record, message: dict[str, Any]) -> None:
        """One of any other topic that it is made from."""
        kind, text = name_of(message), _text(record)
        if kind == "clearing_item" and message.get("n"):
            self.want("clearing_items", {
                "payment_id": message["payment_id"], "n": message["n"], "partition": record.partition,
                "offset": record.offset,
            })  # fmt: skip
        elif kind == "settlement_position":
            self.want("settlement_positions", {
                "cycle": message["cycle"], "merchant_id": _storable(message["merchant_id"]),
                "currency": message["currency"], "position": text,
            })  # fmt: skip
        elif kind == "cycle_closed":
            names = ("cycle", "partition", "positions", "closed_at", "end_item")
            self.want("settlement_cycles", {name: message[name] for name in names})
        elif kind == "saga_event":
            self.want("sagas", {
                "payment_key": _payment_key(message["payment_id"], record.partition), "saga": text,
                "state": message["state"], "since": message["since"],
            })  # fmt: skip
        elif kind == "rule_in_force":
            rule = message["rule"]
            self.want("rules", {
                "rule": rule["id"], "version": rule["version"], "partition": record.partition,
                "at": message["at"], "body": msgspec.json.encode(rule).decode(),
            })  # fmt: skip
        elif kind == "fraud_alert":
            self.want("alerts", {
                "alert_id": message["alert_id"], "account_id": message["account"], "at": message["at"],
                "rule": message["hit"]["rule"], "alert": text,
            })  # fmt: skip

    def end(self) -> None:
        """The whole log has been told."""
        if not self.given:
            return
        self.compare(*KEYS)
        for table, rows in self._rows.items():
            topic = EXPIRE.get(table, "")
            if not any(place.startswith(f"{topic}/") for place in self._begins):
                for key in rows:
                    self._check.fails(f"{table}: {key} is in no topic")
        for table, wanted in self._wanted_sums.items():
            found = self._sums[table]
            for key in wanted.keys() | found.keys():
                self._check.expect(
                    found[key] == wanted[key], f"{table}: {key} is {found[key]}, the log says {wanted[key]}"
                )


def _key(table: str, row: Row) -> Any:
    """Of one column, its value: there are millions."""
    names = KEYS[table]
    return row[names[0]] if len(names) == 1 else tuple(row[name] for name in names)


def _add(sums: dict[Key, list[int]], table: str, row: Row) -> None:
    """The number of rows, and the sum of their hashes: the same in any order."""
    both = sums[tuple(row[name] for name in SUMMED[table])]
    both[0] += 1
    both[1] = both[1] + digest(row, ()) & 0xFFFF_FFFF_FFFF_FFFF


def _balance(sums: dict[Key, list[int]], row: Row, debits: int, credits: int) -> None:
    both = sums[row["account"], row["currency"]]
    both[0] += debits
    both[1] += credits


def _payment_key(payment_id: str, partition: int) -> int:
    """Where the payment began: its id ends with the position of its first command, in hexadecimal."""
    return int(payment_id.rpartition("_")[2], 16) << 14 | partition


def _clearing(payment: dict[str, Any]) -> str:
    """Of the least advanced capture."""
    states = {one.get("state", "submitted") for one in payment.get("captures", ())}
    return next((state for state in ("submitted", "cleared", "rejected") if state in states), "")


def _scale(currency: str) -> int:
    """Ten-thousandths of a unit in a minor unit."""
    return int(10 ** (4 - DECIMALS.get(currency, 2)))


def _storable(text: str) -> str:
    """As every database takes it: PostgreSQL has no NUL."""
    return text.replace("\0", "\ufffd")


def _text(record: Record) -> str:
    return (record.value or b"").decode()
