"""Every topic: its key, its messages, who writes it, how long it is kept. One page to read.

Topics keyed by account have the same number of partitions (the setting `partitions`), fixed at
creation, and Kafka's default murmur2 partitioner over the key bytes: a record about an account stays
on the account's partition number from topic to topic.
"""

from __future__ import annotations

from typing import get_args

from mini_visa.domain import answers, commands, events
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

ALL: tuple[AnyTopic, ...] = (CARD_REQUESTS, ACCOUNT_COMMANDS, PAYMENT_EVENTS, GATEWAY_REPLIES, FRAUD_ALERTS)

SERVICES = ("risk", "authorization", "projection")
"""Every service that processes topics, and so has dead letters. A module of `agents` each."""


def dead_letters(service: str) -> str:
    """Name of the topic that takes what `service` could not process: raw bytes, the reason and the
    source position in headers, same partition as the source."""
    return f"{service}.dead-letters"
