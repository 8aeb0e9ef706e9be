"""The risk service: what it counts, what it answers, what it remembers and forgets."""

from __future__ import annotations

import msgspec
import pytest
from a_risk_service import (
    DAY,
    HOUR,
    NOON,
    SECOND,
    RiskService,
    an_authorize,
    an_increment,
    an_outcome,
    hits_of,
)
from msgspec.structs import replace

from agents.risk import assess
from audit.velocity import Recount
from mini_visa import topics
from mini_visa.domain.commands import PutRule, Tick
from mini_visa.domain.payment import Merchant, RuleHit, Verdict
from mini_visa.streams.testing import Driver
from tables.rules import RULES
from tables.velocity import FORGOTTEN, REQUESTS, VELOCITY

DEFAULTS = ("velocity-count-60s/1", "velocity-amount-60s/1", "declines-10m/1")


def a_busy_card(requests: int, *, every_ms: int = 1_000) -> RiskService:
    """A service that has seen `requests` requests on one card, from NOON on."""
    service = RiskService()
    for n in range(requests):
        service.ask(an_authorize(f"r{n}"), at=NOON + n * every_ms)
    return service


def put(metric: str, threshold: int, *, rule: str = "mine", version: int = 1, **body: str | int | bool):
    return PutRule(
        rule=rule,
        version=version,
        body={"metric": metric, "window_s": 60, "threshold": threshold, "outcome": "decline"} | body,
    )


def test_a_request_is_passed_on_as_it_came_with_a_verdict_that_lists_what_was_evaluated():
    service = RiskService()
    request = an_authorize("r1", metadata={"order": "7"}, attempt="a1")
    service.ask(request)
    (passed_on,) = service.sent(topics.ACCOUNT_COMMANDS)
    assert passed_on.verdict == Verdict(evaluated=DEFAULTS)
    assert passed_on.metadata == {"order": "7"} and passed_on.attempt == "a1"
    assert service.outputs[0].key == b"acc-1" and service.outputs[0].timestamp == NOON


def test_the_eleventh_request_in_a_minute_is_declined_with_65_and_explains_itself():
    service = a_busy_card(10)
    assert all(command.verdict.response_code == "" for command in service.sent(topics.ACCOUNT_COMMANDS))
    verdict = service.ask(an_authorize("r10"), at=NOON + 10 * SECOND)
    assert verdict == Verdict(
        score=60,
        response_code="65",
        hits=(
            RuleHit(
                rule="velocity-count-60s",
                version=1,
                outcome="decline",
                metric="count",
                value=11,
                threshold=10,
                window_s=60,
                response_code="65",
            ),
        ),
        evaluated=DEFAULTS,
    )


def test_a_hit_is_an_alert_too_whose_id_is_made_from_position_and_rule():
    service = a_busy_card(11)
    (alert,) = service.alerts()
    assert alert.alert_id == "alert-0-10-velocity-count-60s"
    assert (alert.account, alert.request_id, alert.at) == ("acc-1", "r10", NOON + 10 * SECOND)
    assert (alert.amount, alert.currency, alert.merchant_id, alert.score) == (10_00, "USD", "m1", 60)
    assert alert.hit.value == 11


def test_a_request_leaves_the_window_when_its_second_is_sixty_seconds_ago():
    service = a_busy_card(10, every_ms=0)
    assert hits_of(service.ask(an_authorize("still-11"), at=NOON + 59_999))
    assert not hits_of(service.ask(an_authorize("now-2"), at=NOON + 60_000))


def test_other_cards_are_counted_apart():
    service = a_busy_card(11)
    assert not hits_of(service.ask(an_authorize("x", account="acc-2"), at=NOON + 11 * SECOND))


def test_the_sum_of_a_minute_above_5000_is_declined_with_61():
    service = RiskService()
    assert not hits_of(service.ask(an_authorize("r1", 5_000_00)))
    verdict = service.ask(an_authorize("r2", 1), at=NOON + SECOND)
    (hit,) = hits_of(verdict)
    assert (hit.metric, hit.value, hit.threshold, verdict.response_code) == ("amount", 500_001, 500_000, "61")


