"""The whole life of payments on a real system, whose time is in these tests' hands: no tick comes by itself,
and the clearing house says nothing until it is told what to say.

- the golden lives that take days: their commands are in the log with the times of those days;
- every transition of the table of states, allowed or refused;
- the ledger, settlement, sagas, rules and alerts over HTTP and on the command line; who sees what.
"""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiokafka import TopicPartition
from test_pipeline import LIVES, OF_DAYS
from whole_system import START_S, Up, environment, make_home, mini_visa
from whole_system_client import Card, Client, Reply, minor, put

from mini_visa import topics
from mini_visa.domain.commands import (
    Authorize,
    CapturePayment,
    OpenAccount,
    RecordClearing,
    Tick,
    TimeOutReversal,
)
from mini_visa.domain.lifecycle import TRANSITIONS, Operation
from mini_visa.domain.money import parse_amount
from mini_visa.domain.payment import Card as CardData
from mini_visa.domain.payment import Merchant, PaymentStatus
from mini_visa.gateway.access import create_key
from mini_visa.gateway.app import create
from mini_visa.gateway.server import server
from mini_visa.kafka import committed_records
from mini_visa.settings import Settings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S = 60.0
DAY_MS = 86_400_000
FUEL_HOLD_S = 1.0
DEADLINE_S = 10 * 86_400
"""Of clearing: longer than any life here."""
PARTITIONS = 2
AT_ONCE = 12


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[Up]:
    started = Up(
        make_home(tmp_path_factory.mktemp("life"), jars_cache),
        MINI_VISA_TICK_INTERVAL_S="3600",
        MINI_VISA_CLEARING_DELAY_S="86400",
        MINI_VISA_CLEARING_DEADLINE_S=str(DEADLINE_S),
        MINI_VISA_CLEARING_CYCLE_S="1",
        MINI_VISA_HOLD_FUEL_S=str(FUEL_HOLD_S),
        MINI_VISA_CONNECTOR_TRIES_MAX="1",
        MINI_VISA_GATEWAY_DEADLINE_S="30",
    )
    try:
        for service in ("risk", "authorization"):
            started.until(f"{service}: ready")
        # The gateway is ready when both were seen at work. Their time is still long ago.
        settings = Settings(home=started.home, broker=started.state().broker)
        deadline = time.monotonic() + START_S
        while "Ready" not in started.output.read_text():
            assert time.monotonic() < deadline, started.output.read_text()
            for topic in (topics.CARD_REQUESTS, topics.ACCOUNT_COMMANDS):
                asyncio.run(tick(settings, topic, at=now() - 90 * DAY_MS))
            time.sleep(0.5)
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def settings(system: Up) -> Settings:
    return Settings(home=system.home, broker=system.state().broker)


