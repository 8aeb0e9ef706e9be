"""The proof: answers, events, balances, read model, topics, logs and files held against one another.

Each check counts what it looked at and names the first offenders. A check that looked at nothing fails.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from mini_visa.demo.books import BANK, PAYABLE, Books
from mini_visa.demo.evidence import Positions, remaining_lag
from mini_visa.demo.script import Lane, Script, Step, text_of
from mini_visa.demo.traffic import Sender, Traffic
from mini_visa.kafka import committed_records
from mini_visa.readmodel.rebuild import rebuild
from mini_visa.settings import Settings

OFFENDERS_SHOWN: Final = 5
READ_BYTES: Final = 1 << 20
DIGITS: Final = re.compile(rb"[0-9]{12,}")
PAN_LENGTHS: Final = (15, 16)
LOG_ERROR: Final = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|^Traceback|Unhandled exception|never awaited")

SLOW_MACHINE: Final = re.compile(
    r"EventPerformanceMonitor|processExpiredBrokerHeartbeat: .* overloaded"
    r"|fetcher: Failed fetch offsets from .* NotLeaderForPartitionError"
    r"|ControllerApis: .* Unexpected error handling request RequestHeader\(apiKey=CONTROLLER_REGISTRATION,"
)
"""What Kafka and its client call an error and is none: one of its threads waited for a CPU for two seconds;
the broker does not know yet that it leads a partition that was just made, and is asked again; a controller
that starts registers some milliseconds before it is the active one, and tries again."""


@dataclass
class Check:
    """What must hold, how much was looked at, and what does not hold."""

    name: str
    looked_at: int = 0
    unit: str = ""
    offenders: list[str] = field(default_factory=list)
    offenders_count: int = 0

    def wrong(self, offender: str) -> None:
        self.offenders_count += 1
        if len(self.offenders) < OFFENDERS_SHOWN:
            self.offenders.append(offender)

    @property
    def passed(self) -> bool:
        return self.looked_at > 0 and not self.offenders_count


# -- answers -------------------------------------------------------------------------------------------


def answered(script: Script, traffic: Traffic) -> Check:
    check = Check("every request was answered", unit="requests")
    for number, lane in enumerate(script.lanes):
        answers = traffic.answers[number]
        check.looked_at += len(lane.steps)
        for step in lane.steps[len(answers) :]:
            check.wrong(f"{step.request_id} was not sent")
        for answer in answers:
            if answer.status == 0:
                check.wrong(f"{answer.step.kind} {answer.step.request_id}: {answer.wrong}")
    return check


def as_reckoned(traffic: Traffic) -> Check:
    check = Check("each answer is the generator's own", unit="answers")
    for answer in traffic.all():
        check.looked_at += 1
        if answer.wrong:
            check.wrong(f"{answer.step.kind} {answer.step.request_id}: {answer.wrong}")
    return check


def codes_add_up(script: Script, traffic: Traffic) -> Check:
    """The same by the sums, which is what a merchant's report would show."""
    check = Check("approvals and declines add up by code", unit="kinds of answers")
    expected = script.expected()
    found = Counter((a.step.kind, a.status, a.code) for a in traffic.all())
    check.looked_at = len(expected)
    for key in sorted(expected.keys() | found.keys()):
        if expected[key] != found[key]:
            kind, status, code = key
            check.wrong(f"{kind} {status} {code}: {found[key]}, expected {expected[key]}")
    return check


# -- events --------------------------------------------------------------------------------------------


@dataclass
class Folded:
    """An account as the amounts of its events make it."""

    held: int = 0
    posted: int = 0
    limit: int = 0
    seq: int = 0
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By payment id, as the last event shows it."""


@dataclass
class History:
    """What payment.events says of this run's cards."""

    events: int = 0
    accounts: dict[str, Folded] = field(default_factory=lambda: defaultdict(Folded))
    by_request: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """(account, request id) -> types of its events, in order."""
    wrong: list[str] = field(default_factory=list)


