"""Risk: rules as data, sliding windows of event time, and a verdict that explains itself.

A rule looks at one metric of one card over a window and fires when the value, this request included,
is above its threshold. What is counted, exactly:

- A window of w seconds is w / width buckets, `width` being 1 s up to 60 s and w / 60 above it. At
  partition time t it holds the bucket of t and those before it, so an event is counted for more than
  w - width and at most w seconds: (t - w, t] with the old end rounded up to a bucket.
- An event belongs to the bucket of its own record's time. One more than `LATENESS_MS` behind the
  partition's time counts as if it were `LATENESS_MS` behind: never not at all.
- Every new request counts, approved or not: counting happens with the decision, before the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec

from mini_visa.domain import response_codes
from mini_visa.domain.commands import PutRule
from mini_visa.domain.messages import Message
from mini_visa.domain.money import EXPONENTS
from mini_visa.domain.payment import Data, RuleHit, Verdict

LATENESS_MS: Final = 10_000
BUCKETS_MAX: Final = 60
WINDOW_S_MIN: Final = 20
"""A request that is `LATENESS_MS` late must still be inside every window that decides on it."""
WINDOW_S_MAX: Final = 86_400
RULES_MAX: Final = 64
SCORE_MAX: Final = 100
MERCHANTS_MAX: Final = 256
"""Merchants remembered per window and card; above every threshold on them, so no decision is lost."""
CURRENCY_PREFIX: Final = "threshold."
VALUE_MAX: Final = 10**16
"""A bucket stops counting here, so that no sum leaves 64 bits."""
DEFAULT_EXPONENT: Final = 2

Metric: TypeAlias = Literal["count", "amount", "distinct_merchants", "declines"]
RuleOutcome: TypeAlias = Literal["decline", "review", "alert"]

RESPONSE_CODES: Final[dict[str, str]] = {
    "count": response_codes.EXCEEDS_FREQUENCY,
    "amount": response_codes.EXCEEDS_AMOUNT_LIMIT,
    "distinct_merchants": response_codes.SUSPECTED_FRAUD,
    "declines": response_codes.SUSPECTED_FRAUD,
}
PRECEDENCE: Final = (
    response_codes.EXCEEDS_FREQUENCY,
    response_codes.EXCEEDS_AMOUNT_LIMIT,
    response_codes.SUSPECTED_FRAUD,
)
"""Which code a request gets when several rules decline it: the first of these."""
NOT_DECLINES: Final = frozenset(
    {
        response_codes.APPROVED,
        response_codes.PARTIAL_APPROVAL,
        response_codes.RESPONSE_TOO_LATE,
        response_codes.ISSUER_UNAVAILABLE,
        response_codes.DUPLICATE,
        response_codes.SYSTEM_ERROR,
    }
)
"""Outcomes that say nothing about the card."""


class InvalidRule(ValueError):
    """A rule's body makes no sense. The text names the field and what is allowed."""


class RuleConflict(ValueError):
    """A version that is not newer than the one in force, or more rules than `RULES_MAX`."""


class Rule(Data, frozen=True, kw_only=True):
    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    metric: Metric
    window_s: Annotated[int, msgspec.Meta(ge=WINDOW_S_MIN, le=WINDOW_S_MAX)]
    threshold: Annotated[int, msgspec.Meta(ge=0, le=10**15)]
    """Fires above it. Of an amount: minor units of a currency with two decimals, and the same number
    of whole units in any other currency that `thresholds` does not name."""
    outcome: RuleOutcome
    response_code: str = ""
    """Of a decline: `RESPONSE_CODES` of its metric. Otherwise "": only a decline has one."""
    score: Annotated[int, msgspec.Meta(ge=0, le=SCORE_MAX)] = 0
    key: Literal["card"] = "card"
    thresholds: dict[str, int] = {}
    """Of an amount: by currency, in that currency's own minor units."""
    retired: bool = False
    """Not evaluated any more; kept so that its versions go on counting."""

    @property
    def name(self) -> str:
        return f"{self.id}/{self.version}"

    @property
    def width_ms(self) -> int:
        """Length of a bucket."""
        return 1_000 if self.window_s <= BUCKETS_MAX else self.window_s * 1_000 // BUCKETS_MAX

    def limit(self, currency: str, exponent: int) -> int:
        """The threshold for a request in `currency`, in units of the metric."""
        if self.metric != "amount":
            return self.threshold
        named = self.thresholds.get(currency)
        if named is not None:
            return named
        scale = exponent - DEFAULT_EXPONENT
        power: int = 10 ** abs(scale)
        return self.threshold * power if scale >= 0 else self.threshold // power


