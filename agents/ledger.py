"""The ledger: every event in double entry, sealed into a journal; settlement likewise; and the balances."""

from __future__ import annotations

from typing import Any, Final

from mini_visa import topics
from mini_visa.domain.clearing import ON_MERCHANTS, name_of
from mini_visa.domain.events import AccountEvent, PaymentEvent, PaymentFact
from mini_visa.domain.journal import (
    ChainHead,
    Journal,
    JournalEntry,
    LedgerPostings,
    Unbalanced,
    seal,
)
from mini_visa.domain.ledger import Posting, Postings, payable_of, postings_of
from mini_visa.domain.settlement import CycleClosed, SettlementPosition, settle
from mini_visa.settings import settings
from mini_visa.streams import Context, Impossible, Table
from mini_visa.streams.app import create_app
from mini_visa.streams.topic import Topic
from tables.ledger import BALANCES, CHAIN, HEAD, NOT_POSTED, SETTLEMENT_CHAIN, Balance

PAYABLE: Final = payable_of("x").removesuffix("x")
NO_ENTRY: Final = ChainHead()

app = create_app("ledger")


@app.processor(
    source=topics.PAYMENT_EVENTS,
    tables=[CHAIN],
    sinks=[topics.LEDGER_JOURNAL, topics.LEDGER_POSTINGS],
    rest_s=settings().rest_s,
)
def journal(event: PaymentFact, context: Context) -> None:
    """One entry for each event that moves money, or the promise of it."""
    postings = postings_of(event)
    if not postings:
        return
    assert isinstance(event, AccountEvent), f"{name_of(event)} posts, but on no account"
    payment = event.payment if isinstance(event, PaymentEvent) else None
    merchant_id = payment.merchant.id if payment else ""
    entry = write(
        context, topics.LEDGER_JOURNAL, CHAIN, "payments", postings, kind=name_of(event), at=event.at,
        account=event.account.account_id, payment_id=payment.payment_id if payment else "",
        merchant_id=merchant_id, reference=event.request_id,
    )  # fmt: skip
    if type(event) in ON_MERCHANTS:
        merchants = tuple(posting for posting in postings if posting.account.startswith(PAYABLE))
        if merchants:
            post(context, entry, merchants, owner=merchants[0].account)
            postings = tuple(posting for posting in postings if posting not in merchants)
    post(context, entry, postings)


@app.processor(
    name="settle",
    source=topics.SETTLEMENT_POSITIONS,
    tables=[SETTLEMENT_CHAIN],
    sinks=[topics.LEDGER_SETTLEMENT_JOURNAL, topics.LEDGER_POSTINGS],
    rest_s=settings().rest_s,
)
def settlement(position: SettlementPosition | CycleClosed, context: Context) -> None:
    """The bank pays each merchant what a closed cycle owes it."""
    postings = settle(position) if isinstance(position, SettlementPosition) else ()
    if not postings:
        return
    assert isinstance(position, SettlementPosition)
    entry = write(
        context, topics.LEDGER_SETTLEMENT_JOURNAL, SETTLEMENT_CHAIN, "settlement", postings,
        kind="merchant_settled", at=position.closed_at, merchant_id=position.merchant_id,
        reference=position.cycle,
    )  # fmt: skip
    payable, bank = postings
    post(context, entry, (payable,), owner=payable.account)
    post(context, entry, (bank,))


@app.processor(source=topics.LEDGER_POSTINGS, tables=[BALANCES], rest_s=settings().rest_s)
def balances(posted: LedgerPostings, context: Context) -> None:
    rows = context.table(BALANCES)
    for account, currency, amount in posted.postings:
        key = f"{account}/{currency}"
        former: Balance = rows.get(key, NOT_POSTED)
        rows[key] = Balance(
            former.debits + max(0, amount), former.credits + max(0, -amount), former.postings + 1,
            posted.journal, posted.partition, posted.number, posted.at,
        )  # fmt: skip


def write(
    context: Context,
    topic: Topic[JournalEntry],
    chain: Table[ChainHead],
    journal: Journal,
    postings: Postings,
    **facts: Any,
) -> JournalEntry:
    """Seal the entry, as the next of this partition's chain, and write it."""
    heads = context.table(chain)
    try:
        entry = seal(
            heads.get(HEAD, NO_ENTRY), journal=journal, partition=context.partition, source=context.offset,
            postings=postings, **facts,
        )  # fmt: skip
    except Unbalanced as error:
        raise Impossible(f"not posted: {error}") from None
    heads[HEAD] = ChainHead(entry.number, entry.hash)
    context.emit(topic, entry)
    return entry


def post(context: Context, entry: JournalEntry, postings: tuple[Posting, ...], owner: str = "") -> None:
    """Send postings to where their balances are: a merchant's by its ledger account, all others, the hot
    ones too, to this partition."""
    if postings:
        message = LedgerPostings(
            journal=entry.journal, partition=entry.partition, number=entry.number, at=entry.at,
            postings=postings,
        )  # fmt: skip
        context.emit(topics.LEDGER_POSTINGS, message, key=owner.encode() if owner else None)
