"""The command line's broker, topics, events and doctor commands, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from mini_visa import kafka, topics
from mini_visa.domain.events import AccountOpened, PaymentAuthorized, PaymentUnknownCard, TimePassed
from mini_visa.domain.payment import Account, Card, Payment, PaymentStatus

pytestmark = pytest.mark.broker

AT = 1_795_404_142_802  # 2026-11-23T03:22:22.802Z
CARD = Card(token="tok_a", bin="411111", last4="1111")
ACCOUNT = Account(account_id="tok_a", bin="411111", last4="1111", currency="USD", limit=100_000)


def _payment(account: str, status: PaymentStatus, code: str) -> Payment:
    return Payment(
        payment_id=f"pay_{account}", account=account, client="", request_id="r-1", card=CARD, currency="USD",
        amount=1_000, status=status, response_code=code, created_at=AT,
    )  # fmt: skip


OPENED = AccountOpened(at=AT, seq=1, position=0, account=ACCOUNT)
AUTHORIZED = PaymentAuthorized(
    at=AT + 1_000, seq=2, position=1, account=ACCOUNT, amount=1_000,
    payment=_payment("tok_a", PaymentStatus.AUTHORIZED, "00"),
)  # fmt: skip
UNKNOWN = PaymentUnknownCard(
    at=AT + 2_000, position=2, payment=_payment("tok_b", PaymentStatus.DECLINED, "14")
)


class Shell:
    """Runs `mini-visa` in a process of its own with the test's broker."""

    def __init__(self, home: str, address: str) -> None:
        self.environment = os.environ | {"MINI_VISA_HOME": home, "MINI_VISA_BROKER": f"kafka://{address}"}
        self.address = address

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mini_visa.cli", *arguments],
            capture_output=True, text=True, timeout=120, env=self.environment,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture
def shell(tmp_path, fresh_broker) -> Iterator[Shell]:
    return Shell(str(tmp_path / "home"), fresh_broker.address)


async def _write(address: str, *records: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    try:
        for record in records:
            await producer.send_and_wait(topics.PAYMENT_EVENTS.name, record, partition=0)
    finally:
        await producer.stop()


async def test_a_newcomer_creates_the_topics_and_the_doctor_is_content(shell):
    assert "payment.events is missing" in shell("doctor", code=1)
    created = json.loads(shell("topics", "apply", "--json"))
    assert {change["action"] for change in created} == {"created"}
    assert shell("topics", "apply") == "All topics are as they should be.\n"
    listed = {topic["name"]: topic for topic in json.loads(shell("topics", "list", "--json"))}
    assert listed["payment.events"]["partitions"] == 2
    assert "for ever" in shell("topics", "list")
    checks = {check["subject"]: check for check in json.loads(shell("doctor", "--json"))}
    assert checks["topics"]["verdict"] == checks["dead letters"]["verdict"] == "OK"


async def test_the_doctor_asks_the_coordinator_of_every_group(shell):
    """Groups of these names are those of a system; where each is kept was read in a broker's own files."""
    async with AIOKafkaConsumer(bootstrap_servers=shell.address, group_id="somebody"):
        pass  # now there are coordinators
    checks = {check["subject"]: check for check in json.loads(shell("doctor", "--json", code=1))}
    assert checks["coordinators"] == {
        "subject": "coordinators", "verdict": "OK", "finding": "all groups have one", "remedy": "",
    }  # fmt: skip
    kept = {"risk.assess": 2, "authorization.decide": 2, "reversal.compensate": 2, "connector": 0,
            "projection": 0, "ledger.balances": 1, "ledger.journal": 1, "clearing.net": 3}  # fmt: skip
    assert {name: kafka._coordinator_of(f"dev.{name}", 4) for name in kept} == kept


async def test_the_doctor_names_what_waits_and_what_was_refused(shell):
    shell("topics", "apply")
    producer = AIOKafkaProducer(bootstrap_servers=shell.address)
    await producer.start()
    await producer.send_and_wait(topics.dead_letters("risk"), b"?")
    await producer.stop()
    checks = {check["subject"]: check for check in json.loads(shell("doctor", "--json"))}
    assert checks["dead letters"]["verdict"] == "WARN"
    assert checks["dead letters"]["finding"] == "risk.dead-letters 1"


async def test_events_are_lines_that_people_can_read(shell):
    shell("topics", "apply")
    encode = topics.PAYMENT_EVENTS.encode
    ticks = [encode(TimePassed(at=AT, position=9))] * 2
    await _write(
        shell.address, encode(OPENED), *ticks, encode(AUTHORIZED), b"not an event", encode(UNKNOWN), *ticks
    )
    assert shell("events", "tail", "--from-beginning", "--no-follow").splitlines() == [
        "03:22:22.802  1111  account opened              1000.00 USD  limit, active",
        "03:22:23.802  1111  authorized                    10.00 USD  00 approved  pay_tok_a",
        "              ????  not a payment event                      at 0:4",
        "03:22:24.802  1111  unknown card                  10.00 USD  14 invalid card  pay_tok_b",
    ]
    only = shell("events", "tail", "--from-beginning", "--no-follow", "--account", "tok_b")
    assert only.count("\n") == 1 and "unknown card" in only
    first = json.loads(shell("events", "tail", "--from-beginning", "--count", "1", "--json"))
    assert (first["partition"], first["offset"], first["event"]["type"]) == (0, 0, "account_opened/1")


async def test_following_shows_what_comes_after_the_start(shell):
    shell("topics", "apply")
    encode = topics.PAYMENT_EVENTS.encode
    await _write(shell.address, encode(OPENED))
    with subprocess.Popen(  # noqa: ASYNC220 (it is started once, at the beginning)
        [sys.executable, "-m", "mini_visa.cli", "events", "tail", "--count", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shell.environment,
    ) as following:  # fmt: skip
        try:
            while following.poll() is None:  # it says nothing when it is ready: keep events coming
                await _write(shell.address, encode(AUTHORIZED))
            out, err = following.communicate(timeout=60)
        finally:
            following.kill()
    assert following.returncode == 0, err
    assert out.count("\n") == 1 and "authorized" in out


def test_the_broker_is_started_found_and_stopped(tmp_path, jars_cache):
    home = tmp_path / "home"
    (home / "broker").mkdir(parents=True)
    for libs in jars_cache.glob("libs-*"):
        (home / "broker" / libs.name).symlink_to(libs)  # fetched already: this is not about Maven
    shell = Shell(str(home), "unused:1")
    del shell.environment["MINI_VISA_BROKER"]
    try:
        started = json.loads(shell("broker", "start", "--json"))
        assert started["started"] and started["answers"]
        assert json.loads(shell("broker", "start", "--json"))["started"] is False
        assert f"answers at {started['address']}" in shell("broker", "status")
        assert len(shell("broker", "logs", "-n", "5").splitlines()) == 5
        shell("topics", "apply")
    finally:
        assert shell("broker", "stop") == "Kafka stopped.\n"
    assert "not running" in shell("broker", "status", code=1)