_NEARLY_5000_USD: Final[dict[str, int]] = {
    "AED": 18_000_00, "ARS": 5_000_000_00, "BHD": 1_900_000, "BRL": 27_000_00, "CLP": 4_700_000,
    "CNY": 36_000_00, "COP": 20_000_000_00, "CZK": 115_000_00, "DKK": 34_000_00, "EGP": 240_000_00,
    "HKD": 39_000_00, "HUF": 1_800_000_00, "IDR": 80_000_000_00, "ILS": 18_000_00, "INR": 420_000_00,
    "IQD": 6_500_000_000, "ISK": 680_000, "JOD": 3_500_000, "JPY": 750_000, "KES": 640_000_00,
    "KRW": 7_000_000, "KWD": 1_500_000, "LYD": 25_000_000, "MXN": 95_000_00, "MYR": 22_000_00,
    "NGN": 7_500_000_00, "NOK": 53_000_00, "OMR": 1_900_000, "PHP": 290_000_00, "PKR": 1_400_000_00,
    "PLN": 20_000_00, "PYG": 38_000_000, "RUB": 450_000_00, "SAR": 19_000_00, "SEK": 52_000_00,
    "THB": 170_000_00, "TND": 15_500_000, "TRY": 200_000_00, "TWD": 160_000_00, "UAH": 200_000_00,
    "UGX": 18_500_000, "VND": 125_000_000, "XAF": 3_000_000, "XOF": 3_000_000, "ZAR": 90_000_00,
}  # fmt: skip
"""Round figures in minor units for currencies whose 5,000 is far from 5,000 USD. A rule's data, not
exchange rates: nothing is converted."""

DEFAULT_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        id="velocity-count-60s", version=1, metric="count", window_s=60, threshold=10,
        outcome="decline", response_code=response_codes.EXCEEDS_FREQUENCY, score=60,
    ),
    Rule(
        id="velocity-amount-60s", version=1, metric="amount", window_s=60, threshold=5_000_00,
        thresholds=_NEARLY_5000_USD,
        outcome="decline", response_code=response_codes.EXCEEDS_AMOUNT_LIMIT, score=60,
    ),
    Rule(
        id="declines-10m", version=1, metric="declines", window_s=600, threshold=4,
        outcome="alert", score=30,
    ),
)  # fmt: skip
"""In force until a PutRule says otherwise."""


_BODY_FIELDS: Final = frozenset(Rule.__struct_fields__) - {"id", "version", "thresholds"}


def rule_of(put: PutRule) -> Rule:
    """The rule that `put` describes. Raises `InvalidRule`.

    The body has the fields of `Rule` except id and version; the threshold of an amount in one currency
    is a field of its own, "threshold.JPY". A response code may be left out and cannot be chosen.
    """
    fields: dict[str, object] = {"id": put.rule, "version": put.version}
    thresholds: dict[str, object] = {}
    for name, value in put.body.items():
        if name.startswith(CURRENCY_PREFIX):
            currency = name.removeprefix(CURRENCY_PREFIX)
            if currency not in EXPONENTS:
                raise InvalidRule(f"{CURRENCY_PREFIX}...: not an active ISO 4217 currency code")
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**15:
                raise InvalidRule(f"{name}: must be minor units from 0 to 10^15")
            thresholds[currency] = value
        elif name not in _BODY_FIELDS:
            raise InvalidRule(f"{name[:64]}: is not a field of a rule's body")
        else:
            fields[name] = value
    code_given = fields.pop("response_code", "")
    try:
        rule = msgspec.convert({**fields, "thresholds": thresholds}, Rule)
    except msgspec.ValidationError as error:
        raise InvalidRule(str(error)[:200]) from None
    if rule.window_s > BUCKETS_MAX and rule.window_s % BUCKETS_MAX:
        raise InvalidRule(f"window_s: above {BUCKETS_MAX} it must be a multiple of {BUCKETS_MAX}")
    if thresholds and rule.metric != "amount":
        raise InvalidRule(f"{CURRENCY_PREFIX}...: only a rule on amounts has thresholds by currency")
    if rule.metric == "distinct_merchants" and rule.threshold >= MERCHANTS_MAX:
        raise InvalidRule(f"threshold: of distinct merchants it must be below {MERCHANTS_MAX}")
    code = RESPONSE_CODES[rule.metric] if rule.outcome == "decline" else ""
    if code_given not in ("", code):
        raise InvalidRule(f"response_code: must be {code!r} or left out")
    return msgspec.structs.replace(rule, response_code=code)


class RuleInForce(Message, frozen=True, kw_only=True, omit_defaults=True, tag="rule_in_force/1"):
    """A partition of risk has put a version of a rule in force. Travels on risk.rules."""

    rule: Rule
    at: int


