"""W1 on this project's kernel: one topic in, one table, one topic out, one pure handler."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mini_visa.streams import Context, Table, Topic
from tests.bench.w1.rule import IN_WINDOW_MAX, START_BALANCE, WINDOW_MS


class Request(msgspec.Struct, gc=False):
    request_id: str
    card: str
    amount: int
    ts: int


class Decision(msgspec.Struct, gc=False):
    request_id: str
    card: str
    approved: bool
    reason: str
    balance: int


class Card(msgspec.Struct, array_like=True):
    balance: int
    seen_at: list[int]
    """Times of the requests in the window, in the order they came."""


_request = msgspec.json.Decoder(Request)
_decision = msgspec.json.Encoder()
_decision_decoder = msgspec.json.Decoder(Decision)
_card_decoder = msgspec.msgpack.Decoder(Card)
_card_encoder = msgspec.msgpack.Encoder()

CARDS: Table[Card] = Table("cards", _card_encoder.encode, _card_decoder.decode)


def requests_topic(name: str) -> Topic[Request]:
    return Topic(name, _request.decode, _decision.encode, key="card")  # type: ignore[arg-type]


def decisions_topic(name: str) -> Topic[Decision]:
    return Topic(name, _decision_decoder.decode, _decision.encode, key="card")  # type: ignore[arg-type]


def make_handler(decisions: Topic[Decision]) -> Callable[[Request, Context], None]:
    """The handler that answers on `decisions`."""

    def authorize(request: Request, context: Context) -> None:
        at = request.ts
        key, cards = context.key, context.tables[CARDS]
        assert key is not None
        card = cards.get(key)
        if card is None:
            balance, seen_at = START_BALANCE, [at]
        else:
            start = at - WINDOW_MS
            balance, seen_at = card.balance, [moment for moment in card.seen_at if moment > start]
            seen_at.append(at)
        if len(seen_at) > IN_WINDOW_MAX:
            approved, reason = False, "velocity"
        elif request.amount > balance:
            approved, reason = False, "insufficient"
        else:
            approved, reason = True, "ok"
            balance -= request.amount
        cards[key] = Card(balance, seen_at)
        context.emit(decisions, Decision(request.request_id, request.card, approved, reason, balance))

    return authorize
