"""The read model as the gateway and the command line ask it: payments, accounts, statements, alerts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from typing import Any, Final, Self

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.commands import FraudAlert
from mini_visa.domain.journal import JournalEntry
from mini_visa.domain.lifecycle import as_shown
from mini_visa.domain.payment import Account, CaptureState, Payment
from mini_visa.domain.risk import Rule
from mini_visa.domain.saga import SagaEvent
from mini_visa.domain.settlement import SettlementPosition
from mini_visa.readmodel import schema
from mini_visa.readmodel.database import Database, DatabaseUnusable, first_line
from mini_visa.readmodel.pages import PAGE_MAX, Cursors, Page, PaymentFilters, page_limit
from mini_visa.readmodel.schema import PARTITION_BITS, partition_and_offset, place_of
from mini_visa.readmodel.views import is_payment_id, payment_key, storable
from mini_visa.settings import Settings

EVENTS_MAX: Final = 1_000
"""Events of one payment that are shown: its latest."""
RARE_MAX: Final = 5_000
PARTITIONS_MAX: Final = 1 << PARTITION_BITS
AS_OF_KEPT_S: Final = 0.05
POLL_MIN_S: Final = 0.001
POLL_MAX_S: Final = 0.010
NEVER_MS: Final = 2**63 - 1
LATE_STATES: Final = ("overdue", "compensating")
"""Of sagas: something is wrong, and not yet put right."""


class PaymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    payment: Payment
    """As it stands."""
    events: list[dict[str, Any]]
    """What happened to it, oldest first: each event as it is in the log (`type`, `at`, `seq`, ...), with
    its `partition` and `offset` in payment.events."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an account's statement. Amounts are minor units of `currency`."""

    at: int
    seq: int
    type: str
    """The event's, as "payment_captured/1"."""
    amount: int
    """What the event was about; `held` and `posted` say what it did."""
    currency: str
    held: int
    """Of the account, after this entry; so are the next three."""
    posted: int
    limit: int
    available: int
    payment_id: str = ""
    request_id: str = ""
    response_code: str = ""
    partition: int
    offset: int


class LedgerBalance(msgspec.Struct, frozen=True, kw_only=True):
    """Minor units. What was debited and credited, ever; both are positive."""

    account: str
    currency: str
    debits: int
    credits: int

    @property
    def balance(self) -> int:
        """Debit > 0, credit < 0."""
        return self.debits - self.credits


class CurrencyTotal(msgspec.Struct, frozen=True, kw_only=True):
    currency: str
    debits: int
    credits: int

    @property
    def difference(self) -> int:
        """Always 0."""
        return self.debits - self.credits


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """A settlement cycle, as far as it is closed."""

    cycle: str
    """When it began, "2026-01-01T00:00:00Z"."""
    partitions: int
    """That have closed it."""
    positions: int
    closed_at: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition has been applied."""

    topic: str
    partition: int
    next_offset: int
    command_position: int
    event_time: int
    as_of: int
    """Everything that was in the topic at this wall-clock time (ms) is in the read model."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A posting on a ledger account, with the entry that it is part of."""

    entry: JournalEntry
    currency: str
    amount: int
    """Minor units, debit > 0."""


class OpenSaga(msgspec.Struct, frozen=True, kw_only=True):
    """A payment some step of which has still to take place."""

    payment_id: str
    account: str
    state: str
    """waiting (nothing is wrong so far), overdue or compensating."""
    step: str
    since: int
    """Event time, ms, of the first step that is open."""
    waiting: tuple[int, ...]
    """Captures without an outcome."""
    tries: int
    """How often a deadline of it has passed or a compensation was sent."""


class TrialBalance(msgspec.Struct, frozen=True, kw_only=True):
    currencies: list[CurrencyTotal]
    positions: list[Position]
    """Of the journals' partitions: what it is true for."""