@pytest.mark.parametrize(
    ("currency", "within", "above"),
    [("JPY", 750_000, 750_001), ("KWD", 1_500_000, 1_500_001), ("EUR", 5_000_00, 5_000_01)],
)
def test_the_threshold_on_amounts_is_the_currencys_own(currency, within, above):
    assert not hits_of(RiskService().ask(an_authorize("r", within, currency=currency)))
    assert hits_of(RiskService().ask(an_authorize("r", above, currency=currency)))


def test_amounts_with_other_decimals_are_not_added_up_and_not_forgotten_either():
    service = RiskService()
    service.ask(an_authorize("usd", 4_900_00))
    assert not hits_of(service.ask(an_authorize("yen", 740_000, currency="JPY"), at=NOON + SECOND))
    assert hits_of(service.ask(an_authorize("usd2", 200_00), at=NOON + 2 * SECOND))


def test_an_increment_counts_by_the_cards_last_currency():
    service = RiskService()
    service.ask(an_authorize("r1", 700_000, currency="JPY"))
    assert not hits_of(service.ask(an_increment("r2", 50_000, exponent=0), at=NOON + SECOND))
    (hit,) = hits_of(service.ask(an_increment("r3", 1, exponent=0), at=NOON + 2 * SECOND))
    assert (hit.value, hit.threshold) == (750_001, 750_000)
    assert service.alerts()[0].currency == "JPY"


def test_increments_of_a_client_that_never_had_the_card_do_not_use_up_its_limits():
    """Its key is for its own payments only: the one that it names may be of others."""
    service = RiskService()
    for number in range(30):
        assert not hits_of(service.ask(an_increment(f"foreign-{number}", client="thief", own=True)))
    assert service.rows(REQUESTS) == {} and service.rows(VELOCITY) == {}
    for number in range(9):
        service.ask(an_authorize(f"r{number}", client="shop", own=True))
    assert not hits_of(service.ask(an_increment("r9", client="shop", own=True)))
    assert hits_of(service.ask(an_increment("r10", client="shop", own=True))), "the eleventh of this client"
    assert hits_of(service.ask(an_increment("foreign", client="thief", own=True))), (
        "it is judged all the same"
    )


def test_a_client_that_had_the_card_is_known_for_as_long_as_a_request_is():
    service = RiskService()
    service.ask(an_authorize("r0", client="shop", own=True), at=NOON)
    for number in range(10):
        service.ask(an_increment(f"i{number}", client="shop", own=True), at=NOON + DAY)
    assert hits_of(service.ask(an_authorize("x"), at=NOON + DAY)), "they were counted"
    service.send(Tick(), at=NOON + 5 * DAY)
    assert service.rows(REQUESTS) == {}, "and who had it is forgotten like a request"


def test_the_auditor_counts_increments_in_the_same_way():
    service, recount = RiskService(), Recount()
    messages = [
        *(an_increment(f"t{number}", client="thief", own=True) for number in range(12)),
        *(an_authorize(f"r{number}", client="shop", own=True) for number in range(7)),
        *(an_increment(f"i{number}", client="shop", own=True) for number in range(5)),
        *(an_increment(f"o{number}", client="all") for number in range(2)),
        an_increment("t", client="thief", own=True),
    ]  # fmt: skip
    for at in (NOON, NOON + DAY, NOON + 3 * DAY):
        for number, message in enumerate(messages):
            verdict = service.ask(replace(message, request_id=f"{at}-{number}"), at=at)
            recounted = recount.feed(at, msgspec.json.decode(service.log[-1].value))
            assert recounted is not None and verdict is not None
            assert recounted.code == verdict.response_code, (at, number)
        messages = messages[19:]


def test_a_first_request_that_names_no_currency_is_judged_by_the_one_the_gateway_assumed():
    service = RiskService()
    yen = an_authorize("r1", 12_345, currency="JPY", currency_given=False)
    assert not hits_of(service.ask(yen))
    assert hits_of(service.ask(an_authorize("r2", 740_000, currency="JPY", currency_given=False)))


