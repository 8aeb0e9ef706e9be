"""The audit: partition by partition from the requests to the tables, then the sums over all, then the
client's history against the log."""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from audit.accounts import PAYABLE, Account, Book, Payment, Postings, fingerprint, name_of
from audit.commands import Deed, Effect, deed_of, said_by
from audit.evidence import Evidence, Record, Unreadable
from audit.findings import Findings
from audit.ledger import Chain
from audit.presentments import Presentments
from audit.readmodel import VIEWS, ReadModel
from audit.refusals import refusal_of
from audit.requests import WINDOW_MS, Request, Requests, compare_table, repeated, request_of
from audit.rules import INTERNAL
from audit.settlement import Cycles, Due, Passed
from audit.stories import Story
from audit.velocity import Recount

PROGRESS: Final = b"\0progress"
DIGITS: Final = re.compile(rb"[0-9]{12,}")
EXPIRED_PER_TICK_MAX: Final = 1_000
ODD: Final = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What a message makes of the auditor that has not the fields of its kind, or others' types in them."""
TICKS: Final = ("tick", "time_passed")

SOURCES: Final = {
    "risk.assess": "card.requests",
    "authorization.decide": "account.commands",
    "ledger.journal": "payment.events",
    "ledger.settle": "settlement.positions",
    "ledger.balances": "ledger.postings",
    "clearing.present": "payment.events",
    "clearing.net": "clearing.items",
    "reversal.compensate": "payment.events",
}
"""Processor -> the topic it reads."""
BY_ACCOUNT: Final = (
    "ledger.journal", "clearing.present", "reversal.compensate", "authorization.decide", "risk.assess",
)  # fmt: skip
"""Those whose partitions are of accounts, downstream first."""
ROW_VERSIONS: Final = {"requests": (1, 2), "open-cycle": (1, 2)}
"""Of tables whose rows have changed; of all others, 1."""

_json: Callable[[bytes], Any] = msgspec.json.Decoder().decode
_row: Callable[[Any], Any] = msgspec.msgpack.Decoder().decode

Place = tuple[str, int, int]
"""(topic, partition, offset)"""


class Assessed(NamedTuple):
    """A command that came from risk."""

    offset: int
    request_id: str
    meaning: int
    """Of all but the verdict: what was asked on card.requests."""
    code: str
    hits: frozenset[tuple[str, int, int]]
    """(rule, version, value)"""


class Moment(NamedTuple):
    """A payment or an account as one event left it."""

    partition: int
    offset: int
    position: int
    """Of the command: what a Consistency-Token names."""
    state: int
    """Hash of what a reader is shown."""


class Rows(Mapping[str, Any]):
    """A table, decoded row by row: a large one takes no more memory than its changelog."""

    def __init__(self) -> None:
        self.encoded: dict[str, bytes] = {}

    def __getitem__(self, key: str) -> Any:
        return _row(self.encoded[key][1:])

    def __iter__(self) -> Iterator[str]:
        return iter(self.encoded)

    def __len__(self) -> int:
        return len(self.encoded)


class Tables(NamedTuple):
    """A processor's changelog, folded: the last row of each key, and how far the processor was."""

    rows: dict[str, Rows]
    next_offset: int

    def of(self, table: str) -> Rows:
        return self.rows.get(table) or Rows()


@dataclass(slots=True)
class Tick:
    """Time that has passed, as authorization tells it once its work is done."""

    position: int
    at: int
    ended: int
    """Holds: a full tick leaves some to the next."""


@dataclass(slots=True)
class Told:
    """What the events of one partition say."""

    deeds: dict[int, list[tuple[Request | None, Deed]]] = field(default_factory=lambda: defaultdict(list))
    """By the position of their command."""
    money: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Offset of the event -> what it must post, as (hash, kind)."""
    after: set[str] = field(default_factory=set)
    """Accounts that events after the tables' progress are about."""
    ticks: list[Tick] = field(default_factory=list)
    """The last two."""
    position: int = -1
    """Of the newest command."""
    count: int = 0
    ended: int = 0
    """Holds since the last tick."""


