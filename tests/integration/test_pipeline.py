"""Payments through everything: gateway, Kafka, risk, authorization, projection and back, as one system."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import TopicPartition
from whole_system import Up, make_home
from whole_system_client import Card, Client, Reply, put

from mini_visa import topics
from mini_visa.demo.checks import PanSearch, no_pan_in_files
from mini_visa.demo.evidence import topic_names
from mini_visa.domain.commands import RecordClearing
from mini_visa.domain.money import exponent_of, format_amount
from mini_visa.kafka import committed_records, end_offsets, lag
from mini_visa.settings import Settings
from mini_visa.streams.topic import AnyTopic

pytestmark = [pytest.mark.broker, pytest.mark.slow]

WAIT_S = 60.0
LIVES = json.loads((Path(__file__).parents[1] / "golden" / "lives.json").read_text())["lives"]
OF_DAYS = {"expiry without a tick", "late capture is forced", "expiry after a part capture"}
"""Lives whose steps are days apart: here every second is a real one. `test_whole_life.py` takes them."""


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Up]:
    """`mini-visa up`, once for all tests here."""
    home = make_home(tmp_path_factory.mktemp("system"), jars_cache)
    # The clearing house thinks for a day: these tests say themselves how captures clear. On a busy
    # machine they wait: they are about answers, not about time-outs.
    started = Up(home, MINI_VISA_CLEARING_DELAY_S="86400", MINI_VISA_GATEWAY_DEADLINE_S="30")
    try:
        started.until("Ready")
        yield started
    finally:
        started.end()


@pytest.fixture(scope="session")
def pans() -> Iterator[list[str]]:
    """Every card number that these tests have sent."""
    used: list[str] = []
    yield used


@pytest.fixture
async def client(system: Up, pans: list[str]) -> AsyncIterator[Client]:
    async with ClientSession(system.state().gateway_url) as session:
        yield Client(session, pans)


@pytest.fixture
def settings(system: Up) -> Settings:
    """To look into the system's topics."""
    return Settings(home=system.home, broker=system.state().broker)


# -- authorizing ---------------------------------------------------------------------------------------


async def test_the_guides_own_call_is_authorized(client: Client) -> None:
    pan = "4111111111111111"
    client.pans.append(pan)
    assert (await client.post("/accounts", pan=pan, limit="1000.00")).status == 200
    sent = '{"request_id":"test123","pan":"4111111111111111","amount":"10.00"}'
    headers = {"Content-Type": "application/json"}
    async with client.session.post("/payments/authorize", data=sent, headers=headers) as response:
        found = await response.json()
    assert response.status == 200
    assert (found["status"], found["response_code"]) == ("authorized", "00")
    assert (found["amount"], found["approved_amount"], found["currency"]) == ("10.00", "10.00", "USD")
    assert (found["card"]["bin"], found["card"]["last4"]) == ("411111", "1111")
    assert len(found["authorization_code"]) == 6 and found["risk"] == {"score": 0, "rules": []}
    assert "Consistency-Token" in response.headers


async def test_the_same_request_again_gets_the_same_answer_and_holds_nothing_more(client: Client) -> None:
    card = await client.open()
    body = {"request_id": client.request_id(), "pan": card.pan, "amount": "10.00"}
    first = await client.call("POST", "/payments/authorize", body)
    again = await client.call("POST", "/payments/authorize", body)
    assert again.body == first.body and again.status == 200
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await card.sums() == ("990.00", "10.00", "0.00")


