"""The authorization service on one partition, in memory."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from agents.authorization import EXPIRED_PER_TICK_MAX, authorization
from mini_visa import topics
from mini_visa.domain.answers import Answer
from mini_visa.domain.commands import (
    Authorize,
    CapturePayment,
    Command,
    Increment,
    OpenAccount,
    OpenChargeback,
    PaymentOutcome,
    RecordClearing,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
    Tick,
)
from mini_visa.domain.events import HoldExpired, PaymentAuthorized, TimePassed
from mini_visa.domain.payment import Card, Payment, PaymentStatus
from mini_visa.domain.terms import Terms
from mini_visa.domain.testing import NOON
from mini_visa.streams.testing import Driver
from tables import accounts
from tables.accounts import (
    ACCOUNTS,
    FORGOTTEN_PER_TICK_MAX,
    HOLDS,
    PAYMENTS,
    REQUESTS,
    WAKES,
    RequestRow,
    Standing,
)

DAY = 86_400_000
ACCOUNT = "tok_1one"


def a_service(accounts: int = 1, limit: int = 100_000) -> Driver:
    driver = Driver(authorization)
    for number in range(accounts):
        account = ACCOUNT if not number else f"tok_1other{number}"
        send(
            driver,
            OpenAccount(
                account=account, request_id="open", bin="411111", last4="1111", currency="USD", limit=limit
            ),
        )
    driver.outputs.clear()
    return driver


def send(driver: Driver, command: Command, at: int = NOON) -> None:
    driver.send(command, key=command.account.encode(), at=at)


def an_authorization(request_id: str = "r1", *, account: str = ACCOUNT, **fields: Any) -> Authorize:
    whole = {"amount": 1000, "currency": "USD", "card": Card(token=account, bin="411111", last4="1111")}
    return Authorize(account=account, request_id=request_id, **{**whole, **fields})


def test_the_answer_goes_to_the_gateway_that_asked_with_its_place_in_the_log() -> None:
    driver = a_service()
    send(driver, an_authorization(attempt="g2-77", reply_partition=2))
    [answer] = [output for output in driver.outputs if output.topic == topics.GATEWAY_REPLIES.name]
    assert answer.partition == 2 and answer.key == ACCOUNT.encode()
    message: Answer = driver.sent(topics.GATEWAY_REPLIES)[0]
    assert (message.attempt, message.partition, message.position, message.replayed) == ("g2-77", 0, 1, False)
    [event] = driver.sent(topics.PAYMENT_EVENTS)
    assert type(event) is PaymentAuthorized and message.outcome.payment == event.payment


def test_nobody_is_answered_who_does_not_wait() -> None:
    driver = a_service()
    send(driver, an_authorization(attempt="a1"))
    assert driver.sent(topics.PAYMENT_EVENTS) and not driver.sent(topics.GATEWAY_REPLIES)


def test_a_replay_is_answered_and_leaves_no_event() -> None:
    driver = a_service()
    send(driver, an_authorization(attempt="a1", reply_partition=0))
    send(driver, an_authorization(attempt="a2", reply_partition=1), at=NOON + DAY - 1)
    first, second = driver.sent(topics.GATEWAY_REPLIES)
    assert second.replayed and second.outcome == first.outcome and second.attempt == "a2"
    assert len(driver.sent(topics.PAYMENT_EVENTS)) == 1


def test_a_request_id_is_forgotten_after_its_window_also_across_midnight() -> None:
    driver = a_service()
    for at in (NOON, NOON + DAY - 1, NOON + DAY, NOON + 2 * DAY - 1):
        send(driver, an_authorization(reply_partition=0), at=at)
    assert [answer.replayed for answer in driver.sent(topics.GATEWAY_REPLIES)] == [False, True, False, True]


def test_risk_is_told_of_declines_once() -> None:
    driver = a_service()
    send(driver, an_authorization("r1"))
    send(driver, an_authorization("r2", amount=100_000))
    send(driver, an_authorization("r2", amount=100_000))
    [outcome] = driver.sent(topics.CARD_REQUESTS)
    assert type(outcome) is PaymentOutcome
    assert (outcome.request_id, outcome.response_code, outcome.amount) == ("r2", "51", 100_000)


def test_a_tick_ends_holds_of_every_account_and_passes_the_time_on() -> None:
    driver = a_service(accounts=3)
    for account in (ACCOUNT, "tok_1other1", "tok_1other2"):
        send(driver, an_authorization(account=account))
    driver.outputs.clear()
    driver.send(Tick(), at=NOON + 7 * DAY)
    events = driver.sent(topics.PAYMENT_EVENTS)
    assert [type(event) for event in events] == [HoldExpired] * 3 + [TimePassed]
    assert {output.key for output in driver.outputs[:3]} == {b"tok_1one", b"tok_1other1", b"tok_1other2"}
    assert all(output.partition == 0 for output in driver.outputs)
    assert not driver.rows(HOLDS) and not driver.rows(WAKES)


def test_a_tick_does_a_bounded_amount_and_the_next_one_goes_on() -> None:
    driver = a_service(limit=10**9)
    for number in range(EXPIRED_PER_TICK_MAX + 5):
        send(driver, an_authorization(f"r{number}", amount=1))
    driver.outputs.clear()
    driver.send(Tick(), at=NOON + 7 * DAY)
    assert len(driver.sent(topics.PAYMENT_EVENTS)) == EXPIRED_PER_TICK_MAX + 1
    driver.outputs.clear()
    driver.send(Tick(), at=NOON + 7 * DAY)
    assert len(driver.sent(topics.PAYMENT_EVENTS)) == 5 + 1
    assert driver.row(ACCOUNTS, ACCOUNT).held == 0


def test_ticks_forget_requests_that_are_out_of_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "FORGOTTEN_PER_TICK_MAX", 3)
    assert FORGOTTEN_PER_TICK_MAX > 3
    driver = a_service()
    for number in range(4):
        send(driver, an_authorization(f"r{number}"))
    send(driver, an_authorization("late"), at=NOON + 2 * DAY)
    assert len(driver.rows(REQUESTS)) == 6
    driver.send(Tick(), at=NOON + 2 * DAY)
    assert len(driver.rows(REQUESTS)) == 3
    driver.send(Tick(), at=NOON + 2 * DAY)
    driver.send(Tick(), at=NOON + 2 * DAY)
    assert [key.rpartition("/")[2] for key in driver.rows(REQUESTS)] == ["late"]


@pytest.mark.parametrize(
    ("key", "command", "reason"),
    [
        (b"tok_1other", an_authorization(), "key"),
        (None, an_authorization(), "key"),
        (ACCOUNT.encode(), an_authorization(currency="XYZ"), "ISO 4217"),
        (ACCOUNT.encode(), an_authorization(request_id="a/b"), "slash"),
        (ACCOUNT.encode(), an_authorization(reply_partition=99), "gateway.replies"),
        (ACCOUNT.encode(), an_authorization(amount=-1), "Undecodable|amount"),
        (ACCOUNT.encode(), an_authorization(metadata={"k": "x" * 10_000}), "metadata"),
        (ACCOUNT.encode(), an_authorization(request_id="x" * 1_000), "request_id"),
    ],
)
def test_garbage_is_a_dead_letter_and_the_next_command_is_decided(
    key: bytes | None, command: Command, reason: str
) -> None:
    driver = a_service()
    driver.send(command, key=key, at=NOON)
    [letter] = driver.dead_letters()
    assert any(part in dict(letter.headers)["reason"].decode() for part in reason.split("|"))
    send(driver, an_authorization())
    assert len(driver.sent(topics.PAYMENT_EVENTS)) == 1


def test_a_refund_is_answered_again_with_the_fees_that_had_gone_back_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a payment's row says now is not what it said: each of the two refunds took fees back."""
    monkeypatch.setattr("agents.authorization.TERMS", Terms(mirror_refund_fees=True))
    driver = a_service()
    send(driver, an_authorization(capture=True, amount=10_000, attempt="a", reply_partition=0))
    payment_id = driver.sent(topics.GATEWAY_REPLIES)[0].outcome.payment.payment_id
    send(driver, RecordClearing(account=ACCOUNT, request_id="c", payment_id=payment_id, n=1, accepted=True))
    first = RefundPayment(
        account=ACCOUNT, request_id="f", payment_id=payment_id, amount=4_000, attempt="1", reply_partition=0
    )
    send(driver, first)
    send(driver, replace(first, request_id="g", amount=6_000, attempt="2"))
    send(driver, replace(first, attempt="3"))
    before, after, again = (answer.outcome.payment for answer in driver.sent(topics.GATEWAY_REPLIES)[1:])
    assert 0 < before.interchange_returned < after.interchange_returned
    assert again == before


