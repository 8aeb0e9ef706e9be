"""The clearing house and the client that asks it: over HTTP, on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from mini_visa.clearing_house.app import create
from mini_visa.clearing_house.book import Answer, Book, Conduct, Presented
from mini_visa.clearing_house.client import ClearingHouse, Refused
from mini_visa.clearing_house.connector import outcome_command
from mini_visa.domain.clearing import CancelPresentment, Presentment, Submission, key_of
from mini_visa.domain.payment import Card, Merchant

PAYMENT = "pay_1testcard_1f"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def presented(key: str = "k", amount: int = 10_00) -> Presented:
    return Presented(key=key, amount=amount, currency="USD", captured_at=1)


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
    first = book.present(presented())
    book.conduct = Conduct(rejections=0.0)
    assert first.status == "rejected" and first.reason
    assert book.present(presented()) == first == book.find("k")
    assert book.times("k") == 2


def test_the_same_key_for_another_presentment_is_a_conflict():
    book = Book()
    first = book.present(presented(amount=1))
    assert book.present(presented(amount=2)).status == "conflict"
    assert book.find("k") == first


def test_a_decision_takes_as_long_as_it_is_told_to_and_is_then_final():
    clock = Clock()
    book = Book(clock=clock)
    book.conduct = Conduct(delay_s=60)
    assert book.present(presented()).status == "pending"
    clock.now += 59
    assert book.find("k").status == "pending" and book.totals() == []
    clock.now += 1
    assert book.find("k").status == "accepted"
    assert book.cancel("k").status == "accepted"


@pytest.mark.parametrize(
    ("merchant", "status"),
    [("sandbox-accepted", "accepted"), ("sandbox-rejected-2", "rejected"), ("sandbox-silent", "pending")],
)
def test_a_sandbox_merchant_gets_what_its_name_says_whatever_the_shares_are(merchant, status):
    for share in (0.0, 1.0):
        clock = Clock()
        book = Book(clock=clock)
        book.conduct = Conduct(rejections=share, late=share, late_s=60, delay_s=60)
        asked = Presented(key="k", amount=1, currency="USD", captured_at=1, merchant_id=merchant)
        assert book.present(asked).status == status
        clock.now += 10**9
        assert book.present(asked).status == status
        assert book.cancel("k").status == ("cancelled" if status == "pending" else status)


def test_a_late_presentment_is_decided_late_and_a_cancelled_one_counts_at_once():
    clock = Clock()
    book = Book(clock=clock)
    book.conduct = Conduct(late=1.0, late_s=60)
    assert book.present(presented()).status == "pending"
    assert book.present(presented("other")).status == "pending"
    assert book.cancel("other").status == "cancelled"
    assert [total.status for total in book.totals()] == ["cancelled"]
    clock.now += 60
    assert book.find("k").status == "accepted"


def test_what_is_called_back_in_time_is_cancelled_for_good():
    clock = Clock()
    book = Book(clock=clock)
    book.conduct = Conduct(delay_s=60)
    book.present(presented())
    assert book.cancel("k").status == "cancelled"
    clock.now += 3_600
    assert book.present(presented()).status == "cancelled"


def test_what_is_called_back_before_it_came_is_never_accepted():
    book = Book()
    assert book.find("k") is None
    assert book.cancel("k").status == "cancelled"
    assert book.present(presented()).status == "cancelled"


def test_rejections_hit_their_share_and_the_same_ones_again():
    def rejected(seed: int) -> set[str]:
        book = Book()
        book.conduct = Conduct(rejections=0.1, seed=seed)
        keys = [f"key-{n}" for n in range(2_000)]
        return {key for key in keys if book.present(presented(key)).status == "rejected"}

    once = rejected(1)
    assert 150 < len(once) < 250
    assert rejected(1) == once != rejected(2)


def test_the_book_is_on_disk_after_each_batch(tmp_path):
    book = Book(tmp_path / "book.sqlite")
    book.conduct = Conduct(rejections=1.0)
    with book.batch():
        book.present(presented())
    assert Book(tmp_path / "book.sqlite").find("k").status == "rejected"


def test_a_batch_that_fails_leaves_nothing(tmp_path):
    book = Book(tmp_path / "book.sqlite")
    with pytest.raises(ZeroDivisionError), book.batch():
        book.present(presented())
        1 / 0  # noqa: B018
    assert book.find("k") is None


def test_totals_are_by_status_and_currency():
    book = Book()
    book.present(presented("a", 5))
    book.present(presented("b", 6))
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


def a_client(server: TestServer, tries_max: int = 12) -> ClearingHouse:
    return ClearingHouse(
        str(server.make_url("/")), timeout_s=2, tries_max=tries_max, connections_max=4, jitter=lambda: 0.01
    )


async def outcome(client: ClearingHouse, submission: Submission) -> Answer | None:
    return (await client.outcomes([submission])).get(submission.key)


async def test_presentments_are_decided_together(house):
    answers = await house.outcomes([a_presentment(1), a_presentment(2)])
    assert {key: answer.status for key, answer in answers.items()} == {
        f"{PAYMENT}-1": "accepted",
        f"{PAYMENT}-2": "accepted",
    }


async def test_lost_answers_are_asked_for_again_and_decided_once(server, house):
    server.book.conduct = Conduct(lost_answers=0.5, rejections=0.3)
    presentments = [a_presentment(n) for n in range(1, 41)]
    answers = await house.outcomes(presentments)
    assert {answer.status for answer in answers.values()} == {"accepted", "rejected"}
    assert sum(server.book.times(one.key) for one in presentments) > 45
    assert {one.key: server.book.find(one.key) for one in presentments} == answers


async def test_an_outcome_that_stays_unknown_is_missing(server):
    server.book.conduct = Conduct(lost_answers=1.0)
    client = a_client(server, tries_max=3)
    assert await outcome(client, a_presentment()) is None
    assert server.book.times(a_presentment().key) == 3
    await client.close()


async def test_pending_is_not_an_outcome(server):
    server.book.conduct = Conduct(delay_s=3_600)
    client = a_client(server, tries_max=2)
    assert await outcome(client, a_presentment()) is None
    assert (await outcome(client, a_cancel())).status == "cancelled"
    assert (await outcome(client, a_presentment())).status == "cancelled"
    await client.close()


async def test_only_what_is_not_known_yet_is_asked_again(server):
    client = a_client(server, tries_max=3)
    await client.outcomes([a_presentment(1)])
    server.book.conduct = Conduct(delay_s=3_600)
    answers = await client.outcomes([a_presentment(1), a_presentment(2)])
    assert list(answers) == [f"{PAYMENT}-1"]
    assert (server.book.times(f"{PAYMENT}-1"), server.book.times(f"{PAYMENT}-2")) == (2, 3)
    await client.close()


async def test_a_house_that_is_gone_leaves_the_outcome_unknown(server):
    client = a_client(server, tries_max=2)
    await server.close()
    assert await outcome(client, a_presentment()) is None
    await client.close()


async def test_another_presentment_under_the_same_key_is_a_conflict_at_once(server, house):
    await house.outcomes([a_presentment()])
    assert (await outcome(house, a_presentment(amount=1))).status == "conflict"
    assert server.book.times(a_presentment().key) == 2


async def test_a_question_that_makes_no_sense_is_refused(house):
    with pytest.raises(Refused, match="amount"):
        await house.outcomes([a_presentment(amount=-1)])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`"),
        (b'{"present":[{"key":"k","currency":"USD","captured_at":1}]}', "amount"),
        (b'{"present":[{"key":"k","amount":0,"currency":"USD","captured_at":1}]}', "amount"),
        (b'{"present":[{"key":"k","amount":1,"currency":"usd","captured_at":1}]}', "currency"),
        (b'{"present":[{"key":"k/","amount":1,"currency":"USD","captured_at":1}]}', "key"),
        (b'{"present":[{"key":"k","amount":1,"currency":"USD","captured_at":1,"more":1}]}', "more"),
        (b'{"cancel":["' + b'k","' * 500 + b'k"]}', "cancel"),
    ],
)
async def test_a_submission_that_makes_no_sense_is_a_400_and_nothing_of_it_is_kept(server, body, field):
    async with (
        aiohttp.ClientSession() as http,
        http.post(server.make_url("/presentments"), data=body) as said,
    ):
        assert said.status == 400
        assert field in await said.text()
    assert server.book.find("k") is None


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
        async with http.get(server.make_url("/totals")) as answer:
            assert await answer.json() == []
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