def test_a_request_that_names_no_currency_is_judged_by_the_cards_last_one():
    service = RiskService()
    service.ask(an_authorize("r1", 0, currency="HUF"))
    forints = an_authorize("r2", 1_800_000_00, currency="USD", currency_given=False)
    assert not hits_of(service.ask(forints, at=NOON + SECOND))
    assert hits_of(RiskService().ask(forints))


def test_count_comes_before_amount_when_both_decline():
    service = a_busy_card(10)
    verdict = service.ask(an_authorize("r10", 6_000_00), at=NOON + 10 * SECOND)
    assert [hit.response_code for hit in hits_of(verdict)] == ["65", "61"]
    assert (verdict.response_code, verdict.score) == ("65", 100)
    assert len(service.alerts()) == 2


def test_the_fifth_decline_in_ten_minutes_alerts_at_once_and_on_later_requests_and_declines_nothing():
    service = RiskService()
    for n in range(5):
        assert not service.alerts()
        service.ask(an_outcome("51"), at=NOON + n * 120 * SECOND)
    (alert,) = service.alerts()
    assert (alert.hit.metric, alert.hit.value, alert.hit.outcome, alert.score) == ("declines", 5, "alert", 30)
    verdict = service.ask(an_authorize("next"), at=NOON + 590 * SECOND)
    assert verdict.response_code == "" and [hit.value for hit in verdict.hits] == [5]
    verdict = service.ask(an_authorize("later"), at=NOON + 600 * SECOND)
    assert not hits_of(verdict)


@pytest.mark.parametrize("code", ["00", "10", "68", "91", "94", "96"])
def test_outcomes_that_say_nothing_about_the_card_are_not_declines(code):
    service = RiskService()
    service.ask(an_outcome(code))
    assert service.rows(VELOCITY) == {} and not service.outputs


def test_distinct_merchants_are_counted_once_each():
    service = RiskService()
    service.ask(put("distinct_merchants", 2, outcome="review", score=15))
    for n, merchant in enumerate(["a", "b", "a", "b", "a"]):
        verdict = service.ask(an_authorize(f"r{n}", merchant=Merchant(id=merchant)), at=NOON + n)
        assert not hits_of(verdict)
    verdict = service.ask(an_authorize("r5", merchant=Merchant(id="c")), at=NOON + 40 * SECOND)
    (hit,) = hits_of(verdict)
    assert (hit.value, hit.outcome, verdict.response_code, verdict.score) == (3, "review", "", 15)
    assert not hits_of(service.ask(an_authorize("r6", merchant=Merchant(id="d")), at=NOON + 61 * SECOND))


def test_a_late_request_counts_in_its_own_second():
    service = a_busy_card(9, every_ms=0)
    service.ask(an_authorize("on-time"), at=NOON + 10 * SECOND)
    service.ask(an_authorize("late"), at=NOON + 2 * SECOND)
    assert service.row(VELOCITY, "acc-1").series["count/60"] == (
        NOON // 1000, 9, NOON // 1000 + 2, 1, NOON // 1000 + 10, 1,
    )  # fmt: skip
    assert hits_of(service.sent(topics.ACCOUNT_COMMANDS)[-1].verdict)[0].value == 11


def test_a_request_that_is_later_than_ten_seconds_counts_as_ten_seconds_late():
    service = RiskService()
    service.ask(an_authorize("on-time"), at=NOON + HOUR)
    service.ask(an_authorize("very-late"), at=NOON)
    then = (NOON + HOUR) // 1000
    assert service.row(VELOCITY, "acc-1").series["count/60"] == (then - 10, 1, then, 1)


def test_a_request_id_seen_before_gets_the_same_verdict_and_is_not_counted_again():
    service = a_busy_card(11)
    first = service.sent(topics.ACCOUNT_COMMANDS)[10].verdict
    assert service.ask(an_authorize("r10", attempt="second"), at=NOON + 2 * HOUR) == first
    assert service.sent(topics.ACCOUNT_COMMANDS)[-1].attempt == "second"
    assert len(service.alerts()) == 1
    assert service.ask(an_authorize("r3"), at=NOON + 2 * HOUR) == Verdict(evaluated=DEFAULTS)
    assert hits_of(service.ask(an_authorize("other"), at=NOON + 2 * HOUR)) == []


