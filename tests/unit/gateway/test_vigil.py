"""When is the gateway told that an authorization would find nobody at work?"""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.structs import TopicPartition

from mini_visa import topics
from mini_visa.gateway.vigil import GROUPS, Vigil
from mini_visa.settings import Settings

RISK, AUTHORIZATION = "test.risk.assess", "test.authorization.decide"
SOURCE = {RISK: topics.CARD_REQUESTS.name, AUTHORIZATION: topics.ACCOUNT_COMMANDS.name}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vigil(clock: Clock) -> Vigil:
    made = Vigil(Settings(environment="test", gateway_deadline_s=5.0, tick_interval_s=1.0), clock)
    made.watch(dict.fromkeys(GROUPS.values(), 2))
    return made


def see(vigil: Vigil, group: str, *positions: int) -> None:
    """The group's positions by partition; -1: it has none."""
    topic = SOURCE[group]
    vigil.saw(group, {TopicPartition(topic, number): at for number, at in enumerate(positions) if at >= 0})


def see_all_move(vigil: Vigil, at: int = 1) -> None:
    for group in SOURCE:
        see(vigil, group, at, at)
        see(vigil, group, at + 1, at + 1)


def test_positions_that_were_there_before_prove_nothing(vigil):
    see(vigil, RISK, 10, 20)
    see(vigil, AUTHORIZATION, 30, 40)
    assert vigil.unable() == "risk on card.requests/0 was not seen to work yet."


def test_a_gateway_that_starts_waits_for_every_partition_of_both(vigil):
    see(vigil, RISK, 10, 20)
    see(vigil, AUTHORIZATION, 30, 40)
    see(vigil, RISK, 11, 21)
    see(vigil, AUTHORIZATION, 31, 40)
    assert vigil.unable() == "authorization on account.commands/1 was not seen to work yet."
    see(vigil, AUTHORIZATION, 31, 41)
    assert vigil.unable() == ""
    assert vigil.silent() == []


def test_a_gateway_that_starts_does_not_wait_for_ever_for_one_partition(vigil, clock):
    for at in range(20):  # 10 s for a worker's session to end, and 7 s of silence, from the first move on
        see(vigil, RISK, at, at)
        see(vigil, AUTHORIZATION, at, 40)
        assert (vigil.unable() == "") == (clock.now - 1_000.0 > 18.0)
        clock.now += 1.0
    assert vigil.silent() == ["authorization on account.commands/1 was not seen to work yet."]


def test_a_service_that_was_never_seen_to_work_is_waited_for_however_long_it_takes(vigil, clock):
    """A system that starts as a whole on a busy machine: the rest of it follows when it has begun."""
    see(vigil, RISK, 1, 1)
    see(vigil, AUTHORIZATION, -1, -1)
    clock.now += 600.0
    see(vigil, RISK, 2, 2)
    assert vigil.unable() == "authorization on account.commands/0 was not seen to work yet."
    see(vigil, AUTHORIZATION, 1, -1)
    clock.now += 5.0
    assert vigil.unable() == "authorization on account.commands/1 was not seen to work yet."
    see(vigil, RISK, 3, 3)
    see(vigil, AUTHORIZATION, 2, 1)
    assert vigil.unable() == ""


def test_the_first_commit_of_a_new_group_is_a_move(vigil):
    for group in SOURCE:
        see(vigil, group, -1, -1)
        see(vigil, group, 1, 1)
    assert vigil.unable() == ""


def test_positions_that_cannot_be_seen_for_once_are_no_move(vigil):
    for group in SOURCE:
        see(vigil, group, 1, 1)
        see(vigil, group, -1, -1)
        see(vigil, group, 1, 1)
    assert vigil.unable() == "risk on card.requests/0 was not seen to work yet."


def test_a_partition_is_silent_when_what_began_with_the_silence_has_missed_its_deadline(vigil, clock):
    see_all_move(vigil)
    clock.now += 7.0
    assert vigil.silent() == [], "5 s of deadline, and two ticks of 1 s"
    see(vigil, RISK, 3, 3)
    see(vigil, AUTHORIZATION, 3, 2)
    clock.now += 0.1
    assert vigil.silent() == ["authorization on account.commands/1 has not worked for 7 s."]
    assert (vigil.silent_of("risk.assess"), vigil.silent_of("authorization.decide")) == (0, 1)
    see(vigil, AUTHORIZATION, 3, 3)
    assert vigil.silent() == []


def test_one_silent_partition_does_not_take_the_others_cards_their_way_in(vigil, clock):
    """A worker that is rolled: its partitions stand still, all gateways see that, and go on with the rest."""
    see_all_move(vigil)
    for at in range(3, 600):
        clock.now += 1.0
        see(vigil, RISK, at, at)
        see(vigil, AUTHORIZATION, at, 2)
        assert vigil.unable() == ""


def test_a_service_that_works_on_no_partition_leaves_nothing_to_answer(vigil, clock):
    see_all_move(vigil)
    clock.now += 7.1
    see(vigil, RISK, 3, 3)
    assert vigil.unable() == "authorization on account.commands works on no partition for 7 s or more."
    see(vigil, AUTHORIZATION, 2, 3)
    assert vigil.unable() == ""


def test_nothing_seen_any_more_is_silence_too(vigil, clock):
    see_all_move(vigil)
    clock.now += 60.0
    assert vigil.unable() != ""


def test_no_more_are_named_than_a_person_reads(vigil, clock):
    vigil.watch(dict.fromkeys(GROUPS.values(), 1_000))
    clock.now += 60.0
    assert len(vigil.silent()) == 10
    assert vigil.silent_of("risk.assess") == 1_000


async def test_settings_that_cannot_be_used_for_now_do_not_end_it(caplog):
    """No password: what a certificate that is just being replaced looks like."""
    settings = Settings(environment="test", broker="kafka://127.0.0.1:1", kafka_security="SASL_PLAINTEXT")
    vigil = Vigil(settings)
    vigil.start(dict.fromkeys(GROUPS.values(), 1))
    try:
        await asyncio.sleep(0.05)
        assert vigil._task is not None and not vigil._task.done()
        assert "cannot see what the services do (BrokerError)" in caplog.text
    finally:
        await vigil.stop()
