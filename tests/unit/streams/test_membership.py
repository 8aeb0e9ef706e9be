"""Who gets which partitions, and what a member survives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import GroupAuthorizationFailedError, GroupLoadInProgressError, KafkaError
from hypothesis import given
from hypothesis import strategies as st

from mini_visa.streams import membership
from mini_visa.streams.membership import Claim, Membership, StickyAssignor, share_out
from mini_visa.streams.poison import Fatal

NEW = Claim(-1, [])


def test_a_member_that_joins_takes_as_few_partitions_as_make_it_even() -> None:
    shares = share_out(range(4), {"a": Claim(1, [0, 1, 2, 3]), "b": NEW})
    assert shares["a"] == [0, 1] and shares["b"] == [2, 3]


def test_a_member_that_leaves_moves_only_its_own() -> None:
    before = {"a": Claim(3, [0, 4]), "b": Claim(3, [1, 5]), "c": Claim(3, [2, 3])}
    del before["c"]
    shares = share_out(range(6), before)
    assert {0, 4} <= set(shares["a"]) and {1, 5} <= set(shares["b"])


def test_of_two_that_claim_a_partition_the_later_owner_keeps_it() -> None:
    shares = share_out(range(2), {"a": Claim(2, [0, 1]), "b": Claim(5, [1])})
    assert shares == {"a": [0], "b": [1]}


def test_a_member_that_starts_gets_what_is_on_its_disk() -> None:
    shares = share_out(range(4), {"a": Claim(-1, [2, 3]), "b": Claim(-1, [0, 1])})
    assert shares == {"a": [2, 3], "b": [0, 1]}


def test_who_does_not_know_the_topic_shares_nothing_out() -> None:
    """aiokafka ends the join with it, before it tells the members; `Membership` ends the process."""
    assignor = StickyAssignor(list)
    with pytest.raises(Fatal, match="no partitions of items"):
        assignor.assign(ClusterMetadata(), {"a": assignor.metadata(["items"])})


CLAIMS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(Claim, st.integers(-1, 5), st.lists(st.integers(0, 30), unique=True)),
    min_size=1,
    max_size=6,
)


@given(st.integers(0, 25), CLAIMS)
def test_every_partition_has_one_owner_and_numbers_differ_by_one_at_most(
    count: int, claims: dict[str, Claim]
) -> None:
    shares = share_out(range(count), claims)
    assert sorted(part for share in shares.values() for part in share) == list(range(count))
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 25), st.integers(1, 6))
def test_an_even_assignment_is_left_as_it_is(count: int, members: int) -> None:
    first = share_out(range(count), {f"m{number}": NEW for number in range(members)})
    again = share_out(range(count), {name: Claim(1, share) for name, share in first.items()})
    assert again == first


class Ended(Exception):
    """Instead of the end of this process."""


class Coordinator:
    """aiokafka's, as far as its errors go: `GroupCoordinator._send_sync_group_request` wraps them so."""

    def __init__(self, *errors: KafkaError) -> None:
        self.left = list(errors)

    def check_errors(self) -> None:
        if self.left:
            raise self.left.pop(0)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (KafkaError(repr(GroupLoadInProgressError())), False),
        (KafkaError("something else"), True),
        (GroupAuthorizationFailedError("group"), True),
    ],
)
async def test_a_coordinator_that_still_loads_ends_nobody(
    error: KafkaError, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(where: str, error: BaseException) -> None:
        raise Ended(where)

    monkeypatch.setattr(membership, "poison", end)
    monkeypatch.setattr(membership, "LOOK_S", 0.001)
    member: Any = object.__new__(Membership)
    member.group, member._coordinator = "group", Coordinator(error)
    with pytest.raises(Ended if ends else TimeoutError):
        await asyncio.wait_for(member._watch_errors(), 0.1)
    assert not member._coordinator.left
