"""Risk: every authorization and increment is counted and judged by the rules before it may hold money."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from mini_visa import topics
from mini_visa.domain import risk
from mini_visa.domain.commands import (
    Authorize,
    CardRequest,
    FraudAlert,
    Increment,
    PaymentOutcome,
    PutRule,
    Tick,
)
from mini_visa.domain.money import AMOUNT_MAX, EXPONENTS
from mini_visa.domain.payment import RuleHit
from mini_visa.settings import settings
from mini_visa.streams import Context, Impossible
from mini_visa.streams.app import create_app
from mini_visa.streams.table import TableView
from tables.rules import RULES, in_force, of_number, put_in_force
from tables.velocity import (
    FORGOTTEN,
    NEW_CARD,
    REQUESTS,
    VELOCITY,
    Assessed,
    forget,
    request_keys,
    verdict_of,
)

REQUEST_WINDOW_MS: Final = settings().request_window_h * 3_600_000
DECIMALS: Final = frozenset(EXPONENTS.values())

app = create_app("risk")


@app.processor(
    source=topics.CARD_REQUESTS,
    tables=[VELOCITY, REQUESTS, FORGOTTEN, RULES],
    sinks=[topics.ACCOUNT_COMMANDS, topics.FRAUD_ALERTS, topics.RISK_RULES, topics.CARD_REQUESTS],
    tick=Tick,
)
def assess(request: CardRequest, context: Context) -> None:
    if isinstance(request, (Authorize, Increment)):
        judge(request, context)
    elif isinstance(request, PaymentOutcome):
        count_outcome(request, context)
    elif isinstance(request, PutRule):
        put_rule(request, context)
    else:
        forget(
            context.table(REQUESTS), context.table(VELOCITY), context.table(FORGOTTEN),
            now=context.timestamp, window_ms=REQUEST_WINDOW_MS,
        )  # fmt: skip


def judge(request: Authorize | Increment, context: Context) -> None:
    """Pass the request on with its verdict: a new one, or the one that was given to it before."""
    account = request.account.encode()
    if context.key != account:
        raise Impossible("its key is not its account")
    if isinstance(request, Authorize):
        exponent = EXPONENTS.get(request.currency, -1)
        assumed, merchant_id = request.currency, request.merchant.id
        currency = assumed if request.currency_given else ""
    else:
        exponent, assumed, currency, merchant_id = request.exponent, "", "", ""
    if exponent not in DECIMALS or not 0 <= request.amount <= AMOUNT_MAX:
        raise Impossible("its amount is out of range, or its currency is not one of ISO 4217")

    now, tables = context.timestamp, context.tables
    requests, cards = tables[REQUESTS], tables[VELOCITY]
    key, former_key = request_keys(
        request.account, request.client, request.request_id, now // REQUEST_WINDOW_MS
    )
    seen: Assessed | None = requests.get(key) or requests.get(former_key)
    if seen is not None and seen.at <= now - REQUEST_WINDOW_MS:
        seen = None
    if seen is not None and is_of(seen, request):
        verdict = verdict_of(seen, of_number(context.table(RULES), seen.rules))
        context.emit(topics.ACCOUNT_COMMANDS, replace(request, verdict=verdict))
        return

    rules = in_force(tables[RULES])
    velocity, verdict = risk.assess(
        cards.get(account, NEW_CARD), rules, at=context.record_timestamp, now=now,
        amount=request.amount, exponent=exponent, currency=currency, assumed=assumed, merchant_id=merchant_id,
    )  # fmt: skip
    if not request.own or has_asked(request, requests, now):
        cards[account] = velocity
        if seen is None:
            requests[key] = Assessed(
                now, rules.number, verdict.score, verdict.response_code, verdict.hits, request.fingerprint
            )
    context.emit(topics.ACCOUNT_COMMANDS, replace(request, verdict=verdict))
    if verdict.hits:
        shown = request.currency if isinstance(request, Authorize) else velocity.currency
        alert(context, request, verdict.hits, verdict.score, shown, merchant_id)


def is_of(seen: Assessed, request: Authorize | Increment) -> bool:
    """Whether the verdict was on this very request. Another with its id is authorization's to refuse, which
    may have forgotten the first by then: a clean verdict on a cent must not be one on a thousand."""
    return seen.fingerprint in ("", request.fingerprint)  # "": by a version that did not keep it


def has_asked(request: Authorize | Increment, requests: TableView[Assessed], now: int) -> bool:
    """Whether this client, whose key is for its own payments only, has had the card in hand lately. An
    increment names a payment, and perhaps one of others: that must not use up the card's limits. The row that
    says so has no request id, and is forgotten with those that have one."""
    key, former_key = request_keys(request.account, request.client, "", now // REQUEST_WINDOW_MS)
    if isinstance(request, Authorize) and key not in requests:
        requests[key] = Assessed(now, 0)
    return key in requests or former_key in requests


def count_outcome(outcome: PaymentOutcome, context: Context) -> None:
    """Authorization declined a request: count it for the rules on declines."""
    if outcome.response_code in risk.NOT_DECLINES:
        return
    if context.key != outcome.account.encode():
        raise Impossible("its key is not its account")
    cards = context.table(VELOCITY)
    velocity, hits, score = risk.count_decline(
        cards.get(outcome.account, NEW_CARD), in_force(context.table(RULES)),
        at=context.record_timestamp, now=context.timestamp,
    )  # fmt: skip
    cards[outcome.account] = velocity
    alert(context, outcome, hits, score, velocity.currency, outcome.merchant_id)


def put_rule(put: PutRule, context: Context) -> None:
    """Versions come into partition 0, which passes on those that it takes: so that all partitions see every
    change, in one order."""
    rules = context.table(RULES)
    former = in_force(rules)
    try:
        rule = risk.rule_of(put)
        changed = former.put(rule)
    except (risk.InvalidRule, risk.RuleConflict) as error:
        raise Impossible(f"rule not put in force: {error}") from None
    if changed is not former:
        put_in_force(rules, changed)
        context.emit(
            topics.RISK_RULES, risk.RuleInForce(rule=rule, at=context.timestamp), key=rule.id.encode(),
            partition=context.partition,
        )  # fmt: skip
        if context.partition == 0:
            for partition in range(1, context.partitions(topics.CARD_REQUESTS)):
                context.emit(topics.CARD_REQUESTS, put, key=context.key, partition=partition)


def alert(
    context: Context,
    about: Authorize | Increment | PaymentOutcome,
    hits: Iterable[RuleHit],
    score: int,
    currency: str,
    merchant_id: str,
) -> None:
    for hit in hits:
        context.emit(
            topics.FRAUD_ALERTS,
            FraudAlert(
                alert_id=f"alert-{context.partition}-{context.offset}-{hit.rule}",
                account=about.account, request_id=about.request_id, at=context.timestamp, score=score,
                amount=about.amount, currency=currency, hit=hit, merchant_id=merchant_id,
            ),
        )  # fmt: skip