async def history(facts: AsyncIterator[Any], run: str) -> History:
    """Fold the events of the requests whose id begins with `run`, and of the accounts that such requests
    are about, by nothing but their amounts."""
    found = History()
    async for record in facts:
        event = orjson.loads(record.value)
        request_id = event.get("request_id", "")
        kind = event["type"].partition("/")[0]
        if kind == "time_passed":
            continue
        account_id = _account_of(event)
        if not request_id.startswith(run) and account_id not in found.accounts:
            continue
        found.events += 1
        if request_id.startswith("release-"):  # one or more tries of it, each with a number of its own
            request_id = (
                f"release-{event['payment']['payment_id'] if 'payment' in event else event['payment_id']}"
            )
        found.by_request[account_id, request_id].append(kind)
        payment = event.get("payment")
        folded = found.accounts[account_id]
        if payment is not None:
            folded.payments[payment["payment_id"]] = payment
        if "account" not in event:
            continue
        where = f"{kind} {request_id}"
        folded.seq += 1
        if event["seq"] != folded.seq:
            found.wrong.append(f"{where}: seq {event['seq']}, expected {folded.seq}")
            folded.seq = event["seq"]
        _apply(folded, kind, event)
        shown = event["account"]
        for name in ("held", "posted", "limit"):
            if shown.get(name, 0) != getattr(folded, name):
                found.wrong.append(
                    f"{where}: {name} {shown.get(name, 0)}, its events make {getattr(folded, name)}"
                )
                setattr(folded, name, shown.get(name, 0))
    return found


def _account_of(event: dict[str, Any]) -> str:
    if "account" in event:
        return str(event["account"]["account_id"])
    return str(event["payment"]["account"] if "payment" in event else event["account_id"])


def _apply(account: Folded, kind: str, event: dict[str, Any]) -> None:
    amount = event.get("amount", 0)
    match kind:
        case "account_opened" | "account_changed":
            account.limit = event["account"]["limit"]
        case "account_paid":
            account.posted -= amount
        case "payment_authorized" | "payment_incremented":
            account.held += amount
        case "payment_captured":
            account.held -= event.get("hold_used", 0) + event.get("hold_freed", 0)
            account.posted += amount
        case "payment_reversed" | "hold_expired":
            account.held -= amount
        case "payment_refunded":
            account.posted -= event.get("posted", 0)
        case "capture_cleared":
            account.posted -= event.get("refund_posted", 0)
        case "capture_rejected" | "chargeback_opened":
            account.posted -= amount
        case "chargeback_represented":
            account.posted += amount - event.get("refund_posted", 0)


EVENT_OF: Final = {
    "increment": "payment_incremented",
    "capture": "payment_captured",
    "refund": "payment_refunded",
    "chargeback": "chargeback_opened",
    "representment": "chargeback_represented",
    "acceptance": "chargeback_accepted",
    "reversal": "payment_reversed",
    "early reversal": "request_cancelled",
    "account change": "account_changed",
    "cardholder payment": "account_paid",
}
AUTHORIZED: Final = {
    ("00", "captured"): ["payment_captured"],
    ("10", "captured"): ["payment_captured"],
    ("00", "authorized"): ["payment_authorized"],
    ("10", "partially_authorized"): ["payment_authorized"],
    ("68", "reversed"): ["payment_reversed"],
}


def events_of(lane: Lane, step: Step) -> list[str]:
    """What a request leaves behind, once, in this order."""
    refused = sum(other.request_id == step.request_id and other.status == 422 for other in lane.steps)
    if step.status != 200:
        kinds = ["request_refused"]
    elif step.kind != "authorize":
        kinds = [EVENT_OF[step.kind]]
    else:
        declined = "payment_unknown_card" if lane.opening is None else "payment_declined"
        kinds = AUTHORIZED.get((step.code, step.payment_status), [declined])
    return kinds + ["request_refused"] * refused