class Commands:
    """The commands of one partition, in step with the events that they made: both have one order."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self._offset = -1
        self._value: bytes | None = None

    def at(self, position: int) -> dict[str, Any] | None:
        """The command at this offset, which is not before the one that was asked for last; None when there is
        none that can be read."""
        while self._offset < position:
            record = next(self._records, None)
            if record is None:
                return None
            self._offset, self._value = record.offset, record.value
        if self._offset > position:
            return None
        try:
            command = _json(self._value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return command if isinstance(command, dict) else None

    def close(self) -> None:
        if isinstance(self._records, Generator):
            self._records.close()


class Audit:
    """One run over the evidence. `running`: services are at work, so what is left to do is no fault."""

    def __init__(
        self,
        evidence: Evidence,
        *,
        running: bool = False,
        usual_fees: bool = True,
        told: Callable[[str], None] | None = None,
    ):
        self.evidence = evidence
        self.findings = Findings()
        self.running = running
        self.usual_fees = usual_fees
        self._tell = told or (lambda _: None)
        self.partitions = evidence.partitions.get("payment.events", 0)
        self.effects: dict[Request, list[Effect]] = defaultdict(list)
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}
        self.totals: Counter[tuple[str, str]] = Counter()
        """Of both journals: (ledger account, currency) -> debits less credits."""
        self.posted: Counter[tuple[str, str]] = Counter()
        """The same of ledger.postings."""
        self.due = Due(self.findings, running)
        self.presentments = Presentments(self.findings, running)
        self.unsettled: Counter[tuple[str, str]] = Counter()
        """(merchant, currency) -> what is owed for items of no closed cycle."""
        self.pans: set[bytes] = set()
        self.planted: set[Place] = set()
        self.requests: set[Request] = set()
        """Of the history."""
        self.nameless: set[tuple[str, str]] = set()
        """(client, request id) of attempts whose account their client did not know yet."""
        self.account_of_pan: dict[str, str] = {}
        self.lives: dict[str, list[Moment]] = {}
        """Of each payment and account that the history has looked at."""
        self.buried: Counter[tuple[str, Place]] = Counter()
        """(service, source) -> dead letters."""
        self.model: ReadModel
        """Read once the card numbers are known."""
        self.ran: set[tuple[str, int]] = set()
        """(processor, partition) that has ever been at work."""
        self.reading = ""
        """The record that was read last."""
        self.last_work: dict[tuple[str, int], int] = {}
        """Offset of the last record that is not a tick."""

    # -- reading

    def records(self, topic: str, partition: int) -> Iterator[tuple[Record, Any]]:
        """Records and their messages. What is no message is a finding, unless it was planted."""
        counted, last = 0, -1
        self.last_work[topic, partition] = last
        if partition >= self.evidence.partitions.get(topic, 0):
            return
        for record in self.evidence.records(topic, partition):
            counted += 1
            value = record.value or b""
            self._search(record, f"{topic}/{partition}/{record.offset}")
            if (topic, partition, record.offset) in self.planted:
                continue
            self.reading = f"{topic}/{partition}/{record.offset}"
            try:
                message = _json(value)
                kind = message["type"].partition("/")[0]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, *ODD):
                self.findings["dead-letters"].fails(f"{topic}/{partition}/{record.offset} is no message")
                continue
            if kind not in TICKS:
                last = record.offset
            yield record, message
        self.last_work[topic, partition] = last
        self.findings.counts["records"] = self.findings.counts.get("records", 0) + counted

    def _search(self, record: Record, where: str) -> None:
        self._search_text((record.value or b"", record.key or b"", *record.headers.values()), where)

    def _search_text(self, texts: Iterable[bytes], where: str) -> None:
        """For card numbers."""
        if not self.pans:
            return
        check = self.findings["no-pan"]
        check.looked_at += 1
        for found in (digits for text in texts for digits in DIGITS.findall(text)):
            for length in (15, 16):
                for start in range(len(found) - length + 1):
                    if found[start : start + length] in self.pans:
                        pan = found[start : start + length].decode()
                        check.fails(f"{where}: {pan[:6]}...{pan[-4:]}")

    def tables(self, processor: str, partition: int) -> Tables | None:
        """None when the processor has never run on it."""
        topic = f"{self.evidence.environment}.{processor}.changelog"
        if partition >= self.evidence.partitions.get(topic, 0):
            return None
        raw: dict[bytes, bytes] = {}
        for record in self.evidence.records(topic, partition):
            assert record.key is not None
            self._search(record, f"{topic}/{partition}/{record.offset}")
            if record.value is None:
                raw.pop(record.key, None)
            else:
                raw[record.key] = record.value
        progress = raw.pop(PROGRESS, None)
        if progress is None:
            return None
        self.ran.add((processor, partition))
        rows: dict[str, Rows] = defaultdict(Rows)
        while raw:
            key, value = raw.popitem()
            table, _, name = key.partition(b"\0")
            if value[0] not in ROW_VERSIONS.get(table.decode(), (1,)):
                self.findings["tables"].fails(
                    f"{topic}/{partition}: a row of {table.decode()} of version {value[0]}"
                )
                continue
            rows[table.decode()].encoded[name.decode()] = value
        return Tables(rows, _row(progress)[1])

    # -- the whole

    def run(self) -> Findings:
        """Raises `Unreadable`."""
        try:
            self._read_all()
        except ODD as error:
            raise Unreadable(
                f"the audit cannot go on: {self.reading or 'the evidence'}, or what belongs to it, is not "
                f"what it knows: {error!r}"
            ) from error
        self.findings.end()
        return self.findings

    def _read_all(self) -> None:
        self._read_history_first()
        self._dead_letters()
        self._tell("read model")
        self.model = ReadModel(self.evidence, self.findings, self._search_text)
        for partition in range(self.partitions):
            self._tell(f"partition {partition + 1} of {self.partitions}")
            self._partition(partition)
        self._decided_again()
        self._tell("settlement and balances")
        for partition in range(self.partitions):
            self._settlement(partition)
            self._balances(partition)
        self.due.end()
        self._sums()
        self._other_topics()
        self._read_model_ends()
        self._followers()
        self._planted_are_buried()
        self._tell("history")
        self._history()

    def _read_history_first(self) -> None:
        history = self.evidence.history()
        if history is None:
            for name in (
                "acknowledged-once",
                "answers-stable",
                "unknown-ended",
                "time-out-leaves-no-hold",
                "reads",
                "no-pan",
            ):
                self.findings[name].skipped = "no history was given"
            return
        count = 0
        for line in history:
            if "planted" in line:
                topic, partition, offset = line["planted"]
                self.planted.add((topic, partition, offset))
                continue
            count += 1
            if "body" not in line:
                self.lives.setdefault(_looked_at(line), [])
                continue
            request = _request_in(line)
            account, pan = request[0], line["body"].get("pan")
            if pan:
                self.pans.add(pan.encode())
            if account and pan:
                self.account_of_pan[pan] = account
            elif not account:
                self.nameless.add(request[1:])
            self.requests.add(request)
        self.findings.counts["attempts"] = count

    def _dead_letters(self) -> None:
        check, suffix = self.findings["dead-letters"], ".dead-letters"
        for topic, partitions in self.evidence.partitions.items():
            if not topic.endswith(suffix):
                continue
            service = topic.removesuffix(suffix)
            for partition in range(partitions):
                for record in self.evidence.records(topic, partition):
                    self._search(record, f"{topic}/{partition}/{record.offset}")
                    source = record.headers.get("source", b"").decode(errors="replace")
                    name, _, rest = source.partition("/")
                    number, _, offset = rest.partition("/")
                    place = (name, int(number or -1), int(offset or -1))
                    reason = record.headers.get("reason", b"").decode(errors="replace")
                    self.buried[service, place] += 1
                    check.expect(
                        place in self.planted, f"{topic}/{partition}/{record.offset}: {source}, {reason}"
                    )

    # -- one partition, from requests to tables

    def _partition(self, p: int) -> None:
        # Downstream first: what is read later can only be further.
        ledger, clearing, reversal, decided, risk = (self.tables(name, p) for name in BY_ACCOUNT)
        journal, head = self._journal(p)
        book = Book(self.findings, self.usual_fees, self.evidence.holds)
        told = self._events(p, book, _progress(decided), _progress(clearing))
        self._overdue(p, book, told.ticks)
        self._compare_journal(p, told.money, journal, _progress(ledger))
        assessed, requests = self._commands(p, told.deeds, decided)
        self._velocity(p, assessed, risk)
        for name, found in zip(BY_ACCOUNT, (ledger, clearing, reversal, decided, risk), strict=True):
            self._processed(name, SOURCES[name], p, None if found is None else found.next_offset)
        if decided is not None:
            self._account_tables(p, decided, book, told.after)
            compare_table(self.findings, p, requests, decided.of("requests"))
        if ledger is not None:
            self._row_is(p, ledger, "ledger-chain", "head", head)
        if clearing is not None:
            self._open_work(p, clearing, reversal, book)
        self.accounts |= book.accounts
        self.payments |= book.payments
        self.model.compare("accounts", "payments")

    def _processed(self, what: str, source: str, p: int, next_offset: int | None) -> None:
        last = self.last_work[source, p]
        if next_offset is None:
            if last >= 0 and what.partition(".")[0] in self._services():
                self.findings["all-processed"].expect(self.running, f"{what} has never read {source}/{p}")
            return
        self.findings["all-processed"].expect(
            self.running or next_offset > last, f"{what}: {source}/{p} ends at {last}, it is at {next_offset}"
        )

    def _services(self) -> set[str]:
        """Services that have ever run here."""
        start, end = f"{self.evidence.environment}.", ".changelog"
        return {
            topic.removeprefix(start).partition(".")[0]
            for topic in self.evidence.partitions
            if topic.startswith(start) and topic.endswith(end)
        }

    def _journal(self, p: int) -> tuple[dict[int, tuple[int, str]], list[Any]]:
        """Offset of the event -> what its entry posts, as (hash, kind); and the chain's last entry, as
        (number, hash)."""
        chain, found = Chain(self.findings, self.totals), {}
        for record, entry in self.records("ledger.journal", p):
            where = f"ledger.journal/{p}/{record.offset}"
            if entry["partition"] != p:
                self.findings["hash-chain"].fails(f"{where}: it belongs to partition {entry['partition']}")
            postings = chain.feed(entry, where)
            if entry["source"] in found:
                self.findings["journal-complete"].fails(
                    f"{where}: a second entry for event {entry['source']}"
                )
            found[entry["source"]] = _sum_of(postings), entry["kind"]
            if self.model.has("ledger.journal", p, record.offset):
                self.model.entry(record, entry)
        return found, [chain.number, chain.hash]

    def _events(self, p: int, book: Book, upto: int, presented: int) -> Told:
        """Fold the events. `upto`: the tables have those of commands before this; `presented`: clearing has
        done the events before this."""
        told = Told()
        with closing(Commands(self.evidence.records("account.commands", p))) as commands:
            for record, event in self.records("payment.events", p):
                where = f"payment.events/{p}/{record.offset}"
                try:
                    self._event(book, told, record, event, commands, presented, where)
                except ODD as error:
                    self._odd(where, "event", error)
                    continue
                if told.position >= upto and name_of(event) != "time_passed":
                    told.after.add(_account_of(event))
        self.findings.counts["events"] = self.findings.counts.get("events", 0) + told.count
        return told

    def _odd(self, where: str, what: str, error: Exception) -> None:
        self.findings["dead-letters"].fails(f"{where} is no {what} that the domain knows: {error!r}")

    def _event(
        self, book: Book, told: Told, record: Record, event: dict[str, Any], commands: Commands,
        presented: int, where: str,
    ) -> None:  # fmt: skip
        """One event: what it does to the book, and what must come of it."""
        if event["position"] < told.position:
            self.findings["command-decided-once"].fails(
                f"{where}: command {event['position']} after {told.position}"
            )
        told.position, kind = event["position"], name_of(event)
        if kind == "time_passed":
            told.ticks = [*told.ticks[-1:], Tick(told.position, event["at"], told.ended)]
            told.ended = 0
            return
        told.ended += kind == "hold_expired"
        told.count += 1
        command = commands.at(told.position)
        postings = book.feed(event, where, command)
        if postings:
            told.money[record.offset] = _sum_of(postings), kind
        if record.offset < presented:
            self.due.add(event, postings, where)
        if kind == "payment_captured":
            self.presentments.add(event, where, done=record.offset < presented)
        account, deed = _account_of(event), deed_of(event)
        if kind == "request_refused":
            if command is not None:
                self._refusal(book, event, command, where)
            if deed.effect.payment_id in book.payments:
                deed = deed._replace(captured=bool(book.payments[deed.effect.payment_id].captures))
        if command is not None:
            deed = deed._replace(effect=deed.effect._replace(said=said_by(command)))
        told.deeds[told.position].append((self._did(event, account, deed.effect), deed))
        moment = Moment(record.partition, record.offset, told.position, 0)
        self._remember(book, event, kind, deed.effect.payment_id, moment)
        if self.model.has("payment.events", record.partition, record.offset):
            self.model.event(record, event, account)

    def _refusal(self, book: Book, event: dict[str, Any], command: dict[str, Any], where: str) -> None:
        """It has the reason that the domain has, and its status. What its request decides is not looked at
        here: that another one had its id, and what a time-out or a reversal by request id finds."""
        status, payment_id = event["http_status"], event.get("payment_id", "")
        by_request = command.get("original_request_id") and not payment_id
        if status == 422 or by_request or name_of(command) == "time_out_reversal":
            return
        payment, account = book.payments.get(payment_id), book.accounts.get(event["account_id"])
        expected = refusal_of(command, payment, account)
        self.findings["decisions"].expect(
            status == expected,
            f"{where}: {name_of(command)} of {command.get('amount', 'all')} on "
            f"{payment_id or event['account_id']}, {payment.status if payment else 'unknown'}, was refused "
            f"with {status} ({event.get('reason')}), reckoned {expected or 'no refusal'}",
        )

    def _did(self, event: dict[str, Any], account: str, effect: Effect) -> Request | None:
        """Put down what a request did. Returns the request; None: it was time."""
        if not event.get("request_id"):
            return None
        request = account, event.get("client", "local"), event["request_id"]
        self.effects[request].append(effect)
        if effect.kind == "request_cancelled":
            original = account, event["client"], event["original_request_id"]
            if original != request:
                self.effects[original].append(effect)
        return request

    def _remember(self, book: Book, event: dict[str, Any], kind: str, payment_id: str, at: Moment) -> None:
        """The lives of what the history has looked at."""
        life = self.lives.get(payment_id)
        if life is not None and payment_id in book.payments and kind != "request_cancelled":
            if "payment" in event:
                shown = _payment_state(book.payments[payment_id], event["payment"]["response_code"])
            else:  # a request on it was refused: it is as it was, and the refusal is among its events
                shown = life[-1].state if life else 0
            life.append(at._replace(state=shown))
        if "account" in event:
            account_id = event["account"]["account_id"]
            life = self.lives.get(account_id)
            if life is not None:
                life.append(at._replace(state=_account_state(book.accounts[account_id])))

    def _overdue(self, p: int, book: Book, ticks: list[Tick]) -> None:
        """The tick after a hold's time ends it, whether or not its account does anything more."""
        if len(ticks) < 2 or ticks[-1].ended >= EXPIRED_PER_TICK_MAX:
            return
        newest, passed = ticks[-1].position, min(tick.at for tick in ticks)
        for account in book.accounts.values():
            for payment_id, expires_at in account.holds.items():
                opened = int(payment_id.rpartition("_")[2], 16)
                if expires_at <= passed and opened < newest:
                    self.findings["decisions"].fails(
                        f"payment.events/{p}: the hold of {payment_id} ended at {expires_at}, and is open "
                        f"after the tick of {ticks[-1].at}"
                    )

    def _compare_journal(
        self, p: int, money: dict[int, tuple[int, str]], journal: dict[int, tuple[int, str]], upto: int
    ) -> None:
        check = self.findings["journal-complete"]
        if not journal and not upto:
            check.skipped = "the ledger has never run"
            return
        for offset, expected in money.items():
            found = journal.pop(offset, None)
            if found is None and offset >= upto:
                continue
            check.expect(
                found == expected,
                f"payment.events/{p}/{offset}: {expected[1]} has "
                + ("no entry" if found is None else "other postings than the domain's"),
            )
        for offset in journal:
            check.fails(f"ledger.journal/{p}: an entry for event {offset}, which moves no money")

    def _commands(
        self, p: int, events: dict[int, list[tuple[Request | None, Deed]]], decided: Tables | None
    ) -> tuple[list[Assessed], Requests]:
        """Each command's events; returns the commands that come from risk, in order, and what is to be
        remembered of all where the tables are."""
        known, requests = self.findings["event-has-request"], Requests(self.findings)
        upto = decided.next_offset if decided else 0
        assessed: list[Assessed] = []
        for record, command in self.records("account.commands", p):
            where, found = f"account.commands/{p}/{record.offset}", events.pop(record.offset, [])
            own = [(of, deed) for of, deed in found if deed.effect.kind != "hold_expired"]
            try:
                if name_of(command) in ("authorize", "increment"):
                    assessed.append(_assessed(record.offset, command))
                if ("authorization", ("account.commands", p, record.offset)) not in self.buried:
                    self._command(command, own, where, requests if record.offset < upto else None, record)
            except ODD as error:
                self._odd(where, "command", error)
        for position, found in events.items():
            if found:
                known.fails(
                    f"payment.events/{p}: {found[0][1].effect.kind} of command {position}, which is not there"
                )
        return assessed, requests

    def _command(
        self, command: dict[str, Any], own: list[tuple[Request | None, Deed]], where: str,
        requests: Requests | None, record: Record,
    ) -> None:  # fmt: skip
        """`own`: what it made, apart from holds that had expired; `requests`: where the tables have it."""
        known = self.findings["event-has-request"]
        if requests is not None:
            requests.pass_time(record.timestamp)
        if name_of(command) == "tick":
            for _, deed in own:
                known.fails(f"{where}: a tick made {deed.effect.kind}")
            return
        request = request_of(command)
        for of, deed in own:
            known.expect(of == request, f"{where}: {deed.effect.kind} is of {of}, not {request}")
        if requests is not None:
            requests.feed(command, [deed for _, deed in own], where)

    def _velocity(self, p: int, assessed: Iterable[Assessed], tables: Tables | None) -> None:
        """Each request of card.requests became a command, with the verdict of a recount. Where retention has
        taken the first requests, windows cannot be counted: only that each became a command is left."""
        check, recount, waiting = self.findings["velocity"], Recount(), deque(assessed)
        expired = self.evidence.begins.get(f"card.requests/{p}", 0)
        if expired:
            check.leaves_out(f"card.requests/{p} begins at {expired}: what windows counted before is gone")
        in_step = not expired
        for record, request in self.records("card.requests", p):
            verdict = recount.feed(record.timestamp, request)
            if verdict is None or ("risk", ("card.requests", p, record.offset)) in self.buried:
                continue
            where, meaning = f"card.requests/{p}/{record.offset}", _asked_of_risk(request)
            in_step = in_step or _skip_to(meaning, waiting)
            if not waiting or not in_step:
                if tables is not None and record.offset < tables.next_offset:
                    check.fails(f"{where}: {request['request_id']} never came to account.commands")
                continue
            command = waiting.popleft()
            if command.meaning != meaning:
                check.fails(
                    f"{where}: {request['request_id']} became {command.request_id}, or other than was asked, "
                    f"at command {command.offset}"
                )
            elif verdict.certain and not expired:
                check.expect(
                    command.code == verdict.code and command.hits == verdict.hits,
                    f"{where}: {command.request_id} got {command.code or 'no decline'} for "
                    f"{sorted(command.hits)}, recounted {verdict.code or 'no decline'} for "
                    f"{sorted(verdict.hits)}",
                )
        for command in waiting if in_step else ():
            check.fails(
                f"account.commands/{p}/{command.offset}: {command.request_id} is no request of card.requests"
            )
        if tables is not None and not expired and self.last_work["card.requests", p] < tables.next_offset:
            self._risk_tables(p, recount, tables)

    def _risk_tables(self, p: int, recount: Recount, tables: Tables) -> None:
        rows, velocity = self.findings["tables"], tables.of("velocity")
        kept = {key.split("/", 1)[1]: row for key, row in tables.of("risk-requests").items()}
        for request, (at, verdict, _) in recount.verdicts.items():
            if at <= recount.now - WINDOW_MS or not verdict.certain:
                continue
            row = kept.get("/".join(request))
            code = None if row is None else row[3] if len(row) > 3 else ""
            rows.expect(
                code == verdict.code, f"risk-requests/{p}: {request[2]} has {row}, decided {verdict.code!r}"
            )
        for account, counts in recount.counts.items():
            row = velocity.get(account)
            ring = row[2].get("count/60", []) if row is not None and len(row) > 2 else []
            found = dict(zip(ring[::2], ring[1::2], strict=True))
            rows.expect(found == counts, f"velocity/{p}: {account} has {found}, recounted {counts}")

    # -- tables

    def _row_is(self, p: int, tables: Tables, table: str, key: str, expected: Any) -> None:
        found = tables.of(table).get(key)
        if found is None and expected == [0, ""]:
            return
        if self.running and found != expected:
            return  # it has gone on since its journal was read
        self.findings["tables"].expect(
            found == expected, f"{table}/{p}: {key} is {found}, the log says {expected}"
        )

    def _account_tables(self, p: int, tables: Tables, book: Book, after: set[str]) -> None:
        """`after`: accounts that have gone on since."""
        check = self.findings["tables"]
        accounts, payments = tables.of("accounts"), tables.of("payments")
        holds, wakes = set(tables.of("holds")), set(tables.of("wakes"))
        for account_id, account in book.accounts.items():
            if account_id in after:
                continue
            row = dict(accounts.get(account_id, {}))
            wake = row.pop("next_expiry", 0)
            shown = {name: value for name, value in account.shown.items() if name != "next_expiry"}
            check.expect(
                row == shown, f"accounts/{p}: {account_id} is {row or 'missing'}, the log says {shown}"
            )
            first = min(account.holds.values(), default=0)
            check.expect(
                not first or 0 < wake <= first,
                f"accounts/{p}: {account_id} wakes at {wake or 'no time'}, its first hold ends at {first}",
            )
            if wake:
                key = f"{wake:015d}/{account_id}"
                check.expect(key in wakes, f"wakes/{p}: none at {wake} for {account_id}")
                wakes.discard(key)
        for payment_id, payment in book.payments.items():
            account_id = _account_in(payment_id)
            if account_id in after:
                continue
            state = payments.get(payment_id)
            check.expect(
                state is not None and fingerprint(state) == payment.shown,
                f"payments/{p}: {payment_id} is {'missing' if state is None else 'not as its last event'}",
            )
            if payment.held:
                key = f"{account_id}/{payment.expires_at:015d}/{payment_id}"
                check.expect(key in holds, f"holds/{p}: none for {payment_id}, which holds {payment.held}")
                holds.discard(key)
        for name, left in (("holds", holds), ("wakes", wakes)):
            for key in left:
                if not any(account in key for account in after):
                    check.fails(f"{name}/{p}: {key} is of nothing that the log knows")
        for name, table, known in (
            ("accounts", accounts, book.accounts),
            ("payments", payments, book.payments),
        ):
            for key in table.keys() - known.keys():
                check.fails(f"{name}/{p}: {key} is in no event")

    def _open_work(self, p: int, clearing: Tables, reversal: Tables | None, book: Book) -> None:
        """Captures without an outcome are what clearing and reversal remember, and nothing else is."""
        pending = {
            f"{payment_id}-{n}"
            for payment_id, payment in book.payments.items()
            for n, capture in enumerate(payment.captures, 1)
            if capture.state == "submitted"
        }
        if not self.running:
            found = set(clearing.of("presentments"))
            self.findings["tables"].expect(
                found == pending,
                f"presentments/{p}: {len(found)} open, the log says {len(pending)}: "
                f"{sorted(found ^ pending)[:3]}",
            )
        if reversal is None:
            return
        sagas, check = reversal.of("sagas"), self.findings["sagas"]
        check.looked_at += sum(1 for payment in book.payments.values() if payment.captures)
        if self.running:
            return
        for payment_id in sagas:
            check.fails(f"{payment_id}: {sagas[payment_id]}")
        for key in pending:
            if key.rpartition("-")[0] not in sagas:
                check.fails(f"capture {key} has no outcome and no saga waits for it")

    def _planted_are_buried(self) -> None:
        """Once by each processor that reads its topic. A follower, and the projection, may be killed between
        the letter and the commit, and sends it again."""
        if self.running:
            return
        check = self.findings["dead-letters"]
        for topic, p, offset in sorted(self.planted):
            for name, source in SOURCES.items():
                if source == topic and (name, p) in self.ran:
                    service = name.partition(".")[0]
                    count = self.buried[service, (topic, p, offset)]
                    check.expect(
                        count == 1, f"{topic}/{p}/{offset}, planted, has {count} dead letters of {service}"
                    )
            passed = [
                service
                for service, places in self.evidence.committed.items()
                if offset < places.get(f"{topic}/{p}", 0)
            ]
            if topic in VIEWS and self.model.has(topic, p, offset):
                passed.append("projection")
            for service in passed:
                check.expect(
                    self.buried[service, (topic, p, offset)] >= 1,
                    f"{topic}/{p}/{offset}, planted, has no dead letter of {service}",
                )

    # -- settlement, balances and sums

    def _settlement(self, p: int) -> None:
        check, net = self.findings["settlement"], self.tables("clearing.net", p)
        settle = self.tables("ledger.settle", p)
        if net is None:
            check.skipped = self.findings["merchant-items"].skipped = "clearing has never run"
        chain = Chain(self.findings, self.totals)
        paid: dict[int, Postings] = {}
        for record, entry in self.records("ledger.settlement-journal", p):
            where = f"ledger.settlement-journal/{p}/{record.offset}"
            if entry["source"] in paid:
                check.fails(f"{where}: position {entry['source']} is paid twice")
            paid[entry["source"]] = chain.feed(entry, where)
            if self.model.has("ledger.settlement-journal", p, record.offset):
                self.model.entry(record, entry)
        if settle is not None:
            self._row_is(p, settle, "settlement-chain", "head", [chain.number, chain.hash])
        items, times, passed = self._items(p, _progress(net))
        cycles = Cycles(self.findings, items, times)
        for record, position in self.records("settlement.positions", p):
            where = f"settlement.positions/{p}/{record.offset}"
            if self.model.has("settlement.positions", p, record.offset):
                self.model.other(record, position)
            if name_of(position) == "cycle_closed":
                cycles.close(position, where)
                continue
            expected = cycles.tell(position)
            if settle is not None and record.offset < settle.next_offset:
                found = paid.pop(record.offset, {})
                check.expect(found == expected, f"{where}: paid is {found}, owed {expected}")
        cycles.late(passed, self.evidence.cycle_ms)
        self.unsettled.update(cycles.open)
        for source in paid:
            if settle is not None and source < settle.next_offset:
                check.fails(f"ledger.settlement-journal/{p}: position {source} was paid and is not there")
        for name, tables in (("clearing.net", net), ("ledger.settle", settle)):
            self._processed(name, SOURCES[name], p, None if tables is None else tables.next_offset)

    def _items(self, p: int, upto: int) -> tuple[list[tuple[int, dict[str, Any]]], list[int], list[Passed]]:
        """With how far time had come with each, and the last two ticks before `upto`."""
        found, times, passed, time = [], [], list[Passed](), 0
        for record, item in self.records("clearing.items", p):
            time = max(time, record.timestamp)
            if self.model.has("clearing.items", p, record.offset):
                self.model.other(record, item)
            if name_of(item) == "clearing_item":
                self.due.take(item, f"clearing.items/{p}/{record.offset}")
                found.append((record.offset, item))
                times.append(time)
            elif name_of(item) in TICKS and record.offset < upto:
                passed = [*passed[-1:], Passed(record.offset, record.timestamp)]
        return found, times, passed

    def _balances(self, p: int) -> None:
        tables = self.tables("ledger.balances", p)
        if tables is None:
            return
        expired = self.evidence.begins.get(f"ledger.postings/{p}", 0)
        if expired:
            for name in ("tables", "trial-balance"):
                self.findings[name].leaves_out(
                    f"ledger.postings/{p} begins at {expired}: balances cannot be added up again"
                )
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for record, posted in self.records("ledger.postings", p):
            for account, currency, amount in posted["postings"]:
                self.posted[account, currency] += amount
                if record.offset < tables.next_offset:
                    row = sums[f"{account}/{currency}"]
                    row[0] += max(0, amount)
                    row[1] += max(0, -amount)
                    row[2] += 1
        self._processed("ledger.balances", "ledger.postings", p, tables.next_offset)
        if expired:
            return
        rows, check = tables.of("balances"), self.findings["tables"]
        for key, expected in sums.items():
            found = rows.get(key, [])[:3]
            check.expect(found == expected, f"balances/{p}: {key} is {found}, its postings make {expected}")
        for key in rows.keys() - sums.keys():
            check.fails(f"balances/{p}: {key} has a balance and no posting")

    def _sums(self) -> None:
        check = self.findings["trial-balance"]
        check.looked_at += len(self.totals)
        by_currency: Counter[str] = Counter()
        for (_, currency), amount in self.totals.items():
            by_currency[currency] += amount
        for currency, amount in by_currency.items():
            if amount:
                check.fails(f"all accounts in {currency} sum to {amount}")
        if not self.totals:
            check.skipped = self.findings["captures"].skipped = "the ledger has never run"
        elif not self.running and not any(
            place.startswith("ledger.postings/") for place in self.evidence.begins
        ):
            for key in self.totals.keys() | self.posted.keys():
                check.expect(
                    self.totals[key] == self.posted[key],
                    f"{key[0]} in {key[1]}: {self.totals[key]} in the journals, {self.posted[key]} posted",
                )
        captured: Counter[tuple[str, str]] = Counter()
        check = self.findings["captures"]
        for payment in self.payments.values():
            for one in payment.captures:
                check.looked_at += 1
                captured[payment.currency, one.state] += one.amount
                captured[payment.currency, "all"] += one.amount
            standing = sum(one.amount for one in payment.captures if one.state != "rejected")
            if standing != payment.captured:
                check.fails(
                    f"a payment of {payment.account}: captures of {standing}, captured {payment.captured}"
                )
        for currency in {currency for currency, _ in captured}:
            parts = [captured[currency, state] for state in ("cleared", "rejected", "submitted")]
            if captured[currency, "all"] != sum(parts):
                check.fails(f"{currency}: captured {captured[currency, 'all']}, accounted for {parts}")
            if self.totals and not self.running and self.totals["clearing:suspense", currency] != -parts[2]:
                check.fails(
                    f"{currency}: {parts[2]} pending, suspense {self.totals['clearing:suspense', currency]}"
                )
        if not self.totals or self.running:
            return
        self._merchants()
        check, held = self.findings["trial-balance"], Counter[tuple[str, str]]()
        for account_id, account in self.accounts.items():
            for name, amount in (("holds", account.held), ("receivable", account.posted)):
                found = self.totals[f"{name}:cardholder:{account_id}", account.currency]
                check.expect(
                    found == amount, f"{name} of {account_id}: {found} in the journal, {amount} by its events"
                )
            held["holds:contra", account.currency] -= account.held
        for key, amount in held.items():
            check.expect(self.totals[key] == amount, f"{key}: {self.totals[key]}, all holds make {amount}")

    def _merchants(self) -> None:
        """What is owed to a merchant is what no closed cycle has paid."""
        check = self.findings["settlement"]
        owed = {key for key in self.totals if key[0].startswith(PAYABLE)}
        for account, currency in owed | {(PAYABLE + merchant, of) for merchant, of in self.unsettled}:
            found = -self.totals[account, currency]
            open_ = self.unsettled[account.removeprefix(PAYABLE), currency]
            check.expect(
                found == open_,
                f"{account} is owed {found} {currency}, its items of no closed cycle make {open_}",
            )

    # -- what is left

    def _other_topics(self) -> None:
        """What nothing above has read."""
        for topic in (
            "fraud.alerts",
            "payment.sagas",
            "risk.rules",
            "gateway.replies",
            "clearing.submissions",
        ):
            for p in range(self.evidence.partitions.get(topic, 0)):
                for record, message in self.records(topic, p):
                    if self.model.has(topic, p, record.offset):
                        self.model.other(record, message)
                    if topic == "clearing.submissions":
                        self.presentments.take(message, f"{topic}/{p}/{record.offset}")
        expired = (place for place in self.evidence.begins if place.startswith("clearing.submissions/"))
        self.presentments.end(", ".join(expired))

    def _read_model_ends(self) -> None:
        """It has applied all work of its topics; while the services are at work, some."""
        self.model.end()
        if self.model.given:
            worked = any(self.last_work["payment.events", p] >= 0 for p in range(self.partitions))
            if worked and not self.model.applied:
                self.findings["read-model"].fails("there are events, and nothing was ever applied")
            for topic in VIEWS:
                for p in range(self.evidence.partitions.get(topic, 0)):
                    self._processed("projection", topic, p, self.model.applied.get((topic, p), 0))

    def _followers(self) -> None:
        for service, places in self.evidence.committed.items():
            for place, offset in places.items():
                topic, _, partition = place.rpartition("/")
                self._processed(service, topic, int(partition), offset)

    # -- the client's history

    def _history(self) -> None:
        history = self.evidence.history()
        if history is None:
            return
        known = self.findings["event-has-request"]
        for (account, client, request_id), effects in self.effects.items():
            if client not in INTERNAL:
                known.expect(
                    (account, client, request_id) in self.requests or (client, request_id) in self.nameless,
                    f"{effects[0].kind} of request {request_id} of {client}, which nobody sent",
                )
        stories: dict[Request, Story] = {}
        reads = 0
        for line in history:
            if "planted" in line:
                continue
            if "body" not in line:
                reads += line["status"] == 200
                self._read(line)
            else:
                account, client, request_id = _request_in(line)
                account = account or self.account_of_pan.get(line["body"].get("pan", ""), "")
                story = stories.setdefault((account, client, request_id), Story())
                story.add(line, self.findings)
        acknowledged = 0
        for request, story in stories.items():
            account, _, request_id = request
            effects = self.effects.get(request, [])
            self._refused(request, story, effects)
            acknowledged += self._story(request_id, story, effects, self._currency(account, story))
        self.findings.counts["requests"] = len(stories)
        self.findings.counts["reads"] = reads
        self.findings.counts["acknowledged"] = acknowledged

    def _currency(self, account: str, story: Story) -> str:
        """Of a request's amount: what it says, or that of the account."""
        known = self.accounts.get(account)
        return story.currency or (known.currency if known else "")

    def _read(self, line: dict[str, Any]) -> None:
        """An answer to a reader: a state that the log has, with all that its token stands for."""
        check = self.findings["reads"]
        if self.running:
            check.skipped = "what is read while the system works may be newer than what was read of its log"
            return
        if line["status"] not in (200, 404):
            return
        what, life = _looked_at(line), self.lives[_looked_at(line)]
        partition, _, position = line.get("wants", "").partition(":")
        wanted = (int(partition), int(position)) if position else (-1, -1)
        least = sum(one.partition == wanted[0] and one.position <= wanted[1] for one in life)
        if line["status"] == 404:
            check.expect(
                not least, f"{what} was not found by {line['wants']}; the log has {least} events of it"
            )
            return
        shows = line["shows"]
        if "events" in shows:
            count = len(shows["events"])
            events = [[one.partition, one.offset] for one in life[:count]]
            right = events == shows["events"] and count > 0 and life[count - 1].state == _shown_payment(shows)
            found = f"as after {shows['events'][-1:]}, its events {count}"
        else:
            newest = [one.state for one in life[max(0, least - 1) :]]
            right, count, found = _shown_account(shows) in newest, len(life), "as it"
        check.expect(
            right and count >= least,
            f"{what} was shown {found}, {shows}, to a reader with the token {line.get('wants') or 'none'}; "
            f"the log has {len(life)} events of it, {least} up to the token: {life[-3:]}",
        )

    def _holds_nothing(self, request_id: str, story: Story, effects: list[Effect]) -> None:
        """Of an authorization that was given up: no hold is left, and a sale is refunded."""
        if story.path != "/payments/authorize":
            return
        left = [self.payments[one.payment_id] for one in effects if one.payment_id in self.payments]
        open_ = any(one.held or one.captured - one.refunded - one.reserved - one.charged_back for one in left)
        self.findings["time-out-leaves-no-hold"].expect(not open_, f"{request_id} still holds money")

    def _decided_again(self) -> None:
        """One request, one outcome: whoever sent it, and whether or not there is a history."""
        for (account, _, request_id), effects in self.effects.items():
            again = repeated(effects)
            if again:
                self.findings.duplicated += again
                self.findings["command-decided-once"].fails(
                    f"{request_id} of {account} took effect {again + 1} times: "
                    f"{[(one.kind, one.position) for one in effects if one.decides]}"
                )

    def _refused(self, request: Request, story: Story, effects: list[Effect]) -> None:
        """What is said not to be there is not, or the log has that refusal, which is judged where it is; so
        with an id that was used for another request."""
        (account, client, request_id), once = request, self.findings["acknowledged-once"]
        if story.missing:
            what = (*story.missing.split("/"), "", "")[2]
            holder = what if what in self.accounts else _account_in(what) if what in self.payments else ""
            effects = self.effects.get((holder, client, request_id), [])
            right = not holder or any(one.outcome == "404" for one in effects)
            once.expect(right, f"{request_id}: {story.missing} was answered 404, and {what} is there")
        elif account and story.refused is not None and story.refused[1] == 422:
            right = any(one.outcome == "422" for one in effects)
            once.expect(right, f"{request_id} of {account} was answered 422; the log has no such refusal")

    def _story(self, request_id: str, story: Story, effects: list[Effect], currency: str) -> bool:
        """Whether an outcome was told."""
        once, log = self.findings["acknowledged-once"], [(e.kind, e.code, e.payment_id) for e in effects]
        if repeated(effects):
            once.fails(f"{request_id} took effect {repeated(effects) + 1} times: {log}")
        if story.code is None and story.refused is None:
            self._never_answered(request_id, story, effects, currency)
            return False
        if story.code is None:
            # Of two requests with one id, one is refused, and the other may have done something.
            right = story.mixed or not any(effect.decides for effect in effects)
            once.expect(right, f"{request_id} was refused; the log has {log}")
            return True
        if story.code == "68":
            self._holds_nothing(request_id, story, effects)
        right = story.is_told_of(effects, currency)
        self.findings.lost += not right
        once.expect(
            right,
            f"{request_id}, {story.path} of {story.amount or 'all'}, was answered {story.status} "
            f"{story.code} {story.payment_id}; the log has {log or 'nothing'}, "
            f"of {[effect.amount for effect in effects]}",
        )
        return True

    def _never_answered(self, request_id: str, story: Story, effects: list[Effect], currency: str) -> None:
        """It may have taken effect once, and only as it was asked."""
        deciding = [effect for effect in effects if effect.decides]
        right = story.mixed or all(story.asked_for(effect, currency) for effect in deciding)
        self.findings["unknown-ended"].expect(
            right and not repeated(effects),
            f"{request_id}, {story.path} of {story.amount or 'all'}: "
            f"{[(one.kind, one.payment_id, one.amount) for one in effects]}",
        )
        if story.timed_out:
            self._holds_nothing(request_id, story, effects)


