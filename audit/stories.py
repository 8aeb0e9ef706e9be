"""Requests as their clients know them, from the history: what was asked, and what was told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from audit.accounts import fingerprint
from audit.commands import Effect, said_in
from audit.findings import Findings
from audit.rules import DECIMALS

TOLD: Final = (200, 409)
"""Statuses that tell the outcome of a decision on the account."""
REFUSALS: Final = (400, 404, 413, 415, 422)
"""Final too: the same request can never succeed, or is not what its id was used for."""

EVENTS_OF: Final[dict[str, frozenset[str]]] = {
    path: frozenset(kinds.split())
    for path, kinds in {
        "authorize": "payment_authorized payment_captured payment_declined payment_unknown_card "
        "payment_reversed payment_refunded",
        "increments": "payment_incremented",
        "captures": "payment_captured",
        "reversals": "payment_reversed",
        "refunds": "payment_refunded",
        "chargebacks": "chargeback_opened",
        "represent": "chargeback_represented",
        "accept": "chargeback_accepted",
        "accounts": "account_opened",
        "payments": "account_paid",
    }.items()
}
"""Last part of a path -> kinds of events; of any other, which is an account's: account_changed."""


def is_amount(text: str, minor: int, currency: str) -> bool:
    """Whether "10.00" in USD is 1000: an amount is written with exactly the decimals of its currency (""
    where that is not known)."""
    whole, _, fraction = text.partition(".")
    decimals = DECIMALS.get(currency, 2) if currency else len(fraction)
    digits = whole + fraction
    return digits.isdecimal() and int(digits) == minor and len(fraction) == decimals


class Story:
    """One request. Attempts at it come in any order."""

    __slots__ = (
        "amount", "code", "currency", "digest", "meaning", "missing", "mixed", "path", "payment_id",
        "refused", "said", "status", "timed_out",
    )  # fmt: skip

    def __init__(self) -> None:
        self.path = ""
        self.amount = ""
        """As it was written; "": none was."""
        self.currency = ""
        self.meaning = 0
        """Of path and body: another one with the same id is another request, and is answered 422."""
        self.said = 0
        """What it names besides its payment and amount."""
        self.mixed = False
        self.status = 0
        self.code: str | None = None
        """Of the acknowledged outcome; None: there was none."""
        self.payment_id = ""
        self.digest = ""
        self.refused: tuple[int, int] | None = None
        """The meaning that was refused, and with which status."""
        self.missing = ""
        """Path that was answered 404."""
        self.timed_out = True
        """Every attempt was answered 504, or was not recorded."""

    def add(self, line: dict[str, Any], findings: Findings) -> None:
        """An attempt: what was answered once is answered ever after."""
        status, meaning = line["status"], fingerprint([line["path"], line["body"]])
        if not self.path:
            self._asks(line, meaning)
        self.mixed = self.mixed or meaning != self.meaning
        if status not in (504, 503, 429) or line.get("problem") == "outcome-unknown":
            self.timed_out = False
        stable, request_id = findings["answers-stable"], line["body"]["request_id"]
        if status in REFUSALS:
            self.refused = meaning, status
            self.missing = line["path"] if status == 404 else self.missing
            if self.code is not None:
                stable.expect(
                    meaning != self.meaning,
                    f"{request_id}: answered {self.status} {self.code}, and {status}",
                )
        elif status in TOLD:
            code = line.get("code", "") if status == 200 else "409"
            told = status, code, line.get("payment_id") or "", line.get("digest", "")
            if self.code is None:
                self._asks(line, meaning)
                self.status, self.code, self.payment_id, self.digest = told
                if self.refused is not None:
                    stable.expect(
                        meaning != self.refused[0],
                        f"{request_id}: answered {self.refused[1]}, and {status} {code}",
                    )
                return
            stable.expect(
                told == (self.status, self.code, self.payment_id, self.digest),
                f"{request_id}: answered {self.status} {self.code}, later {status} {code}",
            )

    def _asks(self, line: dict[str, Any], meaning: int) -> None:
        body = line["body"]
        self.path, self.meaning = line["path"], meaning
        self.amount = str(body.get("amount") or body.get("limit") or "")
        self.currency = str(body.get("currency") or "")
        self.said = said_in(self.path, body)

    def asked_for(self, effect: Effect, currency: str) -> bool:
        """Whether what an event tells is what this request asked: that operation, on the payment of its path,
        for its amount in `currency`, with whatever else it named."""
        parts = self.path.split("/")
        if effect.said not in (0, self.said):
            return False
        if effect.kind not in EVENTS_OF.get(parts[-1], ("account_changed",)):
            return False
        if parts[1] == "payments" and len(parts) > 3 and parts[2] != effect.payment_id:
            return False
        return not self.amount or effect.amount is None or is_amount(self.amount, effect.amount, currency)

    def is_told_of(self, effects: Sequence[Effect], currency: str) -> bool:
        """Whether the log has the outcome that was told, and nothing that contradicts it."""
        if self.status == 409:
            return self._is_refused(effects) and not any(effect.decides for effect in effects)
        if self.code == "68":
            return any(effect.code == "68" or effect.kind == "request_cancelled" for effect in effects)
        # Who was told of an approval or a decline may have acted on it: no time-out takes that back.
        return not any(effect.code == "68" for effect in effects) and any(
            self._is(effect, currency) for effect in effects
        )

    def _is(self, effect: Effect, currency: str) -> bool:
        if effect.kind == "request_cancelled":
            told = effect.code == self.code and self.path == "/payments/reversals"
            return told and effect.said in (0, self.said)
        told = effect.code == self.code and self.payment_id in ("", effect.payment_id)
        return effect.decides and told and self.asked_for(effect, currency)

    def _is_refused(self, effects: Sequence[Effect]) -> bool:
        return any(
            effect.kind == "request_refused" and effect.code == "409" and effect.said in (0, self.said)
            for effect in effects
        )