def events_once(script: Script, traffic: Traffic, found: History) -> Check:
    """Every request that took effect has its events, no other one has any, and no event is without a
    request: the client's, or one that the system makes of it (clearing, release, expiry)."""
    check = Check("every event is there exactly once", found.events, "events")
    for line in found.wrong:
        check.wrong(line)
    unseen = dict(found.by_request)
    for number, lane in enumerate(script.lanes):
        account_id = lane.account_id or _token(traffic, number)
        if lane.opening is not None:
            kinds = unseen.pop((account_id, lane.opening["request_id"]), [])
            if kinds != ["account_opened"]:
                check.wrong(f"opening {lane.opening['request_id']}: events {kinds or 'none'}")
        for step in lane.steps:
            if step.effect:
                kinds, expected = unseen.pop((account_id, step.request_id), []), events_of(lane, step)
                if kinds != expected:
                    check.wrong(
                        f"{step.kind} {step.request_id}: events {kinds or 'none'}, expected {expected}"
                    )
        for request_id, expected in _made_by_the_system(lane, traffic.payment_ids(number)).items():
            kinds = unseen.pop((account_id, request_id), [])
            # A release that is tried again finds nothing to release any more.
            if [kind for kind in kinds if kind != "request_refused"] != expected:
                check.wrong(f"{request_id} of {account_id}: events {kinds or 'none'}, expected {expected}")
    for (_, request_id), kinds in unseen.items():
        check.wrong(f"events {kinds} of {request_id}, which nobody sent")
    return check


def _made_by_the_system(lane: Lane, payment_ids: dict[str, str]) -> dict[str, list[str]]:
    """Request id -> events, of the outcomes of clearing, the holds that are released after them, and those
    that expire."""
    expected: dict[str, list[str]] = {}
    for request_id, payment in lane.account.payments.items():
        payment_id = payment_ids.get(request_id, "")
        for number, capture in enumerate(payment.captures, 1):
            outcome = {"cleared": ["capture_cleared"], "rejected": ["capture_rejected"]}
            expected[f"clear-{payment_id}-{number}"] = outcome.get(capture.state, [])
        if payment.called_off:
            expected[f"release-{payment_id}"] = ["payment_reversed"]
        if payment.expired:
            expected[""] = [*expected.get("", []), "hold_expired"]
    return expected


def _token(traffic: Traffic, number: int) -> str:
    """The account id of a card that has no account: its token, as the answers show it."""
    for answer in traffic.answers[number]:
        if answer.status == 200 and (card := orjson.loads(answer.body).get("card")):
            return str(card["token"])
    return ""


# -- balances ------------------------------------------------------------------------------------------


async def balances(script: Script, found: History, sender: Sender) -> list[Check]:
    """The events' fold, the generator's model and what the API says: three ways to one figure."""
    folded = Check("balances: a fold of the events equals the model", unit="accounts")
    shown = Check("balances: GET /accounts equals the model", unit="accounts")

    async def compare(lane: Lane) -> None:
        model, account = lane.account, found.accounts[lane.account_id]
        expected = {"held": model.held, "posted": model.posted, "limit": model.limit}
        folded.looked_at += 1
        actual = {"held": account.held, "posted": account.posted, "limit": account.limit}
        if actual != expected:
            folded.wrong(f"{lane.account_id}: {actual}, expected {expected}")
        status, _, body = await sender.call("GET", f"/accounts/{lane.account_id}")
        document = orjson.loads(body)
        shown.looked_at += 1
        wanted = {
            **{name: text_of(value, model.currency) for name, value in expected.items()},
            "available": text_of(model.available, model.currency),
            "status": model.status,
            "currency": model.currency,
        }
        if status != 200 or any(document.get(name) != value for name, value in wanted.items()):
            got = {name: document.get(name) for name in wanted} if status == 200 else document.get("detail")
            shown.wrong(f"{lane.account_id}: {status} {got}, expected {wanted}")

    await asyncio.gather(*(compare(lane) for lane in script.lanes if lane.opening is not None))
    return [folded, shown]


