"""Every topic: its key, its messages, who writes it, how long it is kept. One page to read.

Topics keyed by account have the same number of partitions (the setting `partitions`), fixed at
creation, and Kafka's default murmur2 partitioner over the key bytes: a record about an account stays
on the account's partition number from topic to topic.
"""

from __future__ import annotations

from typing import get_args

from mini_visa.domain import answers, clearing, commands, events, journal, risk, saga, settlement
from mini_visa.domain.messages import MessageCodec
from mini_visa.streams.topic import DAY_MS, FOR_EVER_MS, HOUR_MS, AnyTopic, Topic

_card_requests: MessageCodec[commands.CardRequest] = MessageCodec(*get_args(commands.CardRequest))
CARD_REQUESTS: Topic[commands.CardRequest] = Topic(
    "card.requests",
    _card_requests.decode,
    _card_requests.encode,
    holds="authorizations and increments before risk has seen them; outcomes for risk's counts; rules; ticks",
    written_by="gateway, authorization",
    retention_ms=7 * DAY_MS,
)

_account_commands: MessageCodec[commands.AccountCommand] = MessageCodec(*get_args(commands.AccountCommand))
ACCOUNT_COMMANDS: Topic[commands.AccountCommand] = Topic(
    "account.commands",
    _account_commands.decode,
    _account_commands.encode,
    holds="every command on an account, in its one total order",
    written_by="risk, gateway, clearing connector, reversal",
    retention_ms=FOR_EVER_MS,
)

_payment_events: MessageCodec[events.PaymentFact] = MessageCodec(*get_args(events.PaymentFact))
PAYMENT_EVENTS: Topic[events.PaymentFact] = Topic(
    "payment.events",
    _payment_events.decode,
    _payment_events.encode,
    holds="facts: the source of truth of every account and payment",
    written_by="authorization",
    retention_ms=FOR_EVER_MS,
)

_gateway_replies: MessageCodec[answers.Answer] = MessageCodec(answers.Answer)
GATEWAY_REPLIES: Topic[answers.Answer] = Topic(
    "gateway.replies",
    _gateway_replies.decode,
    _gateway_replies.encode,
    key="explicit partition of the asking gateway",
    holds="outcomes, by the attempt that asked",
    written_by="authorization",
    retention_ms=HOUR_MS,
)

_fraud_alerts: MessageCodec[commands.FraudAlert] = MessageCodec(commands.FraudAlert)
FRAUD_ALERTS: Topic[commands.FraudAlert] = Topic(
    "fraud.alerts",
    _fraud_alerts.decode,
    _fraud_alerts.encode,
    holds="risk rules that fired",
    written_by="risk",
    retention_ms=90 * DAY_MS,
)

_journal: MessageCodec[journal.JournalEntry] = MessageCodec(journal.JournalEntry)
LEDGER_JOURNAL: Topic[journal.JournalEntry] = Topic(
    "ledger.journal",
    _journal.decode,
    _journal.encode,
    holds="balanced entries, all postings of an event in one; hash-chained per partition",
    written_by="ledger",
    retention_ms=FOR_EVER_MS,
)

LEDGER_SETTLEMENT_JOURNAL: Topic[journal.JournalEntry] = Topic(
    "ledger.settlement-journal",
    _journal.decode,
    _journal.encode,
    key="merchant",
    holds="the same for settlement, chains of its own",
    written_by="ledger",
    retention_ms=FOR_EVER_MS,
)

_ledger_postings: MessageCodec[journal.LedgerPostings] = MessageCodec(journal.LedgerPostings)
LEDGER_POSTINGS: Topic[journal.LedgerPostings] = Topic(
    "ledger.postings",
    _ledger_postings.decode,
    _ledger_postings.encode,
    key="a merchant's ledger account; for all other postings, that of their entry",
    holds="what the balances apply",
    written_by="ledger",
    retention_ms=7 * DAY_MS,
)

_submissions: MessageCodec[clearing.Submission] = MessageCodec(*get_args(clearing.Submission))
CLEARING_SUBMISSIONS: Topic[clearing.Submission] = Topic(
    "clearing.submissions",
    _submissions.decode,
    _submissions.encode,
    holds="presentments for the clearing house, and those to call back",
    written_by="clearing, reversal",
    retention_ms=30 * DAY_MS,
)

_items: MessageCodec[clearing.ClearingItem | commands.Tick] = MessageCodec(
    clearing.ClearingItem, commands.Tick
)
CLEARING_ITEMS: Topic[clearing.ClearingItem | commands.Tick] = Topic(
    "clearing.items",
    _items.decode,
    _items.encode,
    key="merchant",
    holds="what changes a merchant's position; ticks, which close cycles",
    written_by="clearing",
    retention_ms=FOR_EVER_MS,
)

_positions: MessageCodec[settlement.SettlementPosition | settlement.CycleClosed] = MessageCodec(
    settlement.SettlementPosition, settlement.CycleClosed
)
SETTLEMENT_POSITIONS: Topic[settlement.SettlementPosition | settlement.CycleClosed] = Topic(
    "settlement.positions",
    _positions.decode,
    _positions.encode,
    key="merchant",
    holds="net positions of closed cycles",
    written_by="clearing",
    retention_ms=FOR_EVER_MS,
)

_sagas: MessageCodec[saga.SagaEvent] = MessageCodec(saga.SagaEvent)
PAYMENT_SAGAS: Topic[saga.SagaEvent] = Topic(
    "payment.sagas",
    _sagas.decode,
    _sagas.encode,
    holds="sagas that are late, compensate, or ended after either",
    written_by="reversal",
    retention_ms=90 * DAY_MS,
)

_rules: MessageCodec[risk.RuleInForce] = MessageCodec(risk.RuleInForce)
RISK_RULES: Topic[risk.RuleInForce] = Topic(
    "risk.rules",
    _rules.decode,
    _rules.encode,
    key="rule",
    holds="versions of risk rules, as each partition puts them in force",
    written_by="risk",
    retention_ms=FOR_EVER_MS,
)

ALL: tuple[AnyTopic, ...] = (
    CARD_REQUESTS,
    ACCOUNT_COMMANDS,
    PAYMENT_EVENTS,
    GATEWAY_REPLIES,
    FRAUD_ALERTS,
    LEDGER_JOURNAL,
    LEDGER_SETTLEMENT_JOURNAL,
    LEDGER_POSTINGS,
    CLEARING_SUBMISSIONS,
    CLEARING_ITEMS,
    SETTLEMENT_POSITIONS,
    PAYMENT_SAGAS,
    RISK_RULES,
)

SERVICES = ("risk", "authorization", "projection", "ledger", "clearing", "reversal", "connector")
"""Every service that processes topics, and so has dead letters. A module of `agents` each."""


def dead_letters(service: str) -> str:
    """Name of the topic that takes what `service` could not process: raw bytes, the reason and the
    source position in headers, same partition as the source."""
    return f"{service}.dead-letters"
