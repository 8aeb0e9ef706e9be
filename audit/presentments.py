"""What goes out to the clearing house: each capture, as it was. From docs/ledger.md."""

from __future__ import annotations

from typing import Any

from audit.accounts import fingerprint, name_of
from audit.findings import Findings


class Presentments:
    """Of all partitions: captures, until clearing.submissions has been read."""

    def __init__(self, findings: Findings, running: bool) -> None:
        """`running`: a submission's capture may be newer than what was read of the events."""
        self._check = findings["presentments"]
        self._running = running
        self._captures: dict[str, int] = {}
        """Key -> hash of what has to be presented."""
        self._due: dict[str, str] = {}
        """Key of a capture that clearing has done, and that has not been presented -> where."""

    def add(self, event: dict[str, Any], where: str, *, done: bool) -> None:
        """A capture; `done`: by clearing."""
        payment = event["payment"]
        key = f"{payment['payment_id']}-{event['n']}"
        self._captures[key] = _meaning(payment["payment_id"], event["n"], event, payment, event["at"])
        if done:
            self._due[key] = where

    def take(self, message: dict[str, Any], where: str) -> None:
        """A presentment of a capture, for the first time or again; or one that is called back."""
        key, kind = message["key"], name_of(message)
        capture = self._captures.get(key)
        if capture is None:
            self._check.expect(self._running, f"{where}: {kind} {key}, which nobody captured")
            return
        if kind == "presentment":
            self._due.pop(key, None)
        called_back = kind == "cancel_presentment" and key == f"{message['payment_id']}-{message['n']}"
        self._check.expect(
            called_back or capture == _presented(message), f"{where}: {kind} {key} is not what was captured"
        )

    def end(self, begins: str) -> None:
        """`begins`: where retention has taken the first submissions, "" where it has not."""
        if begins:
            self._check.leaves_out(f"{begins}: whether each capture was presented cannot be said")
            return
        for key, where in self._due.items():
            self._check.fails(f"{where}: capture {key} was never presented")


def _presented(message: dict[str, Any]) -> int:
    return _meaning(message["payment_id"], message["n"], message, message, message.get("captured_at", 0))


def _meaning(payment_id: str, n: int, capture: dict[str, Any], of: dict[str, Any], at: int) -> int:
    """Of one capture: how much, for whom, from which card. `of`: what says the latter."""
    return fingerprint([
        payment_id, n, capture["amount"], capture.get("forced", False), at, of["currency"], of["card"],
        of.get("merchant", {}), of.get("authorization_code", ""),
    ])  # fmt: skip