async def test_the_same_request_at_the_same_time_takes_effect_once(client: Client) -> None:
    card = await client.open()
    body = {"request_id": client.request_id(), "pan": card.pan, "amount": "10.00"}
    answers = await asyncio.gather(*(client.call("POST", "/payments/authorize", body) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["payment_id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert await card.sums() == ("990.00", "10.00", "0.00")


async def test_another_request_under_the_same_id_is_refused(client: Client) -> None:
    card = await client.open()
    body = {"request_id": client.request_id(), "pan": card.pan, "amount": "10.00"}
    assert (await client.call("POST", "/payments/authorize", body)).status == 200
    other = await client.call("POST", "/payments/authorize", {**body, "amount": "10.01"})
    assert other.status == 422 and other.headers["Content-Type"] == "application/problem+json"
    assert await card.sums() == ("990.00", "10.00", "0.00")


async def test_the_same_id_on_another_card_is_another_request(client: Client) -> None:
    one, other = await client.open(), await client.open()
    request_id = client.request_id()
    first, second = [
        await client.call(
            "POST", "/payments/authorize", {"request_id": request_id, "pan": card.pan, "amount": "10.00"}
        )
        for card in (one, other)
    ]
    assert first.body["payment_id"] != second.body["payment_id"]
    assert (first.code, second.code) == ("00", "00")


@pytest.mark.parametrize(
    ("opened", "changed", "request_", "code"),
    [
        ({}, {"status": "closed"}, {}, "14"),
        ({}, {"status": "lost"}, {}, "41"),
        ({}, {"status": "stolen"}, {}, "43"),
        ({}, {"status": "blocked"}, {}, "62"),
        ({"status": "blocked"}, {"status": "active"}, {}, "00"),
        ({"expiry": "2020-01"}, {}, {}, "54"),
        ({"expiry": "2099-01"}, {}, {"expiry": "2099-02"}, "54"),
        ({"expiry": "2099-01"}, {}, {"expiry": "2099-01"}, "00"),
        ({}, {}, {"currency": "EUR"}, "57"),
        ({}, {}, {"cvv_match": False}, "05"),
        ({}, {}, {"cvv_match": True}, "00"),
        ({}, {}, {"amount": "1000.01"}, "51"),
        ({}, {"limit": "9.99"}, {}, "51"),
        ({}, {}, {"amount": "1000.01", "partial_approval": True}, "10"),
        ({}, {}, {"amount": "0.00"}, "00"),
    ],
)
async def test_a_request_is_decided_by_the_account_as_it_is(
    client: Client, opened: dict[str, Any], changed: dict[str, Any], request_: dict[str, Any], code: str
) -> None:
    card = await client.open(**opened)
    if changed:
        assert (await card.set(**changed)).status == 200
    answer = await card.authorize(**{"amount": "10.00", **request_})
    assert (answer.status, answer.body["response_code"]) == (200, code)
    assert answer.body["status"] == {"00": "authorized", "10": "partially_authorized"}.get(code, "declined")


async def test_a_card_that_nobody_opened_is_declined_and_leaves_a_payment(client: Client) -> None:
    declined = await client.post("/payments/authorize", pan=client.pan(), amount="10.00")
    assert (declined.status, declined.code) == (200, "14")
    shown = await client.get(f"/payments/{declined.body['payment_id']}")
    assert (shown.status, shown.body["status"]) == (200, "declined")


async def test_the_eleventh_request_in_a_minute_is_declined_and_alarms(client: Client) -> None:
    card = await client.open()
    codes = [(await card.authorize("1.00")).code for _ in range(11)]
    assert codes == ["00"] * 10 + ["65"]
    deadline = time.monotonic() + WAIT_S
    while True:
        alerts = (await client.get("/alerts?limit=1000")).body["items"]
        mine = [alert for alert in alerts if alert["account_id"] == card.account_id]
        if mine:
            break
        assert time.monotonic() < deadline, alerts[:3]
        await asyncio.sleep(0.1)


# -- reversing -----------------------------------------------------------------------------------------


async def test_a_reversal_frees_the_hold_in_parts_and_never_more_than_there_is(client: Client) -> None:
    card = await client.open()
    payment = (await card.authorize("100.00")).body["payment_id"]
    path = f"/payments/{payment}/reversals"
    part = await client.post(path, amount="30.00", reason="one item less")
    assert (part.status, part.code, part.body["status"]) == (200, "00", "authorized")
    assert await card.sums() == ("930.00", "70.00", "0.00")
    more = await client.post(path, amount="70.01")
    assert (more.status, more.body["left"]) == (409, "70.00")
    rest = await client.post(path)
    assert (rest.status, rest.body["status"]) == (200, "reversed")
    assert (await client.post(path)).status == 409
    assert await card.sums() == ("1000.00", "0.00", "0.00")


async def test_a_reversal_again_is_answered_again_and_frees_nothing_more(client: Client) -> None:
    card = await client.open()
    payment = (await card.authorize("100.00")).body["payment_id"]
    body = {"request_id": client.request_id(), "amount": "30.00"}
    first, again = [await client.call("POST", f"/payments/{payment}/reversals", body) for _ in range(2)]
    assert again.body == first.body and again.headers["Idempotency-Replayed"] == "true"
    assert await card.sums() == ("930.00", "70.00", "0.00")


async def test_a_reversal_by_the_original_request_needs_no_payment_id(client: Client) -> None:
    card = await client.open()
    original = (await card.authorize("100.00")).body["request_id"]
    reversed_ = await client.post("/payments/reversals", pan=card.pan, original_request_id=original)
    assert (reversed_.status, reversed_.body["status"]) == (200, "reversed")
    assert await card.sums() == ("1000.00", "0.00", "0.00")


async def test_a_request_that_comes_after_its_reversal_holds_nothing(client: Client) -> None:
    card = await client.open()
    original = client.request_id()
    early = await client.post("/payments/reversals", pan=card.pan, original_request_id=original)
    assert (early.status, early.body["status"], early.body["payment_id"]) == (200, "reversed", None)
    late = await client.call(
        "POST", "/payments/authorize", {"request_id": original, "pan": card.pan, "amount": "100.00"}
    )
    assert (late.status, late.body["status"], late.body["response_code"]) == (200, "reversed", "68")
    assert await card.sums() == ("1000.00", "0.00", "0.00")


async def test_an_unknown_payment_is_404_and_a_captured_one_409(client: Client) -> None:
    card = await client.open()
    payment = (await card.authorize("10.00", capture=True)).body["payment_id"]
    assert (await client.post(f"/payments/{payment}/reversals")).status == 409
    unknown = payment.rpartition("_")[0] + "_ffffff"
    assert (await client.post(f"/payments/{unknown}/reversals")).status == 404


# -- the read side ---------------------------------------------------------------------------------------


async def test_a_payment_tells_its_whole_story(client: Client) -> None:
    card = await client.open()
    payment = (await card.authorize("100.00", merchant_id="m-1", metadata={"order": "7"})).body["payment_id"]
    await client.post(f"/payments/{payment}/increments", amount="20.00")
    await client.post(f"/payments/{payment}/captures", amount="50.00")
    shown = (await client.get(f"/payments/{payment}")).body
    assert [event["type"] for event in shown["events"]] == [
        "payment_authorized", "payment_incremented", "payment_captured",
    ]  # fmt: skip
    amounts = shown["amounts"]
    assert (amounts["authorized"], amounts["captured"], amounts["held"]) == ("120.00", "50.00", "0.00")
    assert await card.sums() == ("950.00", "0.00", "50.00")
    found = (await client.get(f"/payments?account={card.account_id}&metadata.order=7")).body["items"]
    assert [item["payment_id"] for item in found] == [payment]


# -- golden lives ----------------------------------------------------------------------------------------


class Life:
    """Takes the steps of one life over HTTP. The clearing house's outcome is put into account.commands, as
    its connector does."""

    def __init__(self, client: Client, settings: Settings, card: Card) -> None:
        self.client = client
        self.settings = settings
        self.card = card
        self.zero = "0" if card.currency == "JPY" else "0.00"
        self.payments: dict[str, str] = {}

    async def take(self, step: dict[str, Any]) -> Reply | None:
        card, post = self.card, self.client.post
        amount = {"amount": step["amount"]} if "amount" in step else {}
        path = f"/payments/{self.payments.get(step.get('payment', ''))}"
        match step["do"]:
            case "authorize":
                given = {"currency": step["currency"]} if "currency" in step else {}
                if given:
                    amount = {"amount": f"{step['amount']}.00"}  # left out in the vector
                partial = step.get("partial", False)
                reply = await card.authorize(**amount, **given, partial_approval=partial, merchant_id="m1")
                self.payments[step["payment"]] = reply.body["payment_id"]
                return reply
            case "increment" | "reverse" | "refund":
                kind = {"increment": "increments", "reverse": "reversals", "refund": "refunds"}[step["do"]]
                return await post(f"{path}/{kind}", **amount)
            case "capture":
                return await post(f"{path}/captures", **amount, final=step.get("final", True))
            case "chargeback":
                return await post(f"{path}/chargebacks", **amount, reason_code="10.4")
            case ("represent" | "accept") as answer:
                return await post(f"{path}/chargebacks/{step['n']}/{answer}")
            case "set":
                return await card.set(**{key: step[key] for key in ("limit", "status") if key in step})
            case "pay":
                return await post(f"/accounts/{card.account_id}/payments", **amount)
            case "clear":
                await self.clear(self.payments[step["payment"]], accepted=step.get("ok", True))
                return None
        raise AssertionError(f"a step that this test does not know: {step['do']}")

    async def clear(self, payment_id: str, *, accepted: bool) -> None:
        captures = (await self.client.get(f"/payments/{payment_id}")).body["captures"]
        n = next(capture["n"] for capture in captures if capture["status"] == "submitted")
        command = RecordClearing(
            account=self.card.account_id,
            request_id=f"clearing-{payment_id}-{n}",
            payment_id=payment_id,
            n=n,
            accepted=accepted,
            reason="" if accepted else "no such merchant",
        )
        await put(
            self.settings,
            topics.ACCOUNT_COMMANDS,
            topics.ACCOUNT_COMMANDS.encode(command),
            key=self.card.account_id.encode(),
        )
        deadline = time.monotonic() + WAIT_S
        while True:
            captures = (await self.client.get(f"/payments/{payment_id}")).body["captures"]
            if next(capture for capture in captures if capture["n"] == n)["status"] != "submitted":
                return
            assert time.monotonic() < deadline, captures
            await asyncio.sleep(0.05)

    async def ledger_comes_to(self, expected: dict[str, str], where: str) -> None:
        """The ledger follows a moment later."""
        deadline = time.monotonic() + WAIT_S
        own = f":{self.card.account_id}"
        while True:
            sums = await self.client.postings(self.card.account_id, self.payments.values())
            found = {
                name.removesuffix(own): format_amount(amount, exponent_of(self.card.currency))
                for name, amount in sums.items()
                if amount
            }
            if found == expected:
                return
            assert time.monotonic() < deadline, (where, found, expected)
            await asyncio.sleep(0.02)

    async def shown(self) -> dict[str, Any]:
        available, held, posted = await self.card.sums()
        payments = {}
        for name, payment_id in self.payments.items():
            payment = (await self.client.get(f"/payments/{payment_id}")).body
            amounts = payment["amounts"]
            if (
                payment["currency"] != self.card.currency
            ):  # declined; the vector has its zeros in the account's
                assert {float(amount) for amount in amounts.values()} == {0.0}
                amounts = dict.fromkeys(amounts, self.zero)
            payments[name] = {"status": payment["status"], **amounts}
        return {"available": available, "held": held, "posted": posted, "payments": payments}


@pytest.mark.parametrize(
    "life",
    [life for life in LIVES if life["life"] not in OF_DAYS],
    ids=lambda life: life["life"].replace(" ", "-"),
)
async def test_a_life_goes_over_http_as_the_independent_model_says(
    client: Client, settings: Settings, life: dict[str, Any]
) -> None:
    lived = Life(client, settings, await client.open(**life["account"]))
    for step in life["steps"]:
        reply = await lived.take(step)
        where = f"{step['do']} at {step['at_s']} s"
        answer = step["answer"]
        if reply is not None:
            assert reply.status == answer["http"], (where, reply)
            if "operation" in reply.body:
                assert reply.code == answer["response_code"], where
            if "left" in answer:
                assert reply.body["left"] == answer["left"], where
        expected = {name: value for name, value in step["after"].items() if name != "ledger"}
        assert await lived.shown() == expected, where
        await lived.ledger_comes_to(step["after"]["ledger"], where)


# -- garbage -------------------------------------------------------------------------------------------


GARBAGE = {
    "no JSON": b"\x00\xff\xfe garbage",
    "another message": b'{"type":"no_such_message/1"}',
    "no value": None,
    "deep": b"[" * 100_000,
}


READERS: dict[AnyTopic, set[str]] = {
    topics.CARD_REQUESTS: {"risk"},
    topics.ACCOUNT_COMMANDS: {"authorization"},
    topics.PAYMENT_EVENTS: {"projection", "ledger", "clearing", "reversal"},
    topics.FRAUD_ALERTS: {"projection"},
    topics.LEDGER_JOURNAL: {"projection"},
    topics.LEDGER_SETTLEMENT_JOURNAL: {"projection"},
    topics.LEDGER_POSTINGS: {"ledger"},
    topics.CLEARING_SUBMISSIONS: {"connector"},
    topics.CLEARING_ITEMS: {"clearing"},
    topics.SETTLEMENT_POSITIONS: {"ledger", "projection"},
    topics.PAYMENT_SAGAS: {"projection"},
    topics.RISK_RULES: {"projection"},
}
"""Which services read a topic. The replies have a test of their own: nobody dead-letters what is not his."""


def test_every_topic_is_fed_garbage() -> None:
    assert {*READERS, topics.GATEWAY_REPLIES} == set(topics.ALL)


@pytest.mark.parametrize("topic", READERS, ids=lambda topic: str(topic.name))
async def test_garbage_in_a_topic_is_dead_lettered_and_what_follows_is_processed(
    client: Client, settings: Settings, topic: AnyTopic
) -> None:
    card = await client.open()
    key = card.account_id.encode()
    before = await end_offsets(settings, [topics.dead_letters(reader) for reader in READERS[topic]])
    sent: dict[bytes, bytes | None] = {}
    for garbage in GARBAGE.values():
        partition, offset = await put(settings, topic, garbage, key=key)
        sent[f"{topic.name}/{partition}/{offset}".encode()] = garbage
    for reader in READERS[topic]:
        letters = await _letters(settings, topics.dead_letters(reader), before, set(sent))
        assert {source: letter.value for source, letter in letters.items()} == sent, reader
        for letter in letters.values():
            assert (letter.key, letter.partition) == (key, partition)
            assert dict(letter.headers)["reason"]

    answer = await card.authorize("10.00")  # the same partition of every topic
    assert (answer.status, answer.code) == (200, "00")
    assert await card.sums() == ("990.00", "10.00", "0.00")
    async with asyncio.timeout(WAIT_S):
        while not await _all_are_past(settings, topic.name, partition, offset):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _letters(
    settings: Settings, topic: str, start: dict[TopicPartition, int], sources: set[bytes]
) -> dict[bytes, Any]:
    """The dead letters of `sources`, by source, once they are all there."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = {
            source: letter
            async for letter in committed_records(settings, [topic], start)
            if (source := dict(letter.headers)["source"]) in sources
        }
        if set(found) == sources:
            return found
        assert time.monotonic() < deadline, f"{topic}: {sorted(sources - set(found))} did not come"


async def _all_are_past(settings: Settings, topic: str, partition: int, offset: int) -> bool:
    """Whether each group that reads the topic goes on after the offset."""
    positions = [one for one in await lag(settings) if (one.topic, one.partition) == (topic, partition)]
    return bool(positions) and all(one.committed > offset for one in positions)


async def test_garbage_in_the_replies_does_not_disturb_who_waits_for_one(
    client: Client, settings: Settings
) -> None:
    card = await client.open()
    for garbage in GARBAGE.values():
        for key in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
            await put(settings, topics.GATEWAY_REPLIES, garbage, key=key)
    assert (await card.authorize("10.00")).code == "00"


# -- last: after all of the above ---------------------------------------------------------------------------


async def test_no_card_number_is_in_any_topic_or_file(
    client: Client, settings: Settings, system: Up, pans: list[str]
) -> None:
    card = await client.open()
    for path in ("/payments/authorize", f"/payments/{card.pan}", f"/accounts/{card.pan}"):
        await client.call("POST", path, {"request_id": card.pan, "pan": card.pan, "amount": card.pan})
        await client.get(path)
    search = PanSearch([], pans)
    assert pans
    count = 0
    async for record in committed_records(settings, await topic_names(settings), {}):
        count += 1
        parts = (record.key or b"", record.value or b"", *(value for _, value in record.headers))
        assert not list(search.find(b"\0".join(parts))), f"{record.topic}/{record.partition}/{record.offset}"
    assert count > 10
    found = no_pan_in_files(system.home, search)
    assert found.passed, found.offenders
