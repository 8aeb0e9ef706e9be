"""Rules as data: what a body may say, which version is in force, what a threshold means in a currency."""

from __future__ import annotations

import pytest

from mini_visa.domain.commands import PutRule
from mini_visa.domain.risk import (
    DEFAULT_RULE_SET,
    DEFAULT_RULES,
    RULES_MAX,
    InvalidRule,
    Rule,
    RuleConflict,
    RuleSet,
    rule_of,
)


def a_rule(version: int = 1, rule: str = "night-count", **body: str | int | bool) -> PutRule:
    fields: dict[str, str | int | bool] = {
        "metric": "count",
        "window_s": 60,
        "threshold": 3,
        "outcome": "decline",
    }
    return PutRule(rule=rule, version=version, body=fields | body)


def test_a_body_becomes_a_rule_with_the_response_code_of_its_metric():
    assert rule_of(a_rule(score=40)) == Rule(
        id="night-count",
        version=1,
        metric="count",
        window_s=60,
        threshold=3,
        outcome="decline",
        response_code="65",
        score=40,
    )
    assert rule_of(a_rule(metric="amount")).response_code == "61"
    assert rule_of(a_rule(metric="distinct_merchants")).response_code == "59"
    assert rule_of(a_rule(metric="declines")).response_code == "59"
    assert rule_of(a_rule(outcome="review")).response_code == ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"metric": "mood"}, "metric"),
        ({"outcome": "explode"}, "outcome"),
        ({"threshold": -1}, "threshold"),
        ({"threshold": "many"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": 10**15 + 1}, "threshold"),
        ({"window_s": 19}, "window_s"),
        ({"window_s": 86_401}, "window_s"),
        ({"window_s": 61}, "window_s"),
        ({"score": 101}, "score"),
        ({"key": "device"}, "key"),
        ({"colour": "red"}, "colour"),
        ({"id": "other"}, "id"),
        ({"thresholds": 3}, "thresholds"),
        ({"response_code": "61"}, "response_code"),
        ({"outcome": "alert", "response_code": "65"}, "response_code"),
        ({"threshold.JPY": 5}, "threshold."),
        ({"metric": "amount", "threshold.XYZ": 5}, "threshold."),
        ({"metric": "amount", "threshold.JPY": -5}, "threshold.JPY"),
        ({"metric": "amount", "threshold.JPY": True}, "threshold.JPY"),
        ({"metric": "distinct_merchants", "threshold": 256}, "threshold"),
    ],
)
def test_a_nonsense_body_is_refused_with_its_field(body, field):
    with pytest.raises(InvalidRule) as refusal:
        rule_of(a_rule(**body))
    assert field in str(refusal.value)


@pytest.mark.parametrize("missing", ["metric", "window_s", "threshold", "outcome"])
def test_a_body_without_a_needed_field_is_refused(missing):
    put = a_rule()
    del put.body[missing]
    with pytest.raises(InvalidRule, match=missing):
        rule_of(put)


@pytest.mark.parametrize("rule", ["", "Loud", "two words", "x" * 65, "line\n"])
def test_a_rule_needs_a_plain_name(rule):
    with pytest.raises(InvalidRule, match="id"):
        rule_of(a_rule(rule=rule))


def test_a_higher_version_replaces_the_one_in_force():
    first = DEFAULT_RULE_SET.put(rule_of(a_rule(1)))
    second = first.put(rule_of(a_rule(2, threshold=5)))
    assert [rule.name for rule in second.active] == [
        *(rule.name for rule in DEFAULT_RULES),
        "night-count/2",
    ]
    assert second.number == 2


def test_the_same_version_again_changes_nothing_and_another_one_of_that_number_is_refused():
    rules = DEFAULT_RULE_SET.put(rule_of(a_rule(2)))
    assert rules.put(rule_of(a_rule(2))) is rules
    with pytest.raises(RuleConflict, match="version"):
        rules.put(rule_of(a_rule(2, threshold=9)))
    with pytest.raises(RuleConflict, match="version"):
        rules.put(rule_of(a_rule(1)))


def test_a_retired_rule_is_not_evaluated_but_its_versions_go_on():
    rules = DEFAULT_RULE_SET.put(rule_of(a_rule(1))).put(rule_of(a_rule(2, retired=True)))
    assert "night-count/2" not in rules.clean.evaluated
    with pytest.raises(RuleConflict):
        rules.put(rule_of(a_rule(1)))
    assert "night-count/3" in rules.put(rule_of(a_rule(3))).clean.evaluated


def test_there_is_a_most_of_rules():
    rules = RuleSet(0, ())
    for n in range(RULES_MAX):
        rules = rules.put(rule_of(a_rule(rule=f"rule-{n}")))
    with pytest.raises(RuleConflict, match=str(RULES_MAX)):
        rules.put(rule_of(a_rule(rule="one-more")))
    rules.put(rule_of(a_rule(2, rule="rule-0")))


def test_a_threshold_on_amounts_means_the_same_number_of_whole_units_in_every_currency():
    rule = rule_of(a_rule(metric="amount", threshold=100_050))
    assert rule.limit("USD", 2) == 100_050
    assert rule.limit("KWD", 3) == 1_000_500
    assert rule.limit("JPY", 0) == 1_000
    assert rule.limit("", 2) == 100_050


def test_a_currency_can_have_a_threshold_of_its_own():
    rule = rule_of(a_rule(metric="amount", threshold=100_000, **{"threshold.JPY": 150_000}))
    assert rule.limit("JPY", 0) == 150_000
    assert rule.limit("KRW", 0) == 1_000


def test_the_default_rules_can_be_written_as_bodies():
    for rule in DEFAULT_RULES:
        body = {
            "metric": rule.metric,
            "window_s": rule.window_s,
            "threshold": rule.threshold,
            "outcome": rule.outcome,
            "score": rule.score,
        } | {f"threshold.{currency}": limit for currency, limit in rule.thresholds.items()}
        assert rule_of(PutRule(rule=rule.id, version=rule.version, body=body)) == rule
