from __future__ import annotations

import pytest

from mini_visa.gateway import limits
from mini_visa.gateway.limits import BOUND_FIRST, BOUND_LEAST, InFlight, RateLimit
from mini_visa.gateway.problems import Problem
from mini_visa.gateway.recent import Recent


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(limits, "monotonic", lambda: self.now)


def admitted(limit: RateLimit, client: str, times: int) -> int:
    """How many of `times` requests are let in."""
    count = 0
    for _ in range(times):
        try:
            limit.admit(client)
        except Problem as problem:
            assert problem.status == 429 and int(problem.headers["Retry-After"]) >= 1
        else:
            count += 1
    return count


def test_a_client_may_send_a_burst_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = RateLimit(per_s=2.0, burst=5)
    assert admitted(limit, "a", 10) == 5
    clock.now += 1.5
    assert admitted(limit, "a", 10) == 3
    clock.now += 1_000
    assert admitted(limit, "a", 10) == 5


def test_one_client_does_not_use_up_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    limit = RateLimit(per_s=1.0, burst=1)
    assert [admitted(limit, client, 2) for client in "aba"] == [1, 1, 0]


def test_the_refused_are_told_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = RateLimit(per_s=0.1, burst=1)
    limit.admit("a")
    with pytest.raises(Problem) as caught:
        limit.admit("a")
    clock.now += int(caught.value.headers["Retry-After"])
    limit.admit("a")


def test_no_rate_is_no_limit() -> None:
    assert admitted(RateLimit(per_s=0.0, burst=1), "a", 1_000) == 1_000


def test_clients_that_are_long_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(limits, "CLIENTS_MAX", 3)
    limit = RateLimit(per_s=1.0, burst=1)
    assert [admitted(limit, client, 1) for client in "abcd"] == [1, 1, 1, 1]
    assert admitted(limit, "d", 1) == 0
    assert admitted(limit, "a", 1) == 1


def test_the_place_of_an_answer_never_goes_back() -> None:
    recent = Recent(accounts_max=2)
    recent.answered("tok_a", 1, 10)
    recent.answered("tok_a", 1, 9)
    assert recent.place("tok_a") == (1, 10) and recent.places() == [(1, 10)]
    for account in ("tok_b", "tok_c"):
        recent.answered(account, 0, 1)
    assert recent.place("tok_a") is None and sorted(recent.places()) == [(0, 1), (1, 10)]


TARGET_S = 0.1


def work(limit: InFlight, clock: Clock, rate: float, rounds: int, offered: int = 1_000) -> int:
    """A pipeline that answers `rate` requests a second, and `offered` at once who want to be admitted: by
    Little's law each waits as long as it takes to answer all that were. Returns how many that is at last."""
    in_flight = 0
    for _ in range(rounds):
        in_flight = 0
        while in_flight < offered:
            limit.in_flight = in_flight + 1
            try:
                limit.admit()
            except Problem as problem:
                assert problem.status == 503 and int(problem.headers["Retry-After"]) >= 1
                break
            in_flight += 1
        clock.now += 0.11
        for _ in range(8):
            limit.answered(in_flight / rate)
    return in_flight


def test_as_many_are_admitted_as_are_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = InFlight(512, TARGET_S)
    for rate in (3_000, 1_000, 1_500):
        in_flight = work(limit, clock, rate, 60)
        assert 0.85 * rate * TARGET_S <= in_flight <= 1.15 * rate * TARGET_S


def test_when_answers_stop_a_few_are_still_admitted_and_when_they_come_back_so_do_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    limit = InFlight(512, TARGET_S)
    assert work(limit, clock, 0.1, 30) == BOUND_LEAST
    assert work(limit, clock, 5_000, 25) > 200, "within three seconds"


def test_a_bound_that_is_not_reached_does_not_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calm night must not admit a thousand in the morning."""
    clock = Clock(monkeypatch)
    limit = InFlight(10_000, TARGET_S)
    work(limit, clock, 1e6, 100, offered=20)
    assert limit.bound == BOUND_FIRST
    work(limit, clock, 1e6, 100, offered=20_000)
    assert limit.bound == 10_000


def test_a_few_slow_answers_among_many_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = InFlight(512, TARGET_S)
    for _ in range(50):
        clock.now += 0.2
        for took in (9.0, 9.0, 0.01, 0.01, 0.01):
            limit.answered(took)
    assert limit.bound == BOUND_FIRST


def test_without_a_target_the_bound_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limit = InFlight(512, 0.0)
    assert work(limit, clock, 1.0, 20) == 512 == limit.bound