class ReadModel:
    """Queries. Many at once are fine; the object belongs to the event loop that opened it."""

    def __init__(self, database: Database, topic: str = topics.PAYMENT_EVENTS.name) -> None:
        self._database = database
        self._topic = topic
        self._waits: dict[tuple[int, int], list[asyncio.Future[None]]] = {}
        self._poll: asyncio.Task[None] | None = None
        self._as_of: dict[str, tuple[float, int | None]] = {}
        """Topic -> when it was asked for, and the answer."""

    @classmethod
    async def open(cls, settings: Settings) -> ReadModel:
        """Open what the setting `database_url` names; make or upgrade its tables where
        `database_migrate` allows it.

        Raises `SchemaOlder`, `SchemaNewer` or `DatabaseUnusable` with what to do.
        """
        if settings.database_migrate:
            writer = Database.of(settings, write=True)
            try:
                await writer.prepare(settings)
            finally:
                await writer.close()
        database = Database.of(settings)
        try:
            await database.prepare(settings)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    async def close(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- payments ----------------------------------------------------------------------------------

    async def payment(self, payment_id: str) -> PaymentRecord | None:
        """The payment and its events, or None."""
        if not is_payment_id(payment_id):
            return None
        first = payment_key(payment_id, 0)  # of its command's position, whichever partition that is on
        parameters = {"first": first, "last": first + PARTITIONS_MAX - 1}
        async with self._database.engine.connect() as connection:
            log = (await connection.execute(_PAYMENT, parameters | {"id": payment_id})).all()
            if not log:
                return None
            (payment,) = await _with_settlement(connection, [_payment_of(log[0].latest)])
        shown = [_shown(place, _decode(event)) for _, place, event in reversed(log)]
        return PaymentRecord(payment=payment, events=shown)

    async def payments(
        self, filters: PaymentFilters, cursor: str | None = None, limit: int = 100
    ) -> Page[Payment]:
        """Payments that match all of `filters`, newest first. Raises `InvalidCursor`; ValueError for a
        limit that is not from 1 to 1,000."""
        page_limit(limit)
        cursors = Cursors("payments", filters)
        table = schema.payments.c
        query = _PAYMENT_LIST
        for column, value in (
            (table.account_id, filters.account),
            (table.merchant_id, filters.merchant_id),
            (table.client, filters.client),
        ):
            if value is not None:
                query = query.where(column == storable(value))
        if filters.status is not None:
            query = query.where(table.status == str(filters.status))
        if filters.from_ms is not None:
            query = query.where(table.created_at >= filters.from_ms)
        if filters.to_ms is not None:
            query = query.where(table.created_at < filters.to_ms)
        amounts = []
        if filters.min_amount is not None:
            amounts.append(table.amount_e4 >= _e4(filters.min_amount))
        if filters.max_amount is not None:
            amounts.append(table.amount_e4 <= _e4(filters.max_amount))
        query = query.where(*amounts)
        newest: tuple[Any, Any] = table.created_at, table.payment_key
        for number, (key, value) in enumerate(filters.metadata.items()):
            label = schema.payment_metadata.alias()
            query = query.join(label, label.c.payment_key == table.payment_key).where(
                label.c.key == storable(key),
                label.c.value == storable(value),
                label.c.created_at == table.created_at,
            )
            if number == 0:  # its index has the list's own order: nothing is sorted
                newest = label.c.created_at, label.c.payment_key
        if cursor is not None:
            last = cursors.read(cursor, int, int)
            query = query.where(sa.tuple_(*newest) < tuple(last))
        query = query.order_by(*(column.desc() for column in newest))
        async with self._database.engine.connect() as connection:
            if amounts:
                # Newest first, many rows may pass before one has a rare amount: then by amount, and sort.
                rare = sa.select(table.payment_key).where(*amounts).limit(RARE_MAX + 1)
                count = await connection.scalar(sa.select(sa.func.count()).select_from(rare.subquery()))
                if count is not None and count <= RARE_MAX:
                    query = query.where(table.payment_key.in_(rare))
            rows = (await connection.execute(query.limit(limit + 1))).all()
            more = len(rows) > limit
            rows = rows[:limit]
            items = await _with_settlement(connection, [_payment_of(event) for event, _, _ in rows])
        return Page(
            items=items,
            next_cursor=cursors.write(rows[-1][1], rows[-1][2]) if more else None,
        )

    # -- accounts ----------------------------------------------------------------------------------

    async def account(self, account_id: str) -> Account | None:
        """The account as it stands, or None."""
        async with self._database.engine.connect() as connection:
            event = (await connection.execute(_ACCOUNT, {"id": account_id})).scalar()
        return None if event is None else _account_of(event)

    async def account_at(self, account_id: str, at: int) -> Account | None:
        """The account as it stood at the time `at` (ms), that moment included; None before it was opened."""
        async with self._database.engine.connect() as connection:
            event = (await connection.execute(_ACCOUNT_AT, {"id": account_id, "at": at})).scalar()
        return None if event is None else _account_of(event)

    async def account_after(self, account_id: str, partition: int, offset: int) -> Account | None:
        """The account as the events of its partition up to `offset` left it."""
        parameters = {"id": account_id, "place": place_of(partition, offset)}
        async with self._database.engine.connect() as connection:
            event = (await connection.execute(_ACCOUNT_AFTER, parameters)).scalar()
        return None if event is None else _account_of(event)

    async def payment_after(self, payment_id: str, partition: int, offset: int) -> Payment | None:
        """The payment as the events of its partition up to `offset` left it."""
        parameters = {"key": payment_key(payment_id, partition), "place": place_of(partition, offset)}
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(_PAYMENT_AFTER, parameters)).scalars().all()
        found = (getattr(_decode(event), "payment", None) for event in rows)  # a refused request has none
        return next((payment for payment in found if payment is not None), None)

    async def entries(
        self, account_id: str, at: int | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Entry]:
        """The account's statement, newest first; with `at` (ms) as it was at that time."""
        page_limit(limit)
        cursors = Cursors("entries", account_id, at)
        latest, place = (NEVER_MS if at is None else at), NEVER_MS
        if cursor is not None:
            latest, place = cursors.read(cursor, int, int)
        async with self._database.engine.connect() as connection:
            parameters = {"id": account_id, "at": latest, "place": place, "limit": limit + 1}
            rows = (await connection.execute(_ENTRIES, parameters)).all()
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(
            items=[_entry(place, event) for place, event in rows],
            next_cursor=cursors.write(_decode(rows[-1][1]).at, rows[-1][0]) if more else None,
        )

    # -- alerts ------------------------------------------------------------------------------------

    async def alerts(self, cursor: str | None = None, limit: int = 100) -> Page[FraudAlert]:
        """Fraud alerts, newest first."""
        page_limit(limit)
        cursors = Cursors("alerts")
        query = _ALERTS
        table = schema.alerts.c
        if cursor is not None:
            query = query.where(sa.tuple_(table.at, table.alert_id) < tuple(cursors.read(cursor, int, str)))
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).scalars().all()
        items = [topics.FRAUD_ALERTS.decode(alert.encode()) for alert in rows[:limit]]
        more = len(rows) > limit
        return Page(
            items=items, next_cursor=cursors.write(items[-1].at, items[-1].alert_id) if more else None
        )

    # -- ledger ------------------------------------------------------------------------------------

    async def trial_balance(self) -> TrialBalance:
        """Every posting of both journals, added up per currency, and how far the journals were read."""
        async with self._database.snapshot() as connection:
            sums = (await connection.execute(_TRIAL_BALANCE)).all()
            positions = (await connection.execute(_POSITIONS)).mappings().all()
        return TrialBalance(
            currencies=[
                CurrencyTotal(currency=row[0], debits=int(row[1]), credits=int(row[2])) for row in sums
            ],
            positions=[Position(**row) for row in positions if row["topic"] in _JOURNALS],
        )

    async def ledger_account(self, name: str) -> list[LedgerBalance]:
        """The balance of a ledger account in each of its currencies; [] when nothing was posted on it."""
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(_LEDGER_ACCOUNT, {"account": storable(name)})).all()
        return [
            LedgerBalance(account=name, currency=row[0], debits=int(row[1]), credits=int(row[2]))
            for row in rows
        ]

    async def ledger_account_at(self, name: str, at: int) -> list[LedgerBalance]:
        """The same as it was at the time `at` (ms), that moment included."""
        parameters = {"account": storable(name), "at": at}
        async with self._database.snapshot() as connection:
            rows = (await connection.execute(_LEDGER_ACCOUNT, parameters)).all()
            # From the present backwards: what is asked for is seldom long ago.
            since = {row[0]: row[1:] for row in (await connection.execute(_POSTED_SINCE, parameters)).all()}
        balances = []
        for currency, debits, credits in rows:
            later_debits, later_credits = since.get(currency, (0, 0))
            before = int(debits) - int(later_debits), int(credits) - int(later_credits)
            if any(before):
                balances.append(
                    LedgerBalance(account=name, currency=currency, debits=before[0], credits=before[1])
                )
        return balances

    async def ledger_statement(
        self, name: str, at: int | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Line]:
        """What was posted on a ledger account, newest first: a merchant's or a cardholder's statement, or
        any other. With `at` (ms) as it was at that time."""
        page_limit(limit)
        cursors = Cursors("ledger", name, at)
        table = schema.journal_postings.c
        query = _STATEMENT.where(table.account == storable(name))
        if at is not None:
            query = query.where(table.at <= at)
        if cursor is not None:
            last = cursors.read(cursor, int, int, str)
            query = query.where(sa.tuple_(table.at, table.entry_key, table.currency) < tuple(last))
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).all()
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(
            items=[
                Line(entry=topics.LEDGER_JOURNAL.decode(entry.encode()), currency=currency, amount=amount)
                for _, _, currency, amount, entry in rows
            ],
            next_cursor=cursors.write(*rows[-1][:3]) if more else None,
        )

    async def journal_entries(self, payment_id: str, limit: int = 1_000) -> list[JournalEntry]:
        """What was posted for the payment, oldest first, with the entries' hash chain."""
        page_limit(limit)
        if not is_payment_id(payment_id):
            return []
        first = payment_key(payment_id, 0)
        parameters = {"first": first, "last": first + PARTITIONS_MAX - 1, "limit": limit}
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(_ENTRIES_OF_PAYMENT, parameters)).scalars().all()
        entries = (topics.LEDGER_JOURNAL.decode(entry.encode()) for entry in rows)
        return [entry for entry in entries if entry.payment_id == payment_id]

    # -- settlement --------------------------------------------------------------------------------

    async def settlement_cycles(self, cursor: str | None = None, limit: int = 100) -> Page[Cycle]:
        """Cycles that at least one partition has closed, newest first."""
        page_limit(limit)
        cursors = Cursors("cycles")
        query = _CYCLES
        if cursor is not None:
            (last,) = cursors.read(cursor, str)
            query = query.where(schema.settlement_cycles.c.cycle < last)
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).all()
        items = [
            Cycle(cycle=row[0], partitions=row[1], positions=int(row[2]), closed_at=row[3])
            for row in rows[:limit]
        ]
        more = len(rows) > limit
        return Page(items=items, next_cursor=cursors.write(items[-1].cycle) if more else None)

    async def settlement_positions(
        self, cycle: str, cursor: str | None = None, limit: int = 100
    ) -> Page[SettlementPosition]:
        """A cycle's net positions, by merchant and currency."""
        page_limit(limit)
        cursors = Cursors("settlement", cycle)
        table = schema.settlement_positions.c
        query = _CYCLE_POSITIONS.where(table.cycle == storable(cycle))
        if cursor is not None:
            last = cursors.read(cursor, str, str)
            query = query.where(sa.tuple_(table.merchant_id, table.currency) > tuple(last))
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).scalars().all()
        items: list[Any] = [topics.SETTLEMENT_POSITIONS.decode(row.encode()) for row in rows[:limit]]
        last_of = (storable(items[-1].merchant_id), items[-1].currency) if items else ()
        return Page(items=items, next_cursor=cursors.write(*last_of) if len(rows) > limit else None)

    async def settled_positions(self, cycle: str) -> AsyncGenerator[list[SettlementPosition], None]:
        """All net positions of a cycle, what its file has, a page after the other. Nothing where there is no
        such cycle."""
        cursor = None
        while True:
            page = await self.settlement_positions(cycle, cursor, PAGE_MAX)
            if page.items:
                yield page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    async def open_sagas(self, limit: int = 100) -> list[OpenSaga]:
        """Every payment some step of which has still to take place, the oldest first: a capture waits for
        its outcome, or what failed is not undone yet."""
        page_limit(limit)
        async with self._database.engine.connect() as connection:
            waiting = (await connection.execute(_IN_CLEARING.limit(limit))).scalars().all()
            query = _SAGAS.where(schema.sagas.c.state.in_(LATE_STATES)).limit(limit)
            told = (await connection.execute(query)).scalars().all()
        late = {saga.payment_id: saga for saga in (topics.PAYMENT_SAGAS.decode(row.encode()) for row in told)}
        found = []
        for payment in map(_payment_of, waiting):
            open_ones = [one for one in payment.captures if one.state is CaptureState.SUBMITTED]
            saga = late.pop(payment.payment_id, None)
            found.append(
                OpenSaga(
                    payment_id=payment.payment_id,
                    account=payment.account,
                    state="waiting" if saga is None else saga.state,
                    step="clearing",
                    since=min(one.at for one in open_ones),
                    waiting=tuple(one.n for one in open_ones),
                    tries=0 if saga is None else saga.tries,
                )
            )
        for saga in late.values():
            found.append(
                OpenSaga(
                    payment_id=saga.payment_id,
                    account=saga.account,
                    state=saga.state,
                    step=saga.step,
                    since=saga.since,
                    waiting=saga.waiting,
                    tries=saga.tries,
                )
            )
        return sorted(found, key=lambda one: (one.since, one.payment_id))[:limit]

    async def rules(self) -> list[tuple[Rule, int]]:
        """Every version of a rule that was ever put in force, with how many partitions have done so."""
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(_RULES)).all()
        return [(msgspec.json.decode(body, type=Rule), partitions) for body, partitions in rows]

    async def sagas(self, states: Sequence[str] = LATE_STATES, limit: int = 100) -> list[SagaEvent]:
        """Sagas that are in one of `states` by the last that was said about them, the oldest first."""
        page_limit(limit)
        query = _SAGAS.where(schema.sagas.c.state.in_(states)).limit(limit)
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(query)).scalars().all()
        return [topics.PAYMENT_SAGAS.decode(row.encode()) for row in rows]

    # -- freshness ---------------------------------------------------------------------------------

    async def positions(self) -> list[Position]:
        """Every partition that has been applied, by topic and partition."""
        async with self._database.engine.connect() as connection:
            rows = (await connection.execute(_POSITIONS)).mappings().all()
        return [Position(**row) for row in rows]

    async def lag_ms(self, topic: str = "") -> int:
        """How old an answer may be: what was in `topic` (payment.events) this long ago is in the read model.

        With no projection running it grows with the clock. Before the first event it is 0.
        """
        now, topic = time.monotonic(), topic or self._topic
        read_at, as_of = self._as_of.get(topic, (-math.inf, None))
        if now - read_at > AS_OF_KEPT_S:  # a former answer is only a looser bound
            async with self._database.engine.connect() as connection:
                as_of = (await connection.execute(_AS_OF, {"topic": topic})).scalar()
            self._as_of[topic] = now, as_of
        return 0 if as_of is None else max(0, int(time.time() * 1000) - as_of)

    async def wait_for(self, partition: int, position: int, timeout_s: float) -> bool:
        """Wait until the outcome of the command at `position` of `partition` of account.commands is in
        the read model. False when that took longer than `timeout_s`."""
        if await self._applied(partition) >= position:
            return True
        wait = asyncio.get_running_loop().create_future()
        self._waits.setdefault((partition, position), []).append(wait)
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(timeout_s):
                await wait
        except TimeoutError:
            return False
        finally:
            waits = self._waits.get((partition, position))
            if waits is not None and wait in waits:
                waits.remove(wait)
                if not waits:
                    del self._waits[partition, position]
        return True

    async def _applied(self, partition: int) -> int:
        async with self._database.engine.connect() as connection:
            parameters = {"topic": self._topic, "partition": partition}
            position = (await connection.execute(_APPLIED, parameters)).scalar()
        return -1 if position is None else position

    async def _watch(self) -> None:
        """One query at a time for all who wait; it ends when nobody does."""
        pause_s = POLL_MIN_S
        while self._waits:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
            try:
                async with self._database.engine.connect() as connection:
                    rows = (await connection.execute(_ALL_APPLIED, {"topic": self._topic})).all()
            except (OSError, sa.exc.DBAPIError) as error:
                for waits in self._waits.values():
                    for wait in waits:
                        if not wait.done():
                            wait.set_exception(DatabaseUnusable(f"{self._database}: {first_line(error)}"))
                self._waits.clear()
                return
            applied = dict(rows)
            for partition, position in list(self._waits):
                if applied.get(partition, -1) >= position:
                    pause_s = POLL_MIN_S
                    for wait in self._waits.pop((partition, position)):
                        if not wait.done():
                            wait.set_result(None)


