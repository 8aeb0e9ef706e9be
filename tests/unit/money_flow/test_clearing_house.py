"""The clearing house and the client that asks it: over HTTP, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from mini_visa.clearing_house.app import create
from mini_visa.clearing_house.book import Book, Conduct, OtherBody, Presented
from mini_visa.clearing_house.client import ClearingHouse, Refused
from mini_visa.clearing_house.connector import outcome_command
from mini_visa.domain.clearing import CancelPresentment, Presentment, key_of
from mini_visa.domain.payment import Card, Merchant

PAYMENT = "pay_1testcard_1f"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def presented(amount: int = 10_00) -> Presented:
    return Presented(amount=amount, currency="USD", captured_at=1)


def a_presentment(n: int = 1, amount: int = 10_00, payment_id: str = PAYMENT) -> Presentment:
    return Presentment(
        key=key_of(payment_id, n),
        payment_id=payment_id,
        n=n,
        amount=amount,
        currency="USD",
        captured_at=1_767_268_800_000,
        card=Card(token="tok_1testcard", bin="411111", last4="1111"),
        merchant=Merchant(id="m1", mcc="5411"),
    )


def a_cancel(n: int = 1) -> CancelPresentment:
    return CancelPresentment(key=key_of(PAYMENT, n), payment_id=PAYMENT, n=n)


# -- the book --------------------------------------------------------------------------------------


def test_a_presentment_is_decided_once_however_often_it_comes():
    book = Book()
    book.conduct = Conduct(rejections=1.0)
    first = book.present("k", presented())
    book.conduct = Conduct(rejections=0.0)
    assert first.status == "rejected" and first.reason
    assert book.present("k", presented()) == first == book.find("k")
    assert book.times("k") == 2


def test_the_same_key_for_another_presentment_is_refused():
    book = Book()
    book.present("k", presented(1))
    with pytest.raises(OtherBody):
        book.present("k", presented(2))


def test_a_decision_takes_as_long_as_it_is_told_to_and_is_then_final():
    clock = Clock()
    book = Book(clock=clock)
    book.conduct = Conduct(delay_s=60)
    assert book.present("k", presented()).status == "pending"
    clock.now += 59
    assert book.find("k").status == "pending" and book.totals() == []
    clock.now += 1
    assert book.find("k").status == "accepted"
    assert book.cancel("k").status == "accepted"


def test_what_is_called_back_in_time_is_cancelled_for_good():
    clock = Clock()
    book = Book(clock=clock)
    book.conduct = Conduct(delay_s=60)
    book.present("k", presented())
    assert book.cancel("k").status == "cancelled"
    clock.now += 3_600
    assert book.present("k", presented()).status == "cancelled"


def test_what_is_called_back_before_it_came_is_never_accepted():
    book = Book()
    assert book.find("k") is None
    assert book.cancel("k").status == "cancelled"
    assert book.present("k", presented()).status == "cancelled"


def test_rejections_hit_their_share_and_the_same_ones_again():
    def rejected(seed: int) -> set[str]:
        book = Book()
        book.conduct = Conduct(rejections=0.1, seed=seed)
        keys = [f"key-{n}" for n in range(2_000)]
        return {key for key in keys if book.present(key, presented()).status == "rejected"}

    once = rejected(1)
    assert 150 < len(once) < 250
    assert rejected(1) == once != rejected(2)


def test_the_book_is_on_disk(tmp_path):
    book = Book(tmp_path / "book.sqlite")
    book.conduct = Conduct(rejections=1.0)
    book.present("k", presented())
    book.close()
    assert Book(tmp_path / "book.sqlite").find("k").status == "rejected"


def test_totals_are_by_status_and_currency():
    book = Book()
    book.present("a", presented(5))
    book.present("b", presented(6))
    book.cancel("c")
    assert [(one.status, one.currency, one.presentments, one.amount) for one in book.totals()] == [
        ("accepted", "USD", 2, 11),
        ("cancelled", "", 1, 0),
    ]


# -- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    book = Book()
    async with TestServer(create(book)) as running:
        running.book = book
        yield running


@pytest.fixture
async def house(server: TestServer) -> AsyncIterator[ClearingHouse]:
    client = a_client(server)
    yield client
    await client.close()


def a_client(server: TestServer, tries_max: int = 8) -> ClearingHouse:
    return ClearingHouse(
        str(server.make_url("/")), timeout_s=2, tries_max=tries_max, connections_max=4, jitter=lambda: 0.01
    )


async def test_a_presentment_is_accepted(house):
    answer = await house.outcome(a_presentment())
    assert (answer.key, answer.status) == (f"{PAYMENT}-1", "accepted")


async def test_lost_answers_are_asked_for_again_and_decided_once(server, house):
    server.book.conduct = Conduct(lost_answers=0.5, rejections=0.3)
    presentments = [a_presentment(n) for n in range(1, 41)]
    answers = await asyncio.gather(*(house.outcome(one) for one in presentments))
    assert {answer.status for answer in answers} == {"accepted", "rejected"}
    assert sum(server.book.times(one.key) for one in presentments) > 45
    server.book.conduct = Conduct()
    assert [server.book.find(one.key) for one in presentments] == answers


async def test_an_outcome_that_stays_unknown_is_none(server):
    server.book.conduct = Conduct(lost_answers=1.0)
    client = a_client(server, tries_max=3)
    assert await client.outcome(a_presentment()) is None
    assert server.book.times(a_presentment().key) == 3
    await client.close()


async def test_pending_is_not_an_outcome(server):
    server.book.conduct = Conduct(delay_s=3_600)
    client = a_client(server, tries_max=2)
    assert await client.outcome(a_presentment()) is None
    assert (await client.outcome(a_cancel())).status == "cancelled"
    assert (await client.outcome(a_presentment())).status == "cancelled"
    await client.close()


async def test_a_house_that_is_gone_leaves_the_outcome_unknown(server):
    client = a_client(server, tries_max=2)
    await server.close()
    assert await client.outcome(a_presentment()) is None
    await client.close()


async def test_another_presentment_under_the_same_key_is_refused_at_once(house):
    await house.outcome(a_presentment())
    with pytest.raises(Refused, match="409"):
        await house.outcome(a_presentment(amount=1))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`"),
        (b'{"currency":"USD","captured_at":1}', "amount"),
        (b'{"amount":0,"currency":"USD","captured_at":1}', "amount"),
        (b'{"amount":1,"currency":"usd","captured_at":1}', "currency"),
        (b'{"amount":1,"currency":"USD","captured_at":1,"more":1}', "more"),
    ],
)
async def test_a_presentment_that_makes_no_sense_is_a_400(server, body, field):
    async with (
        aiohttp.ClientSession() as http,
        http.post(server.make_url("/presentments/k"), data=body) as answer,
    ):
        assert answer.status == 400
        assert field in await answer.text()


async def test_the_conduct_can_be_read_and_set_within_its_bounds(server):
    async with aiohttp.ClientSession() as http:
        async with http.put(server.make_url("/conduct"), json={"rejections": 0.25}) as answer:
            assert answer.status == 200
        async with http.get(server.make_url("/conduct")) as answer:
            assert (await answer.json())["rejections"] == 0.25
        async with http.put(server.make_url("/conduct"), json={"rejections": 2}) as answer:
            assert answer.status == 400
        async with http.get(server.make_url("/presentments/unseen")) as answer:
            assert answer.status == 404
        async with http.get(server.make_url("/healthz")) as answer:
            assert answer.status == 200


# -- what the account is told ----------------------------------------------------------------------


def test_an_outcome_is_a_command_with_a_request_id_made_from_the_presentment():
    command = outcome_command(a_presentment(2), "accepted", "")
    assert (command.account, command.client, command.request_id) == (
        "tok_1testcard", "clearing", f"clear-{PAYMENT}-2",
    )  # fmt: skip
    assert (command.payment_id, command.n, command.accepted) == (PAYMENT, 2, True)


def test_rejected_and_cancelled_are_both_not_accepted():
    rejected = outcome_command(a_presentment(), "rejected", "account_data_invalid")
    assert (rejected.accepted, rejected.reason) == (False, "account_data_invalid")
    cancelled = outcome_command(a_cancel(), "cancelled", "")
    assert (cancelled.accepted, cancelled.reason) == (False, "no outcome in time")
    assert cancelled.request_id == rejected.request_id