def payments_of(found: History, script: Script) -> Check:
    """Every payment as its last event shows it, against the model."""
    check = Check("payments: the last event of each equals the model", unit="payments")
    by_request = {
        payment["request_id"]: payment
        for account in found.accounts.values()
        for payment in account.payments.values()
    }
    for lane in script.lanes:
        for request_id, model in lane.account.payments.items():
            check.looked_at += 1
            payment = by_request.pop(request_id, None)
            if payment is None:
                check.wrong(f"{request_id}: no event has its payment")
                continue
            expected: dict[str, Any] = {
                "status": model.status,
                "response_code": model.code,
                "authorized": model.authorized,
                "captured": model.captured,
                "reversed": model.reversed,
                "cleared": model.cleared,
                "refunded": model.refunded,
                "charged_back": model.charged_back,
            }
            actual = {name: payment.get(name, 0) for name in expected}
            expected["captures"] = [capture.state for capture in model.captures]
            actual["captures"] = [
                capture.get("state", "submitted") for capture in payment.get("captures", ())
            ]
            if actual != expected:
                check.wrong(f"{request_id}: {actual}, expected {expected}")
    for request_id in by_request:
        check.wrong(f"{request_id}: a payment that nobody asked for")
    return check


async def read_model(found: History, sender: Sender) -> Check:
    """GET /payments, page by page for each account, against the events."""
    check = Check("the read model equals the events", unit="payments")

    async def compare(account_id: str, folded: Folded) -> None:
        rows: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            more = f"&cursor={cursor}" if cursor else ""
            status, _, body = await sender.call("GET", f"/payments?account={account_id}&limit=1000{more}")
            page = orjson.loads(body)
            if status != 200:
                check.wrong(f"{account_id}: {status} {page.get('detail')}")
                break
            rows |= {row["payment_id"]: row for row in page["items"]}
            cursor = page.get("next_cursor") or ""
            if not cursor:
                break
        for payment_id, payment in folded.payments.items():
            check.looked_at += 1
            row = rows.pop(payment_id, None)
            if row is None:
                check.wrong(f"{payment_id} is not there")
                continue
            expected = {
                "status": payment["status"],
                "response_code": payment["response_code"],
                "authorized": _text(payment, "authorized"),
                "captured": _text(payment, "captured"),
                "reversed": _text(payment, "reversed"),
                "cleared": _text(payment, "cleared"),
                "refunded": _text(payment, "refunded"),
                "charged_back": _text(payment, "charged_back"),
            }
            actual = {**row, **row.get("amounts", {})}
            if any(actual.get(name) != value for name, value in expected.items()):
                check.wrong(f"{payment_id}: { ({n: actual.get(n) for n in expected}) }, expected {expected}")
        for payment_id in rows:
            check.wrong(f"{payment_id} has no event")

    await asyncio.gather(*(compare(account_id, folded) for account_id, folded in found.accounts.items()))
    return check


def _text(payment: dict[str, Any], name: str) -> str:
    return text_of(payment.get(name, 0), payment["currency"])


# -- money ---------------------------------------------------------------------------------------------


def clearing_outcomes(script: Script, traffic: Traffic, found: History, decided: dict[str, str]) -> Check:
    """What the clearing house says it decided, against what became of each capture."""
    check = Check("each capture has the clearing house's outcome", unit="captures")
    states = {"accepted": "cleared", "rejected": "rejected", "cancelled": "rejected"}
    for number, lane in enumerate(script.lanes):
        shown = found.accounts[lane.account_id].payments if lane.account_id else {}
        payment_ids = traffic.payment_ids(number)
        for request_id, model in lane.account.payments.items():
            payment_id = payment_ids.get(request_id, "")
            for n in range(1, len(model.captures) + 1):
                check.looked_at += 1
                decision = decided.get(f"{payment_id}-{n}", "")
                captures = shown.get(payment_id, {}).get("captures", ())
                state = captures[n - 1].get("state", "submitted") if len(captures) >= n else "missing"
                if state != states.get(decision):
                    check.wrong(f"{payment_id}-{n}: {state}; the clearing house: {decision or 'never seen'}")
    return check