# -- statements ------------------------------------------------------------------------------------

_event = schema.payment_events.c
_payment = schema.payments.c
_latest = schema.payment_events.alias("latest")
_PAYMENT = (  # one statement: of two, the second could see an event that the first had not seen
    sa.select(_latest.c.event.label("latest"), _event.place, _event.event)
    .select_from(
        schema.payments.join(_latest, _payment.place == _latest.c.place).join(
            schema.payment_events, _payment.payment_key == _event.payment_key
        )
    )
    .where(
        _payment.payment_key.between(sa.bindparam("first"), sa.bindparam("last")),
        _payment.payment_id == sa.bindparam("id"),
    )
    .order_by(_event.place.desc())
    .limit(EVENTS_MAX)
)
_PAYMENT_LIST = sa.select(_event.event, _payment.created_at, _payment.payment_key).select_from(
    schema.payments.join(schema.payment_events, _payment.place == _event.place)
)
_ACCOUNT = (
    sa.select(_event.event)
    .join(schema.accounts, schema.accounts.c.place == _event.place)
    .where(schema.accounts.c.account_id == sa.bindparam("id"))
)
_ENTRIES = (
    sa.select(_event.place, _event.event)
    .where(
        _event.account_id == sa.bindparam("id"),
        sa.tuple_(_event.at, _event.place) < sa.tuple_(sa.bindparam("at"), sa.bindparam("place")),
        _event.seq.is_not(None),
    )
    .order_by(_event.at.desc(), _event.place.desc())
    .limit(sa.bindparam("limit"))
)
_ACCOUNT_AT = (
    sa.select(_event.event)
    .where(_event.account_id == sa.bindparam("id"), _event.at <= sa.bindparam("at"), _event.seq.is_not(None))
    .order_by(_event.at.desc(), _event.place.desc())
    .limit(1)
)
_ACCOUNT_AFTER = (
    sa.select(_event.event)
    .where(
        _event.account_id == sa.bindparam("id"),
        _event.place <= sa.bindparam("place"),
        _event.seq.is_not(None),
    )
    .order_by(_event.at.desc(), _event.place.desc())
    .limit(1)
)
_PAYMENT_AFTER = (
    sa.select(_event.event)
    .where(_event.payment_key == sa.bindparam("key"), _event.place <= sa.bindparam("place"))
    .order_by(_event.place.desc())
    .limit(EVENTS_MAX)
)
_ALERTS = sa.select(schema.alerts.c.alert).order_by(
    schema.alerts.c.at.desc(), schema.alerts.c.alert_id.desc()
)
_balance = schema.ledger_balances.c
_SUMS = (sa.func.sum(_balance.debits), sa.func.sum(_balance.credits))
_TRIAL_BALANCE = sa.select(_balance.currency, *_SUMS).group_by(_balance.currency).order_by(_balance.currency)
_LEDGER_ACCOUNT = _TRIAL_BALANCE.where(_balance.account == sa.bindparam("account"))
_posting = schema.journal_postings.c
_POSTED_SINCE = (
    sa.select(
        _posting.currency,
        sa.func.sum(sa.case((_posting.amount > 0, _posting.amount), else_=0)),
        sa.func.sum(sa.case((_posting.amount < 0, -_posting.amount), else_=0)),
    )
    .where(_posting.account == sa.bindparam("account"), _posting.at > sa.bindparam("at"))
    .group_by(_posting.currency)
)
_STATEMENT = (
    sa.select(
        _posting.at, _posting.entry_key, _posting.currency, _posting.amount, schema.journal_entries.c.entry
    )
    .join(schema.journal_entries, schema.journal_entries.c.entry_key == _posting.entry_key)
    .order_by(_posting.at.desc(), _posting.entry_key.desc(), _posting.currency.desc())
)
_JOURNALS = frozenset((topics.LEDGER_JOURNAL.name, topics.LEDGER_SETTLEMENT_JOURNAL.name))
_journal = schema.journal_entries.c
_ENTRIES_OF_PAYMENT = (
    sa.select(_journal.entry)
    .where(_journal.payment_key.between(sa.bindparam("first"), sa.bindparam("last")))
    .order_by(_journal.payment_key, _journal.entry_key)
    .limit(sa.bindparam("limit"))
)
_cycle = schema.settlement_cycles.c
_CYCLES = (
    sa.select(_cycle.cycle, sa.func.count(), sa.func.sum(_cycle.positions), sa.func.max(_cycle.closed_at))
    .group_by(_cycle.cycle)
    .order_by(_cycle.cycle.desc())
)
_CYCLE_POSITIONS = sa.select(schema.settlement_positions.c.position).order_by(
    schema.settlement_positions.c.merchant_id, schema.settlement_positions.c.currency
)
_item = schema.clearing_items.c
_SETTLED = sa.select(_item.payment_id, _item.n).where(
    _item.payment_id.in_(sa.bindparam("ids", expanding=True)),
    sa.exists().where(_cycle.partition == _item.partition, _cycle.end_item > _item.offset),
)
_IN_CLEARING = (
    sa.select(_event.event)
    .select_from(schema.payments.join(schema.payment_events, _payment.place == _event.place))
    .where(sa.literal_column("clearing") == sa.literal_column("'submitted'"))
    .order_by(_payment.created_at, _payment.payment_key)
)
_rule = schema.rules.c
_RULES = (
    sa.select(sa.func.max(_rule.body), sa.func.count())
    .group_by(_rule.rule, _rule.version)
    .order_by(_rule.rule, _rule.version)
)
_SAGAS = sa.select(schema.sagas.c.saga).order_by(schema.sagas.c.since, schema.sagas.c.payment_key)
_position = schema.positions.c
_POSITIONS = sa.select(
    _position.topic,
    _position.partition,
    _position.next_offset,
    _position.command_position,
    _position.event_time,
    _position.as_of,
).order_by(_position.topic, _position.partition)
_APPLIED = sa.select(_position.command_position).where(
    _position.topic == sa.bindparam("topic"), _position.partition == sa.bindparam("partition")
)
_ALL_APPLIED = sa.select(_position.partition, _position.command_position).where(
    _position.topic == sa.bindparam("topic")
)
_AS_OF = sa.select(sa.func.min(_position.as_of)).where(_position.topic == sa.bindparam("topic"))


