"""Risk against a naive recount of the log: every number a verdict shows, over random histories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agents.risk import assess
from mini_visa import topics
from mini_visa.domain.commands import Authorize, Increment, PaymentOutcome, PutRule, Tick
from mini_visa.domain.payment import Card, Merchant
from mini_visa.domain.risk import BUCKETS_MAX, DEFAULT_RULES, LATENESS_MS, NOT_DECLINES, Rule, rule_of
from mini_visa.streams.processor import Record
from mini_visa.streams.testing import Driver
from tables.velocity import REQUESTS, VELOCITY

START = 1_767_225_600_000
DAY = 86_400_000
ACCOUNTS = ["acc-1", "acc-2"]
CURRENCIES = {"USD": 2, "JPY": 0, "KWD": 3}

PUTS = [
    PutRule(rule=name, version=version, body={"metric": metric, "window_s": window_s, "outcome": outcome,
            "threshold": threshold, "retired": retired})
    for name, metric, window_s, outcome, threshold in [
        ("velocity-count-60s", "count", 60, "decline", 2),
        ("few-merchants", "distinct_merchants", 60, "review", 1),
        ("merchants-2m", "distinct_merchants", 120, "decline", 2),
        ("short-count", "count", 20, "alert", 1),
        ("long-count", "count", 3_600, "decline", 6),
        ("declines-10m", "declines", 600, "decline", 1),
        ("small-sum", "amount", 300, "decline", 50_00),
    ]
    for version, retired in [(1, False), (2, False), (3, True), (4, False)]
]  # fmt: skip


@dataclass
class Counted:
    """One thing that happened to a card, as the naive model keeps it: for ever."""

    at: int
    kind: str
    amount: int = 0
    exponent: int = 2
    merchant: str = ""


@dataclass
class NaiveRisk:
    """The definition, written the slow way: keep the whole log and count it again for each request."""

    rules: dict[str, Rule] = field(default_factory=lambda: {rule.id: rule for rule in DEFAULT_RULES})
    log: dict[str, list[Counted]] = field(default_factory=dict)
    currency: dict[str, str] = field(default_factory=dict)
    first: dict[tuple[str, str, str], tuple[int, Any]] = field(default_factory=dict)
    now: int = 0
    rules_since: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def value(self, rule: Rule, account: str, exponent: int) -> int:
        width = 1_000 if rule.window_s <= BUCKETS_MAX else rule.window_s * 1_000 // BUCKETS_MAX
        newest = self.now // width
        oldest = newest - rule.window_s * 1_000 // width
        inside = [
            one for one in self.log.get(account, []) if oldest < one.at // width <= newest
        ]  # what follows is the definition of each metric
        if rule.metric == "declines":
            return sum(one.kind == "decline" for one in inside)
        requests = [one for one in inside if one.kind == "request"]
        if rule.metric == "count":
            return len(requests)
        if rule.metric == "amount":
            return sum(one.amount for one in requests if one.exponent == exponent)
        return len({one.merchant for one in requests if one.merchant})

    def judge(self, request: Authorize | Increment, at: int) -> Any:
        """(response code, {(rule, version): (value, threshold)}) of a request."""
        name = (request.account, request.client, request.request_id)
        remembered = self.first.get(name)
        if remembered is not None and remembered[0] > self.now - DAY:
            return remembered[1]
        if isinstance(request, Authorize):
            exponent, merchant = CURRENCIES[request.currency], request.merchant.id
            if request.currency_given:
                self.currency[request.account] = request.currency
            else:
                self.currency.setdefault(request.account, request.currency)
        else:
            exponent, merchant = request.exponent, ""
        currency = self.currency.get(request.account, "")
        if CURRENCIES.get(currency) != exponent:
            currency = ""
        at = max(at, self.now - LATENESS_MS)
        self.log.setdefault(request.account, []).append(
            Counted(at, "request", request.amount, exponent, merchant)
        )
        hits = {}
        for risk_rule in self.rules.values():
            value = self.value(risk_rule, request.account, exponent)
            threshold = risk_rule.limit(currency, exponent)
            if not risk_rule.retired and value > threshold:
                hits[risk_rule.id, risk_rule.version] = (value, threshold)
        codes = {self.rules[name].response_code for name, _ in hits}
        code = next((code for code in ("65", "61", "59") if code in codes), "")
        verdict = (code, hits)
        self.first[name] = (self.now, verdict)
        return verdict


requests = st.builds(
    lambda account, n, amount, currency, given, merchant: Authorize(
        account=account,
        request_id=f"r{n}",
        amount=amount,
        currency=currency,
        currency_given=given,
        card=Card(token=account, bin="411111", last4="1111"),
        merchant=Merchant(id=merchant),
    ),
    st.sampled_from(ACCOUNTS),
    st.integers(0, 60),
    st.sampled_from([0, 1, 20_00, 2_000_00, 800_000]),
    st.sampled_from(list(CURRENCIES)),
    st.booleans(),
    st.sampled_from(["", "m1", "m2", "m3"]),
)
increments = st.builds(
    lambda account, n, amount, exponent: Increment(
        account=account, request_id=f"i{n}", payment_id="p", amount=amount, exponent=exponent
    ),
    st.sampled_from(ACCOUNTS),
    st.integers(0, 10),
    st.sampled_from([1, 30_00]),
    st.sampled_from([0, 2, 3]),
)
outcomes = st.builds(
    lambda account, code: PaymentOutcome(
        account=account, payment_id="p", request_id="r", response_code=code, amount=1
    ),
    st.sampled_from(ACCOUNTS),
    st.sampled_from(["00", "51", "05", "68"]),
)
steps = st.sampled_from([0, 0, 1, 400, 1_000, 5_000, 19_999, 59_000, 60_000, 600_000, DAY])
lateness = st.sampled_from([0, 0, 0, 500, 3_000, LATENESS_MS, LATENESS_MS + 1, 90_000])


class RiskAgainstRecount(RuleBasedStateMachine):
    """The service and the recount see the same records; every verdict must be the same."""

    @initialize()
    def start(self) -> None:
        self.service = Driver(assess)
        self.naive = NaiveRisk()
        self.clock = START
        self.judged = 0
        self.versions = {"velocity-count-60s": 1, "declines-10m": 1}

    def send(self, message: Any, step: int, late: int) -> int:
        """The record's own time."""
        self.clock += step
        at = self.clock - late
        self.naive.now = max(self.naive.now, at)
        self.service.send(message, key=getattr(message, "account", "any").encode(), at=at)
        return at

    def send_and_compare(self, request: Authorize | Increment, step: int, late: int) -> None:
        at = self.send(request, step, late)
        code, hits = self.naive.judge(request, at)
        commands = self.service.sent(topics.ACCOUNT_COMMANDS)
        self.judged += 1
        assert len(commands) == self.judged, "each request is passed on, once"
        verdict = commands[-1].verdict
        note(f"{request.request_id} at {at}: {verdict}")
        assert {(hit.rule, hit.version): (hit.value, hit.threshold) for hit in verdict.hits} == hits
        assert verdict.response_code == code

    @rule(request=requests, step=steps, late=lateness)
    def authorize(self, request: Authorize, step: int, late: int) -> None:
        self.send_and_compare(request, step, late)

    @rule(request=increments, step=steps, late=lateness)
    def increment(self, request: Increment, step: int, late: int) -> None:
        self.send_and_compare(request, step, late)

    @rule(outcome=outcomes, step=steps, late=lateness)
    def outcome(self, outcome: PaymentOutcome, step: int, late: int) -> None:
        at = self.send(outcome, step, late)
        if outcome.response_code not in NOT_DECLINES and self.looks_at_declines():
            decline = Counted(max(at, self.naive.now - LATENESS_MS), "decline")
            self.naive.log.setdefault(outcome.account, []).append(decline)

    def looks_at_declines(self) -> bool:
        return any(one.metric == "declines" and not one.retired for one in self.naive.rules.values())

    @rule(step=steps)
    def tick(self, step: int) -> None:
        self.send(Tick(), step, 0)
        longest = max((rule.window_s for rule in self.naive.rules.values() if not rule.retired), default=0)
        for account in list(self.naive.currency):
            if account not in self.service.rows(VELOCITY):
                # A card that has been quiet is forgotten, and with it its last currency: no window is lost.
                late = self.naive.now - longest * 1_000
                assert all(one.at <= late for one in self.naive.log.get(account, []))
                del self.naive.currency[account]

    @precondition(lambda self: self.judged == 0)
    @rule(put=st.sampled_from(PUTS))
    def put_rule(self, put: PutRule) -> None:
        """Only before the first request: a new window starts empty, which a recount cannot know."""
        self.send(put, 0, 0)
        former = self.naive.rules.get(put.rule)
        if former is None or put.version > former.version:
            self.naive.rules.pop(put.rule, None)
            self.naive.rules[put.rule] = rule_of(put)

    @invariant()
    def rows_are_bounded(self) -> None:
        for row in self.service.rows(VELOCITY).values():
            for ring in row.series.values():
                assert ring, "an empty ring is not kept"
                assert list(ring[::2]) == sorted(ring[::2])
                assert len(ring) <= 2 * (BUCKETS_MAX + 1)
        for key in self.service.rows(REQUESTS):
            assert int(key.partition("/")[0]) <= self.naive.now // DAY


RiskAgainstRecount.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEveryVerdictEqualsANaiveRecount = RiskAgainstRecount.TestCase


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(requests | increments | outcomes, steps, lateness), min_size=1, max_size=60), st.data()
)
def test_batches_of_any_size_give_the_same_bytes(history, data):
    """What a batch holds back until its end must not change what it decides."""
    clock, records = START, []
    for offset, (message, step, late) in enumerate(history):
        clock += step
        records.append(
            Record(offset, clock - late, message.account.encode(), topics.CARD_REQUESTS.encode(message))
        )
    one_by_one, in_batches = Driver(assess), Driver(assess)
    for record in records:
        one_by_one.run([record])
    while records:
        size = data.draw(st.integers(1, len(records)))
        in_batches.run(records[:size])
        records = records[size:]
    assert one_by_one.outputs == in_batches.outputs
    assert one_by_one.store.rows == in_batches.store.rows