def test_another_request_with_an_id_seen_before_is_judged_and_counted_anew_and_the_auditor_says_so_too():
    service, recount = RiskService(), Recount()
    asked = [
        *((an_authorize(f"r{n}", amount=1, fingerprint="small"), NOON + n * 60 * SECOND) for n in range(40)),
        *((an_authorize(f"r{n}", amount=40_000, fingerprint="large"), NOON + HOUR + n) for n in range(40)),
    ]
    codes = []
    for message, at in asked:
        codes.append(service.ask(message, at=at).response_code)
        assert recount.feed(at, msgspec.json.decode(service.log[-1].value)).code == codes[-1]
    assert codes[:50] == [""] * 50 and codes[50:] == ["65"] * 30
    first = service.ask(an_authorize("r39", amount=1, fingerprint="small"), at=NOON + HOUR + SECOND)
    assert first.response_code == "", "its own verdict stands, and it is not counted again"


def test_a_retry_gets_the_verdict_of_the_rules_it_was_first_judged_by():
    service = RiskService()
    first = service.ask(an_authorize("r1"))
    service.ask(put("count", 0))
    assert service.ask(an_authorize("r1"), at=NOON + SECOND) == first
    assert service.ask(an_authorize("r2"), at=NOON + SECOND).response_code == "65"


def test_request_ids_of_different_clients_and_cards_are_different_requests():
    service = RiskService()
    service.ask(an_authorize("r1"))
    service.ask(an_authorize("r1", client="shop"))
    assert service.row(VELOCITY, "acc-1").series["count/60"][1] == 2


@pytest.mark.parametrize("start", [NOON, NOON + 12 * HOUR - 1, NOON + 12 * HOUR])
def test_a_request_id_is_new_again_after_its_window_whether_the_tick_came_or_not(start):
    service = RiskService()
    service.ask(put("count", 0, outcome="review", window_s=60))
    times_counted = [
        hits_of(service.ask(an_authorize("r1"), at=start + later))[0].value
        for later in (0, DAY - 1, DAY, 2 * DAY - 1)
    ]
    assert times_counted == [1, 1, 1, 1]
    assert [assessed.at for assessed in service.rows(REQUESTS).values()] == [start, start + DAY]


def test_ticks_forget_old_requests_and_idle_cards_and_nothing_else():
    service = RiskService()
    midnight = NOON + 12 * HOUR
    service.ask(an_authorize("r1"), at=midnight - SECOND)
    service.ask(an_authorize("r2", account="acc-2"), at=midnight)
    service.ask(Tick(), at=midnight + DAY - 1)
    assert len(service.rows(REQUESTS)) == 2
    service.ask(Tick(), at=midnight + DAY)
    assert [key.partition("/")[2] for key in service.rows(REQUESTS)] == ["acc-2/local/r2"]
    assert list(service.rows(VELOCITY)) == ["acc-2"]
    service.ask(Tick(), at=midnight + 2 * DAY)
    assert service.rows(REQUESTS) == service.rows(VELOCITY) == {}
    service.ask(an_authorize("r3"), at=midnight + 2 * DAY)
    service.ask(Tick(), at=midnight + 5 * DAY)
    assert service.rows(REQUESTS) == service.rows(VELOCITY) == {}
    assert len(service.rows(FORGOTTEN)) == 1


def test_a_card_that_is_still_in_use_keeps_its_counts_when_an_old_request_is_forgotten():
    service = a_busy_card(1)
    for n in range(10):
        service.ask(an_authorize(f"new{n}"), at=NOON + 2 * DAY)
    service.ask(Tick(), at=NOON + 2 * DAY + SECOND)
    assert len(service.rows(REQUESTS)) == 10
    assert hits_of(service.ask(an_authorize("eleventh"), at=NOON + 2 * DAY + 2 * SECOND))