# -- rows to values --------------------------------------------------------------------------------


def _decode(event: str) -> Any:
    return topics.PAYMENT_EVENTS.decode(event.encode())


def _payment_of(event: str) -> Payment:
    payment: Payment = _decode(event).payment
    return payment


async def _with_settlement(connection: AsyncConnection, payments: list[Payment]) -> list[Payment]:
    """As a reader sees them: which captures are settled is asked once for all."""
    ids = [payment.payment_id for payment in payments if payment.cleared]
    settled: dict[str, set[int]] = {}
    if ids:
        for payment_id, n in (await connection.execute(_SETTLED, {"ids": ids})).all():
            settled.setdefault(payment_id, set()).add(n)
    return [as_shown(payment, settled.get(payment.payment_id, ())) for payment in payments]


def _account_of(event: str) -> Account:
    account: Account = _decode(event).account
    return account


def _shown(place: int, event: events.PaymentFact) -> dict[str, Any]:
    partition, offset = partition_and_offset(place)
    shown: dict[str, Any] = msgspec.to_builtins(event)
    return {**shown, "partition": partition, "offset": offset}


def _entry(place: int, data: str) -> Entry:
    event = _decode(data)
    account: Account = event.account
    partition, offset = partition_and_offset(place)
    is_payment = isinstance(event, events.PaymentEvent)
    return Entry(
        at=event.at,
        seq=event.seq,
        type=type(event).__struct_config__.tag,
        amount=getattr(event, "amount", 0),
        currency=account.currency,
        held=account.held,
        posted=account.posted,
        limit=account.limit,
        available=account.available,
        payment_id=event.payment.payment_id if is_payment else "",
        request_id=event.request_id,
        response_code=event.response_code if is_payment else "",
        partition=partition,
        offset=offset,
    )


def _e4(amount: Decimal) -> int:
    """Ten-thousandths of a unit. Digits beyond them are no amount of any currency: ValueError."""
    scaled = amount.scaleb(4)
    if not amount.is_finite() or scaled != scaled.to_integral_value() or abs(scaled) >= 2**63:
        raise ValueError("an amount has at most four decimals")
    return int(scaled)
