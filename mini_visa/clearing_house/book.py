"""The clearing house's book: one decision per presentment, however often it is asked.

It is an outside party with a mind, a disk and a clock of its own, as awkward as it is told to be.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from mini_visa.domain.clearing import ACCEPTED, CANCELLED, REJECTED

PENDING: Final = "pending"
CONFLICT: Final = "conflict"
REASON: Final = "account_data_invalid"

SANDBOX_ACCEPTED: Final = "sandbox-accepted"
SANDBOX_REJECTED: Final = "sandbox-rejected"
SANDBOX_SILENT: Final = "sandbox-silent"
"""Merchants whose presentments are accepted at once, rejected at once, or never decided, whatever the shares
say: ids that begin so. A client's tests can choose what happens, as with any processor's sandbox."""
NEVER: Final = float("inf")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS presentments (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount INTEGER NOT NULL,
    decides_at REAL NOT NULL,
    decision TEXT NOT NULL,
    times INTEGER NOT NULL
) WITHOUT ROWID
"""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Conduct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it behaves. Whom it hits follows from keys and `seed`, so a run can be repeated."""

    rejections: Share = 0.0
    """Share of presentments that are rejected."""
    lost_answers: Share = 0.0
    """Share of answers that do not arrive, although it has decided."""
    delay_s: Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)] = 0.0
    """How long it says "pending" first."""
    late: Share = 0.0
    """Share of presentments that it is late with."""
    late_s: Annotated[float, msgspec.Meta(ge=0.0, le=31 * 86_400.0)] = 0.0
    """How long it says "pending" about those."""
    seed: int = 0


Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")]


class Presented(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A presentment as it comes in."""

    key: Key
    """The idempotency key."""
    amount: Annotated[int, msgspec.Meta(ge=1, le=10**12)]
    """Minor units."""
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
    captured_at: Annotated[int, msgspec.Meta(ge=0)]
    card_bin: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{0,8}\Z")] = ""
    card_last4: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{0,4}\Z")] = ""
    merchant_id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    mcc: Annotated[str, msgspec.Meta(max_length=256)] = ""
    authorization_code: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    key: str
    status: str
    """accepted, rejected or cancelled, for good; pending; or conflict: the key was used for another
    presentment, so this one is not taken."""
    reason: str = ""


@dataclass(frozen=True)
class Totals:
    """Decided presentments of one currency."""

    status: str
    currency: str
    presentments: int
    amount: int


class Book:
    """In the SQLite file `path`; None: in memory. `clock` gives seconds."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute("PRAGMA synchronous=NORMAL")
        self._rows.execute(_SCHEMA)
        self._clock = clock
        self.conduct = Conduct()

    def close(self) -> None:
        self._rows.close()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is done inside is written to the disk once, at its end."""
        self._rows.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._rows.execute("ROLLBACK")
            raise
        self._rows.execute("COMMIT")

    def present(self, presented: Presented) -> Answer:
        """Decide, the first time; afterwards say what was decided."""
        key = presented.key
        digest = sha256(msgspec.json.encode(presented)).hexdigest()
        decision, after_s = self._decide(presented)
        ((*row,),) = self._rows.execute(
            "INSERT INTO presentments VALUES (?, ?, ?, ?, ?, ?, 1)"
            " ON CONFLICT (key) DO UPDATE SET times = times + 1 RETURNING digest, decides_at, decision",
            (
                key,
                digest,
                presented.currency,
                presented.amount,
                self._clock() + after_s,
                decision,
            ),
        )
        if row[0] not in (digest, ""):
            return Answer(key, CONFLICT, "this key was used for another presentment")
        return self._answer(key, row)

    def find(self, key: str) -> Answer | None:
        """None: never seen."""
        row = self._row(key)
        return None if row is None else self._answer(key, row)

    def cancel(self, key: str) -> Answer:
        """Call it back. What is decided stays decided; what was never seen will not be accepted any more."""
        self._rows.execute(
            "INSERT INTO presentments VALUES (?, '', '', 0, 0, ?, 0) ON CONFLICT (key)"
            " DO UPDATE SET decision = excluded.decision, decides_at = 0 WHERE decides_at > ?",
            (key, CANCELLED, self._clock()),
        )
        row = self._row(key)
        assert row is not None
        return self._answer(key, row)

    def times(self, key: str) -> int:
        """How often it was presented."""
        found = self._rows.execute("SELECT times FROM presentments WHERE key = ?", (key,)).fetchone()
        return 0 if found is None else int(found[0])

    def loses(self, key: str, ask: int) -> bool:
        """Whether the answer number `ask` about `key` gets lost."""
        return self._hit(self.conduct.lost_answers, f"lose {ask}", key)

    def totals(self) -> list[Totals]:
        """What was decided so far, by status and currency."""
        return [
            Totals(*row)
            for row in self._rows.execute(
                "SELECT decision, currency, count(*), sum(amount) FROM presentments"
                " WHERE decides_at <= ? GROUP BY 1, 2 ORDER BY 1, 2",
                (self._clock(),),
            )
        ]

    def _decide(self, presented: Presented) -> tuple[str, float]:
        """(decision, seconds until it is told)"""
        merchant, conduct = presented.merchant_id, self.conduct
        if merchant.startswith(SANDBOX_ACCEPTED):
            return ACCEPTED, 0.0
        if merchant.startswith(SANDBOX_REJECTED):
            return REJECTED, 0.0
        if merchant.startswith(SANDBOX_SILENT):
            return ACCEPTED, NEVER
        rejected = self._hit(conduct.rejections, "reject", presented.key)
        late = self._hit(conduct.late, "late", presented.key)
        return REJECTED if rejected else ACCEPTED, conduct.late_s if late else conduct.delay_s

    def _row(self, key: str) -> Any:
        return self._rows.execute(
            "SELECT digest, decides_at, decision FROM presentments WHERE key = ?", (key,)
        ).fetchone()

    def _answer(self, key: str, row: Any) -> Answer:
        _, decides_at, decision = row
        if decision != CANCELLED and decides_at > self._clock():
            return Answer(key, PENDING)
        return Answer(key, decision, REASON if decision == REJECTED else "")

    def _hit(self, share: float, what: str, key: str) -> bool:
        """Whether `key` is among the `share` of all keys that `what` happens to, the same each time."""
        if share == 0.0:
            return False
        digest = sha256(f"{self.conduct.seed}/{what}/{key}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / (1 << 56) < share