class Velocity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is remembered of a card: a sparse ring of buckets for each metric and window."""

    until: int = 0
    """Partition time from which nothing in here counts any more, ms."""
    currency: str = ""
    """The last one a request named: that of requests that name none, and of increments."""
    series: dict[str, tuple[int, ...]] = {}
    """Metric and window -> bucket, value, bucket, value ... with rising bucket numbers, and none
    without a value. Distinct merchants: the last bucket and a digest of each."""


class _Ring(NamedTuple):
    """One ring and the rules that look at it, for requests in one currency."""

    name: str
    metric: str
    width_ms: int
    buckets: int
    lowest: int
    """No rule fires up to this value."""
    checks: tuple[tuple[int, Rule], ...]
    """(threshold, rule)"""


class _Plan(NamedTuple):
    rings: tuple[_Ring, ...]
    names: frozenset[str]
    retention_ms: int


def _series(metric: str, window_s: int, exponent: int) -> str:
    """Amounts of different decimals are not added up; a card's own currency has one number of them."""
    return f"amount/{window_s}/{exponent}" if metric == "amount" else f"{metric}/{window_s}"


def _ring(name: str, rules: Sequence[Rule], currency: str, exponent: int) -> _Ring:
    """`rules` share a metric and a window."""
    one = rules[0]
    checks = tuple((rule.limit(currency, exponent), rule) for rule in rules)
    lowest = min(threshold for threshold, _ in checks)
    return _Ring(name, one.metric, one.width_ms, one.window_s * 1_000 // one.width_ms, lowest, checks)


class RuleSet(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The rules in force. `number` counts their changes on this partition."""

    number: int
    rules: tuple[Rule, ...]

    def put(self, rule: Rule) -> RuleSet:
        """With `rule` in force: a new one, or a newer version of one that is there. The same version
        again, unchanged, changes nothing. Raises `RuleConflict`."""
        others: list[Rule] = []
        for former in self.rules:
            if former.id != rule.id:
                others.append(former)
            elif former == rule:
                return self
            elif former.version >= rule.version:
                raise RuleConflict(f"version: {former.version} is in force, the next must be higher")
        if len(others) >= RULES_MAX:
            raise RuleConflict(f"rule: there are {RULES_MAX} rules, the most there can be")
        return RuleSet(self.number + 1, (*others, rule))

    @cached_property
    def active(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if not rule.retired)

    @cached_property
    def clean(self) -> Verdict:
        """Of a request on which no rule fires."""
        return Verdict(evaluated=tuple(rule.name for rule in self.active))

    @cached_property
    def retention_ms(self) -> int:
        """The longest window."""
        return max((rule.window_s * 1_000 for rule in self.active), default=0)

    @cached_property
    def series(self) -> frozenset[str]:
        """Every ring that these rules may look at."""
        return frozenset(
            _series(rule.metric, rule.window_s, exponent)
            for rule in self.active
            for exponent in (*EXPONENTS.values(), DEFAULT_EXPONENT)
        )

    @cached_property
    def _plans(self) -> dict[tuple[str, int], _Plan]:
        return {}

    def plan(self, currency: str, exponent: int) -> _Plan:
        """What to look at for a request in `currency`; worked out once for each."""
        plan = self._plans.get((currency, exponent))
        if plan is None:
            rings: dict[str, list[Rule]] = {}
            for rule in self.active:
                rings.setdefault(_series(rule.metric, rule.window_s, exponent), []).append(rule)
            plan = self._plans[currency, exponent] = _Plan(
                tuple(_ring(name, looking, currency, exponent) for name, looking in rings.items()),
                frozenset(rings),
                self.retention_ms,
            )
        return plan


DEFAULT_RULE_SET: Final = RuleSet(0, DEFAULT_RULES)


def assess(
    velocity: Velocity,
    rules: RuleSet,
    *,
    at: int,
    now: int,
    amount: int,
    exponent: int,
    currency: str = "",
    assumed: str = "",
    merchant_id: str = "",
) -> tuple[Velocity, Verdict]:
    """Count a request and decide on it, in one step: what it adds is in what it is judged by.

    `at` is the request's own time and `now` the partition's (ms). `amount` is in minor units with
    `exponent` decimals. `currency` is "" when the request names none: the card's last one decides the
    thresholds then (of a card's first requests, the one that the gateway `assumed`), if its decimals agree.
    """
    known = currency or velocity.currency or assumed
    rings, names, retention_ms = rules.plan(known if EXPONENTS.get(known) == exponent else "", exponent)
    if at < now - LATENESS_MS:
        at = now - LATENESS_MS
    former = velocity.series
    series: dict[str, tuple[int, ...]] = {}
    hits: list[tuple[RuleHit, int]] | None = None
    for name, metric, width_ms, buckets, lowest, checks in rings:
        ring = former.get(name)
        if ring:
            oldest = now // width_ms - buckets
            if ring[0] <= oldest:
                ring = _recent(ring, oldest)
        if metric == "distinct_merchants":
            if merchant_id:
                ring = _met(ring or (), at // width_ms, _digest(merchant_id))
            value = len(ring) // 2 if ring else 0
        else:
            value = 1 if metric == "count" else amount if metric == "amount" else 0
            if ring:
                if value:
                    ring = _added(ring, at // width_ms, value)
                value = sum(ring[1::2])
            elif value:
                ring = (at // width_ms, value)
        if ring:
            series[name] = ring
        if value > lowest:
            fired = [(_hit(rule, value, limit), rule.score) for limit, rule in checks if value > limit]
            hits = fired if hits is None else hits + fired
    if not names.issuperset(former):
        _keep_others(former, series, names, rules)
    until = at + retention_ms
    counted = Velocity(until if until > velocity.until else velocity.until, known, series)
    return counted, _verdict(rules, hits) if hits else rules.clean


def count_decline(
    velocity: Velocity, rules: RuleSet, *, at: int, now: int
) -> tuple[Velocity, tuple[RuleHit, ...], int]:
    """Count an outcome that was a decline. Returned with it: the hits of the rules on declines and
    their score. The request is decided already, so they are for the alerts only."""
    at = max(at, now - LATENESS_MS)
    series: dict[str, tuple[int, ...]] = {}
    hits: list[tuple[RuleHit, int]] = []
    for name, metric, width_ms, buckets, _, checks in rules.plan("", DEFAULT_EXPONENT).rings:
        if metric == "declines":
            ring = velocity.series.get(name, ())
            if ring and ring[0] <= now // width_ms - buckets:
                ring = _recent(ring, now // width_ms - buckets)
            series[name] = ring = _added(ring, at // width_ms, 1)
            value = sum(ring[1::2])
            hits += [(_hit(rule, value, limit), rule.score) for limit, rule in checks if value > limit]
    if not series:
        return velocity, (), 0
    _keep_others(velocity.series, series, frozenset(series), rules)
    until = max(velocity.until, at + rules.retention_ms)
    counted = Velocity(until, velocity.currency, series)
    return counted, tuple(hit for hit, _ in hits), min(SCORE_MAX, sum(score for _, score in hits))


def _keep_others(
    former: dict[str, tuple[int, ...]],
    series: dict[str, tuple[int, ...]],
    names: frozenset[str],
    rules: RuleSet,
) -> None:
    """Carry over the rings that are not among `names`, as long as a rule looks at them."""
    for name, ring in former.items():
        if name not in names and name in rules.series:
            series[name] = ring


def _recent(ring: tuple[int, ...], oldest: int) -> tuple[int, ...]:
    """Without the buckets up to `oldest`, which have left the window; the first one has."""
    if ring[-2] <= oldest:
        return ()
    cut = 2
    while ring[cut] <= oldest:
        cut += 2
    return ring[cut:]


def _added(ring: tuple[int, ...], bucket: int, value: int) -> tuple[int, ...]:
    if not ring or bucket > ring[-2]:
        return (*ring, bucket, value)
    place = len(ring) - 2
    while place >= 0 and ring[place] > bucket:
        place -= 2
    if place >= 0 and ring[place] == bucket:
        return (*ring[: place + 1], min(ring[place + 1] + value, VALUE_MAX), *ring[place + 2 :])
    return (*ring[: place + 2], bucket, value, *ring[place + 2 :])


def _met(ring: tuple[int, ...], bucket: int, merchant: int) -> tuple[int, ...]:
    """With `merchant` met in `bucket`: a merchant is there once, with the last bucket it was met in."""
    merchants = ring[1::2]
    if merchant in merchants:
        place = 2 * merchants.index(merchant)
        if ring[place] >= bucket:
            return ring
        ring = ring[:place] + ring[place + 2 :]
    place = len(ring)
    while place > 0 and ring[place - 2] > bucket:
        place -= 2
    ring = (*ring[:place], bucket, merchant, *ring[place:])
    return ring[-2 * MERCHANTS_MAX :]


@lru_cache(maxsize=65_536)
def _digest(merchant_id: str) -> int:
    return int.from_bytes(blake2b(merchant_id.encode(), digest_size=8).digest(), "big")


def _hit(rule: Rule, value: int, threshold: int) -> RuleHit:
    return RuleHit(
        rule=rule.id,
        version=rule.version,
        outcome=rule.outcome,
        metric=rule.metric,
        value=value,
        threshold=threshold,
        window_s=rule.window_s,
        response_code=rule.response_code,
    )


def _verdict(rules: RuleSet, hits: Sequence[tuple[RuleHit, int]]) -> Verdict:
    codes = {hit.response_code for hit, _ in hits}
    return Verdict(
        score=min(SCORE_MAX, sum(score for _, score in hits)),
        response_code=next((code for code in PRECEDENCE if code in codes), ""),
        hits=tuple(hit for hit, _ in hits),
        evaluated=rules.clean.evaluated,
    )