def _sum_of(postings: Postings) -> int:
    return hash(frozenset(postings.items()))


def _progress(tables: Tables | None) -> int:
    return 0 if tables is None else tables.next_offset


def _skip_to(meaning: int, waiting: deque[Assessed]) -> bool:
    """Leave out the commands before the one that asks this; False: there is none."""
    before = next((n for n, command in enumerate(waiting) if command.meaning == meaning), None)
    for _ in range(before or 0):
        waiting.popleft()
    return before is not None


def _assessed(offset: int, command: dict[str, Any]) -> Assessed:
    verdict = command.get("verdict", {})
    hits = frozenset((hit["rule"], hit["version"], hit["value"]) for hit in verdict.get("hits", ()))
    meaning = _asked_of_risk(command)
    return Assessed(offset, command["request_id"], meaning, verdict.get("response_code", ""), hits)


def _asked_of_risk(request: dict[str, Any]) -> int:
    return fingerprint({name: value for name, value in request.items() if name != "verdict"})


def _request_in(line: dict[str, Any]) -> Request:
    """Of an attempt. Its account is "" while the client does not know it."""
    return line["account"], line.get("client", "local"), line["body"]["request_id"]


def _looked_at(line: dict[str, Any]) -> str:
    """The id of the payment or account that a GET asks for."""
    return str(line["path"]).rpartition("/")[2]


