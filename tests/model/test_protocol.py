"""The model of the protocol (protocol.py): all its states are good, and no rule is there in vain."""

from __future__ import annotations

import pytest
from protocol import Bounds, Rules, check

BOUNDS = Bounds(acquisitions=2, deaths=1)
"""`make model` looks at all of them (13 times as many)."""


def test_every_state_that_can_come_to_be_is_good() -> None:
    result = check(bounds=BOUNDS)
    assert not result.wrong, "\n".join([*result.trace, result.wrong])
    assert result.states > 50_000, "the bounds leave nothing to look at"


def test_every_state_is_good_too_when_the_group_forgets_what_it_was_told() -> None:
    result = check(bounds=Bounds(acquisitions=2, deaths=0, refusals=0, lapses=1))
    assert not result.wrong, "\n".join([*result.trace, result.wrong])
    assert result.states > 10_000, "the bounds leave nothing to look at"


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("fence", "outputs"),
        ("fence_before_read", "lost or repeated"),
        ("restore_to_the_end", "lost or repeated"),
        ("await_every_acknowledgement", "table"),
        ("one_transaction", "committed offset"),
        ("unknown_outcome_ends", "committed offset"),
        ("store_after_commit", "ahead of Kafka"),
        ("begin_at_the_changelog", "not what the changelog says"),
    ],
)
def test_a_protocol_without_one_of_its_rules_goes_wrong(rule: str, found: str) -> None:
    result = check(Rules(**{rule: False}), Bounds(lapses=int(rule == "begin_at_the_changelog")))
    assert found in result.wrong, result
    assert result.trace[-1], "and it says how"
