"""One request, one outcome (docs/domain.md, "Time-outs" included): what each command of a partition may do
follows from what is remembered of its request, and so does the table of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from audit.accounts import name_of
from audit.commands import CardAccount, Command, Deed, Effect, account_in, changed, explains, payment_made_by
from audit.findings import Findings
from audit.rules import DAY_MS, DOES, INTERNAL, LATE, REFUSED, UNDONE

WINDOW_MS: Final = DAY_MS

Request = tuple[str, str, str]
"""(account, client, request id)"""

OUTCOMES: Final = frozenset({"record_clearing"})
"""Commands that only a service sends."""
NOTHING: Final = frozenset({""})
"""What a repetition does: it gets the stored answer."""
FORBIDDEN: Final = frozenset({"409"})
CONFLICT: Final = frozenset({"422"})
"""What another request with the same id does."""
UNNAMED: Final = hash(("authorize", ""))
"""Meaning of a request that was cancelled by its id alone."""


class Row(NamedTuple):
    """What is remembered of a request."""

    at: int
    """Of the first answer, or of the cancellation until the request comes: the window counts from here."""
    meaning: int
    """Of operation and fingerprint."""
    effect: Effect | None
    """The answer is about this; None: cancelled before it came."""
    standing: tuple[str, ...] = ()
    """Attempts that got the answer, and were not given up."""
    given_up: tuple[str, ...] = ()


def repeated(effects: Iterable[Effect]) -> int:
    """How many times a request was decided again within the window of its first decision."""
    first, again = None, 0
    for effect in effects:
        if not effect.decides:
            continue
        if first is None or effect.at >= first.at + WINDOW_MS:
            first = effect
        elif effect.position != first.position:
            again += 1
    return again


def request_of(command: Command) -> Request:
    return command["account"], command.get("client", "local"), command["request_id"]


class Requests:
    """The requests of one partition, command by command: what each may do follows from what is remembered of
    its request."""

    def __init__(self, findings: Findings) -> None:
        self.rows: dict[Request, Row] = {}
        self.newest = 0
        """Event time."""
        self._findings = findings
        self._accounts: dict[str, CardAccount] = {}

    def pass_time(self, at: int) -> None:
        self.newest = max(self.newest, at)

    def feed(self, command: Command, deeds: Sequence[Deed], where: str) -> None:
        """A command, and what it made apart from holds that had expired before it."""
        request, kind = request_of(command), name_of(command)
        if INTERNAL.get(request[1], kind) != kind or (kind in OUTCOMES and request[1] not in INTERNAL):
            self._findings["event-has-request"].fails(
                f"{where}: {kind} by {request[1]}, who may not send one"
            )
        row = self._remembered(request)
        expected = self._expected(command, row)
        made = deeds[0].effect.outcome if deeds else ""
        if expected == UNDONE and deeds and not deeds[0].captured:
            expected = UNDONE - REFUSED
        self._findings["command-decided-once"].expect(
            len(deeds) <= 1 and made in expected,
            f"{where}: {kind} {request[2]} made {[one.effect.outcome for one in deeds]}, "
            f"which should be {' or '.join(sorted(one or 'nothing' for one in expected))}",
        )
        if deeds:
            account = self._accounts.get(request[0])
            self._findings["event-has-request"].expect(
                explains(command, deeds[0], account),
                f"{where}: {kind} {request[2]} of {command.get('amount', 'all')} on "
                f"{command.get('payment_id') or request[0]} is not what {deeds[0].effect} says it was",
            )
        self._remember(command, request, row, deeds[-1].effect if deeds else None)

    def _remembered(self, request: Request) -> Row | None:
        row = self.rows.get(request)
        return None if row is None or row.at + WINDOW_MS <= self.newest else row

    def _expected(self, command: Command, row: Row | None) -> frozenset[str]:
        """Outcomes that the command may have; "": none."""
        kind, meaning = name_of(command), _meaning(command)
        if kind == "time_out_reversal":
            return self._expected_of_time_out(command, row)
        if row is None:
            original = command.get("original_request_id")
            return self._expected_of_reversal(command, original) if original else DOES.get(kind, NOTHING)
        if row.effect is None and kind == "authorize" and row.meaning in (meaning, UNNAMED):
            return LATE
        return NOTHING if row.meaning == meaning else CONFLICT

    def _expected_of_time_out(self, command: Command, row: Row | None) -> frozenset[str]:
        """The hold goes unless another attempt was answered and stands by it; then nothing does."""
        attempt = command.get("attempt", "")
        if row is None:
            return frozenset({"request_cancelled"})
        if row.meaning not in (_meaning(command), UNNAMED):
            return CONFLICT
        if attempt in row.given_up:
            return NOTHING
        if row.effect is None:
            return frozenset({"request_cancelled"})
        stands = any(one != attempt for one in row.standing)
        if stands or row.effect.code == "68" or row.effect.kind == "request_refused":
            return FORBIDDEN
        return UNDONE if row.effect.kind == "payment_authorized" else UNDONE - REFUSED

    def _expected_of_reversal(self, command: Command, original: str) -> frozenset[str]:
        """By request id: what has not come is cancelled, what is no authorization stands."""
        account, client, _ = request_of(command)
        row = self._remembered((account, client, original))
        if row is None or row.effect is None:
            return frozenset({"request_cancelled"})
        of, made = row.effect, payment_made_by(account, row.effect.position)
        is_payment = of.code == "68" or (of.kind != "request_refused" and of.payment_id == made)
        return DOES["reverse"] - {"404", "request_cancelled"} if is_payment else FORBIDDEN

    def _remember(self, command: Command, request: Request, row: Row | None, effect: Effect | None) -> None:
        kind, attempt = name_of(command), command.get("attempt", "")
        if kind == "time_out_reversal":
            self._give_up(command, request, row, effect, attempt)
            return
        if row is not None and row.effect is not None:
            if kind == "authorize" and row.meaning == _meaning(command):
                self._answered(request, row, attempt)
            return
        if effect is None or effect.outcome == "422":
            return
        row = row or Row(effect.at, 0, None)
        self.rows[request] = row = row._replace(at=effect.at, meaning=_meaning(command), effect=effect)
        if kind == "authorize":
            self._answered(request, row, attempt)
        elif effect.kind == "request_cancelled":
            original = request[0], request[1], command.get("original_request_id", "")
            if self._remembered(original) is None:
                self.rows[original] = Row(effect.at, UNNAMED, None)
        elif effect.kind == "account_opened" and kind == "open_account":
            self._accounts[request[0]] = account_in(command, request[1])
        elif effect.kind == "account_changed" and request[0] in self._accounts:
            self._accounts[request[0]] = changed(self._accounts[request[0]], command)

    def _answered(self, request: Request, row: Row, attempt: str) -> None:
        if attempt not in row.standing and attempt not in row.given_up:
            self.rows[request] = row._replace(standing=(*row.standing, attempt))

    def _give_up(
        self, command: Command, request: Request, row: Row | None, effect: Effect | None, attempt: str
    ) -> None:
        if effect is None or effect.outcome == "422":
            return
        if row is None:
            row = Row(effect.at, _meaning(command), None)
        undone = effect.kind not in ("request_refused", "request_cancelled")
        self.rows[request] = row._replace(
            effect=effect if undone else row.effect,
            standing=tuple(one for one in row.standing if one != attempt),
            given_up=(*row.given_up, attempt),
        )


def _meaning(command: Command) -> int:
    kind = name_of(command)
    operation = "authorize" if kind == "time_out_reversal" else kind
    return hash((operation, command.get("fingerprint", "")))


# -- the table of requests ------------------------------------------------------------------------


def compare_table(findings: Findings, p: int, requests: Requests, table: Mapping[str, Any]) -> None:
    """Each request within the window has its row, with the answer that its event is about; each row is of a
    request. Rows of days that are over are forgotten bit by bit."""
    check = findings["tables"]
    for request, expected in requests.rows.items():
        row = table.get(f"{expected.at // DAY_MS:06d}/{'/'.join(request)}")
        if row is None and expected.at + WINDOW_MS <= requests.newest:
            continue
        check.expect(
            row is not None and _is_answer(row, expected),
            f"requests/{p}: {request[2]} "
            + ("is missing" if row is None else f"is answered {answer_in(row)}")
            + f", the log says {expected.effect or 'cancelled'}",
        )
    for key in table:
        _, account, client, request_id = key.split("/", 3)
        check.expect(
            (account, client, request_id) in requests.rows,
            f"requests/{p}: {key} did nothing that the log has",
        )


def _is_answer(row: Any, expected: Row) -> bool:
    operation, fingerprint = (
        row[1:3] if isinstance(row, list) else (row["operation"], row.get("fingerprint", ""))
    )
    if hash((operation, fingerprint)) != expected.meaning:
        return False
    (status, code, payment_id), effect = answer_in(row), expected.effect
    if effect is None:
        return status == 0
    if effect.kind == "request_refused":
        # Where there is no such payment, the answer shows none.
        invalid = "13" if effect.code == "400" else ""
        return (status, code) == (int(effect.code), invalid) and payment_id in ("", effect.payment_id)
    return (status, code, payment_id) == (200, effect.code, effect.payment_id)


def answer_in(row: Any) -> tuple[int, str, str]:
    """(HTTP status, response code, payment id) of the answer that a row of requests remembers; 0: none."""
    if isinstance(row, list):
        outcome, standing = row[5], row[6]
        if standing is not None:
            return standing[0], standing[2], standing[3]
    else:
        outcome = row.get("outcome")
    if not outcome:
        return 0, "", ""
    payment = outcome.get("payment") or {}
    return outcome["status"], outcome.get("response_code", ""), payment.get("payment_id", "")