def test_a_stored_answer_has_all_of_a_payment_that_can_change() -> None:
    never_changes = {
        "payment_id", "account", "client", "request_id", "card", "currency", "amount", "created_at",
        "authorization_code", "expires_at", "merchant", "metadata", "verdict",
    }  # fmt: skip
    assert set(Payment.__struct_fields__) - set(Standing.__struct_fields__) == never_changes - {
        "payment_id", "request_id",
    }  # fmt: skip


def test_a_stored_answer_of_before_fees_were_kept_is_read() -> None:
    """Recorded: its standing has 21 members."""
    amounts = [9, 9, 0, 0, 9, 4, 0, 0]
    outcome = [200, "f", "00", "pay_1one_1", "captured", "00", *amounts, True, False, [], [], [], False, ""]
    recorded = b"\x02" + msgspec.msgpack.encode([NOON, "refund", "f", ["1"], [], None, outcome])
    row: RequestRow = REQUESTS.decode(recorded)
    payment = Payment(
        payment_id="pay_1one_1", account=ACCOUNT, client="", request_id="r1", currency="USD", amount=9,
        card=Card(token=ACCOUNT, bin="411111", last4="1111"), status=PaymentStatus.CAPTURED,
        response_code="00", created_at=NOON, interchange_returned=7,
    )  # fmt: skip
    assert row.standing is not None
    then = row.standing.outcome(payment).payment
    assert then is not None and (then.refunded, then.interchange_returned) == (4, 7)