@pytest.fixture
async def client(system: Up) -> AsyncIterator[Client]:
    async with ClientSession(system.state().gateway_url) as session:
        yield Client(session, [])


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """What `ask` gives as soon as it is what is wanted."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = await ask()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def tick(settings: Settings, topic: Any = topics.ACCOUNT_COMMANDS, at: int | None = None) -> None:
    for partition in range(PARTITIONS):
        await put(settings, topic, topic.encode(Tick()), key=None, partition=partition, at=at)


async def command(settings: Settings, message: Any, at: int | None = None) -> tuple[int, int]:
    topic = topics.ACCOUNT_COMMANDS
    return await put(settings, topic, topic.encode(message), key=message.account.encode(), at=at)


async def fact(settings: Settings, place: dict[str, Any]) -> Any:
    """The event at this place of the log."""
    at = TopicPartition(place["topic"], place["partition"])
    offset = place["offset"]
    async with aclosing(committed_records(settings, [at.topic], {at: offset}, {at: offset + 1})) as records:
        return topics.PAYMENT_EVENTS.decode((await anext(records)).value)


def now() -> int:
    return time.time_ns() // 1_000_000


# -- lives of days: first, for time never goes back within a partition -----------------------------------


@pytest.mark.parametrize("number", range(len(OF_DAYS)))
async def test_a_life_of_days_goes_as_the_independent_model_says(
    client: Client, settings: Settings, number: int
) -> None:
    """Its commands are records of the log with the times of the life, written now; all that is compared is
    read over HTTP. None of it could be asked over HTTP: a gateway writes requests with its own time."""
    life = [one for one in LIVES if one["life"] in OF_DAYS][number]
    start = now() - (60 - 15 * number) * DAY_MS
    account, currency = f"tok_1life{number}abcdefgh", "USD"
    requests = count(1)
    payments: dict[str, str] = {}

    def whole(amount: str) -> int:
        return parse_amount(amount, 2)

    async def send(kind: type, at: int, **fields: Any) -> tuple[int, int]:
        return await command(settings, kind(account=account, request_id=f"r{next(requests)}", **fields), at)

    await send(
        OpenAccount,
        start,
        bin="411111",
        last4="1111",
        currency=currency,
        limit=whole(life["account"]["limit"]),
    )
    for step in life["steps"]:
        at = start + step["at_s"] * 1_000
        where = f"{life['life']}: {step['do']} at {step['at_s']} s"
        match step["do"]:
            case "authorize":
                _, offset = await send(
                    Authorize,
                    at,
                    amount=whole(step["amount"]),
                    currency=currency,
                    card=CardData(token=account, bin="411111", last4="1111"),
                    merchant=Merchant(id="m1"),
                )
                payments[step["payment"]] = f"pay_{account.removeprefix('tok_')}_{offset:x}"
            case "capture":
                amount = {"amount": whole(step["amount"]), "exponent": 2} if "amount" in step else {}
                await send(
                    CapturePayment,
                    at,
                    payment_id=payments[step["payment"]],
                    final=step.get("final", True),
                    **amount,
                )
            case "tick":
                await tick(settings, at=at)
            case other:
                raise AssertionError(other)
        after = step["after"]

        async def shown(payments: dict[str, str] = payments) -> dict[str, Any]:
            found = (await client.get(f"/accounts/{account}")).body
            sums = await client.postings(account, payments.values())
            return {
                **{name: found.get(name) for name in ("available", "held", "posted")},
                "ledger": {
                    name.removesuffix(f":{account}"): f"{'-' if amount < 0 else ''}{abs(amount) / 100:.2f}"
                    for name, amount in sums.items()
                    if amount
                },
                "payments": {
                    name: {"status": payment.body["status"], **payment.body["amounts"]}
                    for name, payment_id in payments.items()
                    if (payment := await client.get(f"/payments/{payment_id}")).status == 200
                },
            }

        await eventually(shown, lambda found, after=after: found == after)
        answer = step["answer"]
        if answer and step["do"] != "tick":
            path = f"/payments/{payments[step['payment']]}"
            what = "response_code" if answer["http"] == 200 else "http_status"
            told = answer[what] if what == "response_code" else answer["http"]

            async def last(path: str = path, where: str = where) -> dict[str, Any]:
                found = (await client.get(path)).body["events"]
                return {"where": where, **found[-1]}

            await eventually(last, lambda event, what=what, told=told: event.get(what) == told)


# -- every transition ------------------------------------------------------------------------------------


class Case:
    """A payment in a status, and one operation on it."""

    def __init__(
        self, client: Client, settings: Settings, status: PaymentStatus, operation: Operation
    ) -> None:
        self.client, self.settings = client, settings
        self.status, self.operation = status, operation
        self.http: Reply | None = None
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    async def run(self) -> None:
        await self._bring_about()
        self.before = await self._payment()
        assert self.before["status"] == self.status, (self.status, self.operation, self.before)
        await getattr(self, f"_{self.operation.value}")()
        self.after = await self._payment()
        for event in self.after["events"]:
            if event["type"] == "capture_rejected":
                # What the rejection made of it: by now the saga may have reversed what was left of the hold.
                self.after["status"] = (await fact(self.settings, event["log"])).payment.status

    async def _payment(self) -> dict[str, Any]:
        return (await self.client.get(f"/payments/{self.payment_id}")).body

    async def post(self, what: str, **body: Any) -> Reply:
        return await self.client.post(f"/payments/{self.payment_id}/{what}", **body)

    async def tell(self, kind: type, **fields: Any) -> None:
        """A command that no client sends; returns when what it led to can be seen."""
        request_id = self.client.request_id()
        message = kind(account=self.card.account_id, **{"request_id": request_id, **fields})
        partition, offset = await command(self.settings, message)
        token = {"Consistency-Token": f"{partition}:{offset}"}
        async with self.client.session.get(f"/payments/{self.payment_id}", headers=token) as response:
            assert response.status == 200, await response.text()

    # -- the statuses --------------------------------------------------------------------------------

    async def _bring_about(self) -> None:
        short = self.status in (PaymentStatus.DECLINED, PaymentStatus.PARTIALLY_AUTHORIZED)
        self.card: Card = await self.client.open(limit="50.00" if short else "1000.00")
        pump = self.status is PaymentStatus.EXPIRED or self.operation is Operation.EXPIRE
        partial = self.status is PaymentStatus.PARTIALLY_AUTHORIZED
        mcc = "5542" if pump else "5411"
        if self.operation is Operation.TIME_OUT:  # the attempt must be known, as its gateway knows it
            self.request_id = self.client.request_id()
            message = Authorize(
                account=self.card.account_id,
                request_id=self.request_id,
                attempt="a1",
                amount=100_00,
                currency="USD",
                card=CardData(token=self.card.account_id, bin=self.card.pan[:6], last4=self.card.pan[-4:]),
                merchant=Merchant(id="m1", mcc=mcc),
                partial_approval=partial,
            )
            _, offset = await command(self.settings, message)
            self.payment_id = f"pay_{self.card.account_id.removeprefix('tok_')}_{offset:x}"
            await eventually(self._payment, lambda found: "payment_id" in found)
        else:
            authorized = await self.card.authorize(
                "100.00", merchant_id="m1", mcc=mcc, partial_approval=partial
            )
            self.payment_id = authorized.body["payment_id"]
        match self.status:
            case PaymentStatus.REVERSED:
                assert (await self.post("reversals")).status == 200
            case PaymentStatus.EXPIRED:
                await self._expire()
            case PaymentStatus.PARTIALLY_CAPTURED | PaymentStatus.CAPTURED:
                final = self.status is PaymentStatus.CAPTURED
                assert (await self.post("captures", amount="40.00", final=final)).status == 200
                if self.operation in (
                    Operation.REFUND, Operation.CHARGE_BACK, Operation.REPRESENT, Operation.ACCEPT,
                ):  # fmt: skip
                    await self._clear()
                if self.operation in (Operation.REPRESENT, Operation.ACCEPT):
                    assert (await self.post("chargebacks", reason_code="13.1", amount="10.00")).status == 200

    # -- the operations ------------------------------------------------------------------------------

    async def _increment(self) -> None:
        self.http = await self.post("increments", amount="1.00")

    async def _capture(self) -> None:
        self.http = await self.post("captures", amount="10.00", final=False)

    async def _reverse(self) -> None:
        self.http = await self.post("reversals")

    async def _refund(self) -> None:
        self.http = await self.post("refunds", amount="10.00")

    async def _charge_back(self) -> None:
        self.http = await self.post("chargebacks", amount="10.00", reason_code="13.1")

    async def _represent(self) -> None:
        self.http = await self.post("chargebacks/1/represent")

    async def _accept(self) -> None:
        self.http = await self.post("chargebacks/1/accept")

    async def _clear(self) -> None:
        await self.tell(RecordClearing, payment_id=self.payment_id, n=1, accepted=True)

    async def _reject(self) -> None:
        await self.tell(RecordClearing, payment_id=self.payment_id, n=1, accepted=False, reason="no")

    async def _time_out(self) -> None:
        await self.tell(TimeOutReversal, request_id=self.request_id, attempt="a1")

    async def _expire(self) -> None:
        await asyncio.sleep(FUEL_HOLD_S + 0.1)
        await self.tell(OpenAccount, bin="411111", last4="1111", currency="USD", limit=0)  # 409: time passes


ON_PAYMENTS = list(PaymentStatus)
OPERATIONS = [one for one in Operation if one is not Operation.AUTHORIZE]
OVER_HTTP = {
    Operation.INCREMENT, Operation.CAPTURE, Operation.REVERSE, Operation.REFUND, Operation.CHARGE_BACK,
    Operation.REPRESENT, Operation.ACCEPT,
}  # fmt: skip
BECOMES = {
    (PaymentStatus.AUTHORIZED, Operation.CAPTURE): PaymentStatus.PARTIALLY_CAPTURED,
    (PaymentStatus.PARTIALLY_AUTHORIZED, Operation.CAPTURE): PaymentStatus.PARTIALLY_CAPTURED,
    (PaymentStatus.EXPIRED, Operation.CAPTURE): PaymentStatus.PARTIALLY_CAPTURED,
    (PaymentStatus.AUTHORIZED, Operation.REVERSE): PaymentStatus.REVERSED,
    (PaymentStatus.PARTIALLY_AUTHORIZED, Operation.REVERSE): PaymentStatus.REVERSED,
    (PaymentStatus.PARTIALLY_CAPTURED, Operation.REVERSE): PaymentStatus.CAPTURED,
    (PaymentStatus.AUTHORIZED, Operation.EXPIRE): PaymentStatus.EXPIRED,
    (PaymentStatus.PARTIALLY_AUTHORIZED, Operation.EXPIRE): PaymentStatus.EXPIRED,
    **{
        (status, Operation.TIME_OUT): PaymentStatus.REVERSED
        for status in ON_PAYMENTS
        if status not in (PaymentStatus.CAPTURED, PaymentStatus.PARTIALLY_CAPTURED)
    },
}
"""What these very operations make of a status; everything else leaves it as it is."""


@pytest.fixture(scope="module")
def cases(system: Up, settings: Settings) -> dict[tuple[PaymentStatus, Operation], Case]:
    """All of them, many at once: each has a card of its own."""

    async def run_all() -> dict[tuple[PaymentStatus, Operation], Case]:
        turns = asyncio.Semaphore(AT_ONCE)
        async with ClientSession(system.state().gateway_url) as session:
            client = Client(session, [])
            made = {
                (status, operation): Case(client, settings, status, operation)
                for status in ON_PAYMENTS
                for operation in OPERATIONS
            }

            async def run(case: Case) -> None:
                async with turns:
                    await case.run()

            await asyncio.gather(*map(run, made.values()))
        return made

    return asyncio.run(run_all())


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("status", ON_PAYMENTS, ids=str)
def test_a_transition_is_made_or_refused_as_the_table_says(
    cases: dict[tuple[PaymentStatus, Operation], Case], status: PaymentStatus, operation: Operation
) -> None:
    case = cases[status, operation]
    allowed = TRANSITIONS[status].get(operation)
    became = PaymentStatus(case.after["status"])
    assert became is BECOMES.get((status, operation), status)
    if allowed is not None:
        assert became in allowed
        if case.http is not None:
            assert case.http.status == 200 and case.http.body["status"] == became
        return
    assert became is status and case.after["amounts"] == case.before["amounts"]
    if operation in OVER_HTTP:
        assert case.http is not None
        assert (case.http.status, case.http.body["state"]) == (409, status)
        assert case.after["events"][-1]["http_status"] == 409, "a refusal is in the log"


@pytest.mark.parametrize(
    ("limit", "more", "status"),
    [
        ("1000.00", {}, "authorized"),
        ("1000.00", {"capture": True}, "captured"),
        ("50.00", {"partial_approval": True}, "partially_authorized"),
        ("50.00", {}, "declined"),
    ],
)
async def test_an_authorization_begins_as_the_table_says(
    client: Client, limit: str, more: dict[str, Any], status: str
) -> None:
    card = await client.open(limit=limit)
    made = await card.authorize("100.00", **more)
    assert made.body["status"] == status
    assert PaymentStatus(status) in TRANSITIONS[None][Operation.AUTHORIZE]


def test_each_line_of_the_table_was_taken(cases: dict[tuple[PaymentStatus, Operation], Case]) -> None:
    lines = {(status, operation) for status, row in TRANSITIONS.items() if status for operation in row}
    assert lines <= cases.keys() and len(cases) == 77


async def test_afterwards_the_trial_balance_is_zero_and_each_card_is_in_the_ledger_as_it_is(
    client: Client, cases: dict[tuple[PaymentStatus, Operation], Case]
) -> None:
    async def differences() -> list[str]:
        wrong = []
        for case in cases.values():
            account = (await client.get(f"/accounts/{case.card.account_id}")).body
            for name, amount in (("holds", account["held"]), ("receivable", account["posted"])):
                path = f"/ledger/accounts/{name}:cardholder:{case.card.account_id}"
                found = await client.get(path)
                balance = found.body["balances"][0]["balance"] if found.status == 200 else "0.00"
                if balance != amount:
                    wrong.append(f"{case.status} {case.operation}: {name} {balance}, the account {amount}")
        return wrong

    await eventually(differences, lambda wrong: not wrong)
    trial = (await client.get("/ledger/trial-balance")).body
    assert [total["difference"] for total in trial["currencies"]] == ["0.00"]
    assert {place["topic"] for place in trial["positions"]} <= {"ledger.journal", "ledger.settlement-journal"}
    assert sum(place["offset"] for place in trial["positions"]) > 100


# -- ledger and settlement -------------------------------------------------------------------------------


async def test_a_statement_a_past_balance_and_the_hash_chain(client: Client, settings: Settings) -> None:
    card = await client.open()
    sale = await card.authorize("100.00", merchant_id="statement-1")
    payment_id = sale.body["payment_id"]
    await client.post(f"/payments/{payment_id}/captures")
    between = now() + 1
    await asyncio.sleep(0.05)
    await command(
        settings,
        RecordClearing(account=card.account_id, request_id="c1", payment_id=payment_id, n=1, accepted=True),
    )
    name = "/ledger/accounts/payable:merchant:statement-1"
    await eventually(lambda: client.get(name), lambda found: found.status == 200)
    lines = (await client.get(f"{name}/entries")).body["items"]
    assert [(line["kind"], line["amount"]) for line in lines] == [("capture_cleared", "-98.27")]
    assert lines[0]["payment_id"] == payment_id
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(between / 1000)) + f".{between % 1000:03d}Z"
    holds = f"/ledger/accounts/receivable:cardholder:{card.account_id}"
    assert (await client.get(f"{name}?at={at}")).status == 404, "it was not cleared yet"
    assert (await client.get(f"{holds}?at={at}")).body["balances"][0]["balance"] == "100.00"
    cut = (await client.get(f"{name}/entries?at={at}")).body
    assert cut == {"items": [], "next_cursor": None}

    entries = (await client.get(f"/ledger/entries?payment={payment_id}")).body["items"]
    assert [entry["kind"] for entry in entries] == [
        "payment_authorized",
        "payment_captured",
        "capture_cleared",
    ]
    for entry in entries:
        assert sum(minor(posting["amount"]) for posting in entry["postings"]) == 0
        assert len(entry["hash"]) == 64 and entry["previous"] != entry["hash"]
    page = (await client.get("/ledger/accounts/holds:contra/entries?limit=2")).body
    more = (
        await client.get(f"/ledger/accounts/holds:contra/entries?limit=2&cursor={page['next_cursor']}")
    ).body
    places = [json.dumps(line["entry"], sort_keys=True) for line in page["items"] + more["items"]]
    assert len(set(places)) == 4, "a page goes on where the one before it ended"


async def test_a_closed_cycle_pays_each_merchant_what_the_ledger_owes(
    client: Client, settings: Settings, system: Up
) -> None:
    name = "/ledger/accounts/payable:merchant:statement-1"
    paid = await eventually(lambda: _after_a_cycle(client, settings, name), lambda found: found == "0.00")
    assert paid == "0.00"
    cycles = (await client.get("/settlement/cycles")).body["items"]
    assert cycles and all(cycle["positions"] > 0 for cycle in cycles)
    nets = 0
    for cycle in cycles:
        path = f"/settlement/cycles/{cycle['cycle']}/positions"
        rows = (await client.get(path)).body["items"]
        async with client.session.get(path, headers={"Accept": "text/csv"}) as response:
            assert response.content_type == "text/csv"
            file = list(csv.DictReader(StringIO(await response.text(), newline="")))
        assert [{**row, "items": str(row["items"])} for row in rows] == file
        nets += sum(minor(row["net"]) for row in rows)
        printed = run_cli(system, "settlement", "file", cycle["cycle"])
        assert list(csv.DictReader(StringIO(printed, newline=""))) == file
        document = json.loads(run_cli(system, "settlement", "file", cycle["cycle"], "--json"))
        assert sum(minor(net) for net in document["totals"].values()) == sum(
            minor(row["net"]) for row in rows
        )
    bank = (await client.get("/ledger/accounts/settlement:bank")).body["balances"][0]["balance"]
    assert minor(bank) == -nets, "nobody else was paid, and no cardholder paid"
    assert (await client.get("/settlement/cycles/2001-01-01T00:00:00Z/positions")).status == 404
    listed = json.loads(run_cli(system, "settlement", "cycles", "--json"))
    assert {cycle["cycle"] for cycle in listed} == {cycle["cycle"] for cycle in cycles}
    payments = (await client.get("/payments?merchant_id=statement-1")).body["items"]
    assert [(one["clearing_status"], one["captures"][0]["status"]) for one in payments] == [("settled",) * 2]


async def _after_a_cycle(client: Client, settings: Settings, name: str) -> str:
    await tick(settings, topics.CLEARING_ITEMS)
    await asyncio.sleep(0.3)
    return str((await client.get(name)).body["balances"][0]["balance"])


def run_cli(system: Up, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        mini_visa(*arguments),
        env=environment(system.home, MINI_VISA_BROKER=system.state().broker),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


# -- rules and alerts ------------------------------------------------------------------------------------

RULE = {"version": 2, "metric": "count", "window_s": 60, "threshold": 2, "outcome": "decline", "score": 60}


async def test_a_rule_is_tried_put_in_force_and_its_alert_is_streamed(client: Client, system: Up) -> None:
    url = "/rules/velocity-count-60s"
    card = await client.open()
    for _ in range(4):
        assert (await card.authorize("1.00")).body["status"] == "authorized"
    tried = await client.call("POST", f"{url}/backtest", RULE)
    assert tried.status == 200, tried
    assert tried.body["complete"] and tried.body["requests"] >= 4
    assert tried.body["changed"] >= 2 and tried.body["declined_before"] == 0
    ours = [one for one in tried.body["differences"] if one["account_id"] == card.account_id]
    assert [(one["before"], one["after"]) for one in ours] == [("", "65"), ("", "65")]

    async with client.session.get("/alerts/stream") as stream:
        assert stream.content_type == "text/event-stream"
        assert (await client.call("PUT", url, RULE)).body["threshold"] == 2
        assert (await client.call("PUT", url, RULE)).status == 200, "the same again changes nothing"
        assert (await client.call("PUT", url, {**RULE, "threshold": 3})).status == 409
        assert (await client.call("PUT", url, {**RULE, "version": 1})).status == 409
        wrong = await client.call("PUT", url, {**RULE, "version": 3, "window_s": 61})
        assert (wrong.status, wrong.body["errors"][0]["field"]) == (400, "window_s")
        rules = {rule["rule"]: rule for rule in (await client.get("/rules")).body["items"]}
        assert rules["velocity-count-60s"]["version"] == 2 and rules["declines-10m"]["version"] == 1
        shown = json.loads(run_cli(system, "rules", "list", "--json", "--url", system.state().gateway_url))
        assert shown == list(rules.values())

        cards = [await client.open() for _ in range(8)]  # of every partition
        codes = [[(await one.authorize("1.00")).code for _ in range(3)] for one in cards]
        assert codes == [["00", "00", "65"]] * 8
        seen: dict[str, str] = {}
        async with asyncio.timeout(WAIT_S):
            while len(seen) < 8:
                event = await _event(stream)
                if event.get("event") == "alert":
                    seen[json.loads(event["data"])["account_id"]] = event["id"]
    assert seen.keys() == {one.account_id for one in cards}

    first = next(iter(seen.values()))
    async with client.session.get("/alerts/stream", headers={"Last-Event-ID": first}) as again:
        async with asyncio.timeout(WAIT_S):
            missed = set()
            while len(missed) < 7:
                event = await _event(again)
                if event.get("event") == "alert":
                    missed.add(json.loads(event["data"])["account_id"])
    assert missed == set(list(seen)[1:]), "a client that comes back misses none and gets none twice"
    refused = await client.session.get("/alerts/stream", headers={"Last-Event-ID": "x"})
    assert refused.status == 400


async def _event(stream: Any) -> dict[str, str]:
    """The next event of a stream: field -> value."""
    found: dict[str, str] = {}
    while True:
        line = (await stream.content.readline()).decode().rstrip("\n")
        if not line:
            return found
        name, _, value = line.partition(": ")
        found[name] = value


# -- who sees what ---------------------------------------------------------------------------------------


async def test_what_another_client_has_made_is_not_there_where_the_scope_says_so(
    system: Up, settings: Settings, client: Client
) -> None:
    """A second gateway on the same system, which asks for keys."""
    own = ["payments:write:own", "payments:read:own", "accounts:write:own", "accounts:read:own"]
    keys = {name: create_key(system.home / "keys.json", name, own) for name in ("shop", "bank")}
    every = [scope.removesuffix(":own") for scope in own]
    keys["desk"] = create_key(system.home / "keys.json", "desk", every)
    app = create(settings.model_copy(update={"auth": "required", "gateway_id": 1}))
    runner = server(app)
    await runner.setup()
    sessions = {}
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for name, key in keys.items():
            sessions[name] = ClientSession(url, headers={"Authorization": f"Bearer {key}"})
        shop, bank, desk = (Client(sessions[name], []) for name in ("shop", "bank", "desk"))
        await eventually(lambda: shop.get("/payments"), lambda found: found.status == 200)
        card = await bank.open()
        card.client = shop
        payment_id = (await card.authorize("10.00")).body["payment_id"]
        for one, there in ((shop, True), (bank, False), (desk, True)):
            assert (await one.get(f"/payments/{payment_id}")).status == (200 if there else 404)
            assert (await one.get(f"/payments/{payment_id}/explanation")).status == (200 if there else 404)
            listed = (await one.get(f"/payments?account={card.account_id}")).body["items"]
            assert bool(listed) == there
        assert (await bank.post(f"/payments/{payment_id}/captures")).status == 404
        for one, there in ((shop, False), (bank, True), (desk, True)):
            account = f"/accounts/{card.account_id}"
            assert (await one.get(account)).status == (200 if there else 404)
            assert (await one.get(f"{account}/entries")).status == (200 if there else 404)
            assert (await one.post(f"{account}/payments", amount="1.00")).status == (200 if there else 404)
        assert (await desk.post(f"/payments/{payment_id}/captures")).status == 200
        assert (await shop.post(f"/payments/{payment_id}/refunds")).status == 200
        assert (await shop.get("/ledger/trial-balance")).status == 403
    finally:
        for session in sessions.values():
            await session.close()
        await runner.cleanup()


# -- sagas -----------------------------------------------------------------------------------------------


async def test_a_capture_that_waits_is_seen_with_its_age_and_a_rejected_one_is_compensated(
    client: Client, settings: Settings, system: Up
) -> None:
    card = await client.open()
    payment_id = (await card.authorize("30.00", merchant_id="sandbox-silent")).body["payment_id"]
    await client.post(f"/payments/{payment_id}/captures", amount="20.00", final=False)

    async def saga() -> dict[str, Any]:
        items = (await client.get("/sagas?limit=1000")).body["items"]
        return next((one for one in items if one["payment_id"] == payment_id), {})

    waiting = await eventually(saga, bool)
    assert (waiting["state"], waiting["step"], waiting["captures"]) == ("waiting", "clearing", [1])
    listed = {
        one["payment_id"]: one for one in json.loads(run_cli(system, "sagas", "--json", "--limit", "1000"))
    }
    assert listed[payment_id]["state"] == "waiting" and listed[payment_id]["age_s"] >= 0
    assert "No saga is late." in run_cli(system, "sagas", "--late")

    await command(
        settings,
        RecordClearing(account=card.account_id, request_id="no", payment_id=payment_id, n=1, accepted=False),
    )
    done = await eventually(
        lambda: client.get(f"/payments/{payment_id}"),
        lambda found: found.body["status"] == "reversed",
    )
    assert done.body["clearing_status"] == "compensated" and done.body["amounts"]["held"] == "0.00"
    await eventually(saga, lambda found: not found)
    await eventually(  # its postings sum to zero on each ledger account
        lambda: client.postings(card.account_id, [payment_id]),
        lambda sums: len(sums) == 4 and not any(sums.values()),
    )


def test_nothing_was_wrong_in_any_log(system: Up) -> None:
    for log in (system.home / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log
    assert sys.version_info >= (3, 11)