def test_forgetting_is_bounded_per_tick_and_goes_on_with_the_next(monkeypatch):
    monkeypatch.setattr("tables.velocity.FORGOTTEN_PER_TICK_MAX", 3)
    service = a_busy_card(8)
    left = []
    for _ in range(4):
        service.ask(Tick(), at=NOON + 2 * DAY)
        left.append(len(service.rows(REQUESTS)))
    assert left == [5, 2, 0, 0]


def test_a_new_rule_version_decides_from_the_next_request_on():
    service = a_busy_card(3)
    service.ask(put("count", 2, rule="velocity-count-60s", version=2), at=NOON + 3 * SECOND)
    verdict = service.ask(an_authorize("r9"), at=NOON + 4 * SECOND)
    (hit,) = hits_of(verdict)
    assert (hit.version, hit.value, hit.threshold) == (2, 4, 2)
    assert "velocity-count-60s/2" in verdict.evaluated and "velocity-count-60s/1" not in verdict.evaluated


def test_two_rules_on_one_metric_and_window_share_their_counts():
    service = RiskService()
    service.ask(put("count", 1, outcome="review", score=5))
    service.ask(an_authorize("r1"))
    verdict = service.ask(an_authorize("r2"))
    assert [(hit.rule, hit.value) for hit in verdict.hits] == [("mine", 2)]
    assert set(service.row(VELOCITY, "acc-1").series) == {"count/60", "amount/60/2"}


def test_a_window_that_no_rule_looks_at_any_more_is_dropped():
    service = RiskService()
    service.ask(put("count", 100, window_s=300))
    service.ask(an_authorize("r1"))
    assert "count/300" in service.row(VELOCITY, "acc-1").series
    service.ask(put("count", 100, version=2, window_s=300, retired=True))
    service.ask(an_authorize("r2"))
    assert "count/300" not in service.row(VELOCITY, "acc-1").series


def test_a_new_version_goes_to_every_partition_that_the_cluster_has():
    """Whatever the setting says: it may be of another cluster."""
    first = Driver(assess, partition=0, partitions=6)
    first.send(put("count", 5), key=b"mine")
    sent = [output.partition for output in first.outputs if output.topic == topics.CARD_REQUESTS.name]
    assert sent == [1, 2, 3, 4, 5]
    other = Driver(assess, partition=1, partitions=6)
    other.send(put("count", 5), key=b"mine")
    assert [output.topic for output in other.outputs] == [topics.RISK_RULES.name]


def test_a_nonsense_rule_is_a_dead_letter_and_the_rules_stand():
    service = RiskService()
    service.ask(put("mood", 1))
    (letter,) = service.dead_letters()
    assert b"metric" in dict(letter.headers)["reason"]
    assert service.rows(RULES) == {}
    assert not hits_of(service.ask(an_authorize("r1")))


@pytest.mark.parametrize(
    "request_",
    [
        an_authorize("r1", currency="XYZ"),
        an_authorize("r1", amount=-1),
        an_authorize("r1", amount=10**12),
        an_increment("r1", exponent=7),
        an_increment("r1", exponent=-1),
    ],
)
def test_a_request_that_no_gateway_would_send_is_a_dead_letter(request_):
    service = RiskService()
    assert service.ask(request_) is None
    assert len(service.dead_letters()) == 1 and len(service.outputs) == 1


def test_a_record_whose_key_is_not_its_account_is_a_dead_letter():
    service = RiskService()
    service.send(an_authorize("r1"), key=b"acc-2", at=NOON)
    service.send(an_outcome("51"), key=b"acc-2", at=NOON)
    assert len(service.dead_letters()) == 2 and service.rows(VELOCITY) == {}


def test_garbage_is_a_dead_letter_and_the_next_request_is_judged():
    service = RiskService()
    service.send_raw(b"\xff not json", key=b"acc-1", at=NOON)
    service.send_raw(None, key=b"acc-1", at=NOON)
    assert len(service.dead_letters()) == 2
    assert service.ask(an_authorize("r1")) == Verdict(evaluated=DEFAULTS)


def test_a_verdict_that_comes_with_a_request_is_not_believed():
    service = a_busy_card(10)
    assert service.ask(an_authorize("r10", verdict=Verdict()), at=NOON + 10 * SECOND).response_code == "65"