def no_open_saga(books: Books) -> Check:
    check = Check("no saga is stuck", len(books.lives), "payments")
    for payment_id in books.uncleared():
        check.wrong(f"{payment_id} has a capture without an outcome, or a hold that should be gone")
    for payment_id in books.open_sagas():
        check.wrong(f"{payment_id}: {books.sagas[payment_id]['state']}")
    return check


def balanced(books: Books) -> Check:
    """Each entry in itself, each chain, and all of it."""
    check = Check("the trial balance is zero, each chain is whole", books.entries, "entries")
    for line in books.wrong:
        check.wrong(line)
    totals: Counter[str] = Counter()
    for (_, currency), amount in books.balances.items():
        totals[currency] += amount
    for currency, total in totals.items():
        if total:
            check.wrong(f"{currency}: {total}")
    return check


async def shown_ledger(books: Books, sender: Sender) -> Check:
    """What the API says of the trial balance and of every account that is no cardholder's."""
    check = Check("GET /ledger equals the journals", unit="accounts")
    status, _, body = await sender.call("GET", "/ledger/trial-balance")
    totals = {one["currency"]: one["difference"] for one in orjson.loads(body).get("currencies", ())}
    zeros = {currency: text_of(0, currency) for _, currency in books.balances}
    if status != 200 or totals != zeros:
        check.wrong(f"trial balance: {status} {totals}, expected {zeros}")
    names = sorted({name for name, _ in books.balances if ":cardholder:" not in name})

    async def compare(name: str) -> None:
        check.looked_at += 1
        _, _, body = await sender.call("GET", f"/ledger/accounts/{name}")
        shown = {one["currency"]: one["balance"] for one in orjson.loads(body).get("balances", ())}
        expected = {
            currency: text_of(amount, currency)
            for (account, currency), amount in books.balances.items()
            if account == name
        }
        if shown != expected:
            check.wrong(f"{name}: {shown}, expected {expected}")

    await asyncio.gather(*map(compare, names))
    return check


def ledger_accounts(books: Books, found: History, script: Script) -> Check:
    """What cardholders owe and what is held, against the accounts; nothing waits for clearing."""
    check = Check("the ledger equals the accounts", unit="accounts")
    for lane in script.lanes:
        if lane.opening is None:
            continue
        check.looked_at += 1
        account, currency = found.accounts[lane.account_id], lane.account.currency
        expected = {"holds": account.held, "receivable": account.posted}
        actual = {name: books.balances[f"{name}:cardholder:{lane.account_id}", currency] for name in expected}
        if actual != expected:
            check.wrong(f"{lane.account_id}: {actual}, expected {expected}")
    return check


def compensated(books: Books) -> Check:
    check = Check("compensated payments sum to zero on each account", unit="payments")
    for payment_id in books.lives:
        if books.was_compensated(payment_id):
            check.looked_at += 1
            left = {account: amount for (account, _), amount in books.payments[payment_id].items() if amount}
            if left:
                check.wrong(f"{payment_id}: {left}")
    return check


def settlement(books: Books) -> Check:
    """Net positions against the ledger: what was owed to each merchant was paid, by the bank."""
    check = Check("settlement totals equal the ledger's", books.nets, "positions")
    paid: Counter[str] = Counter()
    for (merchant, currency), net in books.net.items():
        key = PAYABLE + merchant, currency
        paid[currency] += net
        owed = books.balances[key]
        if owed:
            check.wrong(f"{merchant} {currency}: {-owed} is not settled")
        if books.settled[key] != net:
            check.wrong(f"{merchant} {currency}: net {net}, the ledger settled {books.settled[key]}")
    for account, currency in books.owed():
        if (account.removeprefix(PAYABLE), currency) not in books.net:
            check.wrong(f"{account} {currency} is in no cycle")
    for currency, total in paid.items():
        if books.settled[BANK, currency] != -total:
            check.wrong(f"{currency}: positions {total}, the bank paid {-books.settled[BANK, currency]}")
    if books.closed != books.told:
        check.wrong(f"positions by cycle {dict(books.told)}, their closings count {dict(books.closed)}")
    return check