def _payment_state(payment: Payment, code: str) -> int:
    return hash((
        payment.status, code, payment.authorized, payment.captured, payment.reversed, payment.refunded,
        payment.charged_back, payment.held, payment.cleared, payment.reserved,
    ))  # fmt: skip


def _shown_payment(shows: dict[str, Any]) -> int:
    amounts = {name: _minor(text) for name, text in shows["amounts"].items()}
    return hash((
        shows["status"], shows["code"], amounts["authorized"], amounts["captured"], amounts["reversed"],
        amounts["refunded"], amounts["charged_back"], amounts["held"], amounts["cleared"],
        amounts["refund_reserved"],
    ))  # fmt: skip


def _account_state(account: Account) -> int:
    return hash((account.status, account.limit, account.held, account.posted, account.available))


def _shown_account(shows: dict[str, Any]) -> int:
    return hash(
        (shows["status"], *(_minor(shows[name]) for name in ("limit", "held", "posted", "available")))
    )


def _minor(text: str) -> int:
    """ "12.34" -> 1234: every decimal of a currency is always shown."""
    return int(text.replace(".", ""))


def _account_of(event: dict[str, Any]) -> str:
    if "account" in event:
        return str(event["account"]["account_id"])
    return str(event["payment"]["account"] if "payment" in event else event["account_id"])


def _account_in(payment_id: str) -> str:
    return "tok_" + payment_id[4:].rpartition("_")[0]