def test_a_hot_account_touches_as_few_rows_as_any_other() -> None:
    """1,000 open holds and 10,000 recent requests: a command writes and reads the same few rows."""
    driver = a_service(limit=10**9)
    for number in range(1_000):
        send(driver, an_authorization(f"r{number}", amount=1))
    for number in range(9_000):
        send(driver, CapturePayment(account=ACCOUNT, request_id=f"c{number}", payment_id="pay_1one_0"))
    assert len(driver.rows(HOLDS)) == 1_000 and len(driver.rows(REQUESTS)) == 10_001
    store, reads = driver.store, []
    get, scan = store.get, store.scan
    store.get = lambda key: (reads.append(key), get(key))[1]  # type: ignore[method-assign]
    store.scan = lambda start, stop: (reads.append(start), scan(start, stop))[1]  # type: ignore[method-assign]
    before = dict(store.rows)
    send(driver, an_authorization("next", amount=1))
    changed = [key for key, row in store.rows.items() if before.get(key) != row]
    assert len(changed) <= 4 and len(reads) <= 4
    assert len(driver.rows(PAYMENTS)) == 1_001


def test_the_same_log_gives_the_same_bytes() -> None:
    def live() -> tuple[list[Any], dict[bytes, bytes]]:
        driver = a_service()
        for number in range(20):
            send(driver, an_authorization(f"r{number % 7}", reply_partition=1), at=NOON + number * DAY // 3)
            driver.send(Tick(), at=NOON + number * DAY // 3)
        return driver.outputs, driver.store.rows

    assert live() == live()


def test_a_retry_is_told_the_payment_as_it_was_whatever_became_of_it_since() -> None:
    """A stored request keeps only what may change of its payment; the rest is in the payment's row."""
    driver = a_service()
    metadata = {"order": "7"}
    send(driver, an_authorization(attempt="a", reply_partition=0, capture=False, metadata=metadata))
    payment_id = driver.sent(topics.GATEWAY_REPLIES)[0].outcome.payment.payment_id
    about: dict[str, Any] = {"account": ACCOUNT, "payment_id": payment_id, "reply_partition": 0}
    commands: list[Command] = [
        an_authorization(attempt="a", reply_partition=0, capture=False, metadata=metadata),
        Increment(**about, request_id="r2", attempt="a", amount=500, exponent=2),
        CapturePayment(**about, request_id="r3", attempt="a", amount=700, exponent=2, final=False),
        RefundPayment(**about, request_id="r4", attempt="a", amount=100, exponent=2),
        RecordClearing(**about, request_id="r5", attempt="a", n=1, accepted=True),
        OpenChargeback(**about, request_id="r6", attempt="a", reason_code="10.4", amount=50, exponent=2),
        RepresentChargeback(**about, request_id="r7", attempt="a", n=1),
        ReversePayment(**about, request_id="r8", attempt="a", amount=300, exponent=2),
        CapturePayment(**about, request_id="r9", attempt="a", final=True),
        ReversePayment(**about, request_id="r10", attempt="a"),
    ]
    for command in commands[1:]:
        send(driver, command)
    first = driver.sent(topics.GATEWAY_REPLIES)
    assert [answer.outcome.status for answer in first] == [200] * 9 + [409]
    assert all(answer.outcome.payment.metadata == metadata for answer in first)
    driver.outputs.clear()
    for command in commands:
        send(driver, replace(command, attempt="b"))
    again = driver.sent(topics.GATEWAY_REPLIES)
    assert [answer.outcome for answer in again] == [answer.outcome for answer in first]
    assert all(answer.replayed for answer in again)