async def rebuilt(settings: Settings) -> Check:
    """The read model made anew from the log, beside the live one, and compared row by row."""
    done = await rebuild(settings, switch=False)
    check = Check("a rebuilt read model equals the live one", sum(done.rows.values()), "rows")
    for table in done.different:
        check.wrong(f"{table} differs")
    if not done.compared:
        check.wrong("not compared: the live one did not catch up")
    return check


# -- topics --------------------------------------------------------------------------------------------


async def no_dead_letters(settings: Settings, topics: Iterable[str], start: Positions) -> Check:
    names = [name for name in topics if name.endswith(".dead-letters")]
    check = Check("no dead letter", len(names), "topics")
    async for record in committed_records(settings, names, start):
        reason = dict(record.headers).get("reason", b"").decode(errors="replace")
        check.wrong(f"{record.topic}/{record.partition}/{record.offset}: {reason}")
    return check


async def no_lag(settings: Settings, groups: int) -> Check:
    looked_at, behind = await remaining_lag(settings, groups)
    check = Check("no consumer lags", looked_at, "positions")
    for where, count in behind.items():
        check.wrong(f"{where}: {count}")
    return check


# -- secrets and logs ----------------------------------------------------------------------------------


class PanSearch:
    """Finds this run's card numbers in bytes, whatever digits are around them."""

    def __init__(self, lanes: Sequence[Lane], more: Iterable[str] = ()) -> None:
        self._pans = {pan.encode() for pan in (*(lane.pan for lane in lanes), *more)}

    def find(self, data: bytes) -> Iterator[str]:
        """First six and last four of each that is in `data`."""
        for run in DIGITS.finditer(data):
            digits = run.group()
            for length in PAN_LENGTHS:
                for start in range(len(digits) - length + 1):
                    if digits[start : start + length] in self._pans:
                        found = digits[start : start + length].decode()
                        yield f"{found[:6]}...{found[-4:]}"


async def no_pan_in_topics(
    settings: Settings, topics: Sequence[str], start: Positions, search: PanSearch
) -> Check:
    """Keys, values and headers of every record, decompressed."""
    check = Check("no card number in any topic", unit="records")
    async for record in committed_records(settings, topics, start):
        check.looked_at += 1
        parts = (record.key or b"", record.value or b"", *(value for _, value in record.headers))
        for pan in search.find(b"\0".join(parts)):
            check.wrong(f"{record.topic}/{record.partition}/{record.offset}: {pan}")
    return check


def no_pan_in_files(home: Path, search: PanSearch) -> Check:
    """Everything under the home directory, as it lies on the disk: Kafka's log, RocksDB, SQLite, logs."""
    check = Check("no card number in any file", unit="MB")
    size = 0
    for path in sorted(home.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.suffix == ".jar":
            continue
        overlap = b""
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                size += len(block)
                for pan in search.find(overlap + block):
                    check.wrong(f"{path.relative_to(home)}: {pan}")
                overlap = block[-max(PAN_LENGTHS) :]
    check.looked_at = max(1, size >> 20) if size else 0
    return check


def no_error_in_logs(logs: Sequence[Path]) -> Check:
    check = Check("no error in any log", unit="lines")
    for path in logs:
        with path.open(errors="replace") as file:
            for number, line in enumerate(file, 1):
                check.looked_at += 1
                if LOG_ERROR.search(line) and not SLOW_MACHINE.search(line):
                    check.wrong(f"{path.name}:{number}: {line.strip()[:200]}")
    return check


def no_process_left(pids: Sequence[int]) -> Check:
    """None of the processes that were started, by their ids, and no child of this one."""
    check = Check("no process is left", len(pids), "processes")
    for pid in pids:
        state = _state_of(pid)
        if state is not None:
            check.wrong(f"process {pid} ({state})")
    return check


def _state_of(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return None  # another user's now: ours has ended
    try:
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:
        return "running"
