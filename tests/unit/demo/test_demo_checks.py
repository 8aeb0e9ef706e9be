"""Each check sees what it is there to see, and fails when it has seen nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
import pytest

from mini_visa.demo import checks
from mini_visa.demo.model import ModelAccount
from mini_visa.demo.script import Lane, Script, Step
from mini_visa.demo.traffic import Answer, Traffic

PAN = "4111110000000005"


class Fact(NamedTuple):
    value: bytes


async def facts(*events: dict[str, Any]) -> AsyncIterator[Fact]:
    for event in events:
        yield Fact(orjson.dumps(event))


def an_event(
    kind: str, seq: int, request_id: str, *, held: int = 0, posted: int = 0, **more: Any
) -> dict[str, Any]:
    account = {"account_id": "tok_1", "limit": 100_00, "held": held, "posted": posted}
    payment = {"payment_id": f"pay_{request_id}", "account": "tok_1", "request_id": request_id}
    shown = {} if kind.startswith("account_") else {"payment": {**payment, **more.pop("payment", {})}}
    return {"type": f"{kind}/1", "seq": seq, "request_id": request_id, "account": account, **shown, **more}


OPENED = an_event("account_opened", 1, "run-0")


def a_lane() -> Lane:
    """An account and one approved payment of 10.00."""
    account = ModelAccount(limit=100_00)
    account.authorize("run-1", 10_00, currency="USD")
    step = Step("authorize", "run-1", "/payments/authorize", {}, code="00", payment_status="authorized")
    return Lane(PAN, account, {"request_id": "run-0"}, [step], account_id="tok_1")


def answers(lane: Lane, **changes: Any) -> Traffic:
    values = {
        "status": 200,
        "code": "00",
        "payment_status": "authorized",
        "replayed": False,
        "latency_ms": 1.0,
    }
    return Traffic({0: [Answer(lane.steps[0], **{**values, **changes})]})


HELD = an_event("payment_authorized", 2, "run-1", held=10_00, amount=10_00)


def test_a_check_that_looked_at_nothing_has_not_passed():
    assert not checks.Check("something").passed


def test_offenders_are_counted_and_only_the_first_are_kept():
    check = checks.Check("something", 10)
    for number in range(20):
        check.wrong(str(number))
    assert check.offenders_count == 20 and check.offenders == ["0", "1", "2", "3", "4"]


def test_a_request_without_an_answer_is_seen():
    lane = a_lane()
    assert checks.answered(Script(1, [lane]), answers(lane)).passed
    assert not checks.answered(Script(1, [lane]), answers(lane, status=0)).passed
    assert not checks.answered(Script(1, [lane]), Traffic({0: []})).passed


def test_a_code_that_was_not_expected_is_seen_in_the_sums():
    lane = a_lane()
    assert checks.codes_add_up(Script(1, [lane]), answers(lane)).passed
    assert not checks.codes_add_up(Script(1, [lane]), answers(lane, code="51")).passed


async def test_one_event_for_each_request_is_what_is_wanted():
    lane = a_lane()
    found = await checks.history(facts(OPENED, HELD), "run-")
    assert checks.events_once(Script(1, [lane]), answers(lane), found).passed


async def test_events_of_other_runs_and_of_time_passing_do_not_count():
    lane = a_lane()
    others = (
        {"type": "time_passed/1", "at": 1},
        {**an_event("account_opened", 1, "else"), "account": {"account_id": "tok_2"}},
    )
    found = await checks.history(facts(OPENED, *others, HELD), "run-")
    assert found.events == 2
    assert checks.events_once(Script(1, [lane]), answers(lane), found).passed


@pytest.mark.parametrize(
    ("what", "events"),
    [
        ("an event is missing", [OPENED]),
        ("an event is there twice", [OPENED, HELD, {**HELD, "seq": 3}]),
        ("a seq is left out", [OPENED, {**HELD, "seq": 3}]),
        ("a seq comes twice", [OPENED, {**HELD, "seq": 1}]),
        ("nobody sent it", [OPENED, HELD, an_event("payment_declined", 3, "run-2", held=10_00)]),
        ("the hold is not what was added", [OPENED, {**HELD, "amount": 9_99}]),
        ("it is another kind", [OPENED, {**HELD, "type": "payment_reversed/1", "amount": -10_00}]),
    ],
)
async def test_wrong_events_are_seen(what, events):
    lane = a_lane()
    found = await checks.history(facts(*events), "run-")
    assert not checks.events_once(Script(1, [lane]), answers(lane), found).passed, what


async def test_a_fold_follows_holds_captures_reversals_and_payments():
    events = [
        OPENED,
        an_event("payment_authorized", 2, "run-1", held=50_00, amount=50_00),
        an_event(
            "payment_captured", 3, "run-2", posted=30_00, amount=30_00, hold_used=30_00, hold_freed=20_00
        ),
        an_event("account_paid", 4, "run-3", posted=10_00, amount=20_00),
        an_event("payment_authorized", 5, "run-4", held=5_00, posted=10_00, amount=5_00),
        an_event("payment_incremented", 6, "run-5", held=7_00, posted=10_00, amount=2_00),
        an_event("payment_reversed", 7, "run-6", held=1_00, posted=10_00, amount=6_00),
        an_event("hold_expired", 8, "run-7", posted=10_00, amount=1_00),
    ]
    found = await checks.history(facts(*events), "run-")
    assert found.wrong == []
    assert (found.accounts["tok_1"].held, found.accounts["tok_1"].posted) == (0, 10_00)


async def test_a_payment_that_ended_otherwise_is_seen():
    lane = a_lane()
    payment = {"status": "authorized", "response_code": "00", "authorized": 10_00}
    right = await checks.history(facts(OPENED, {**HELD, "payment": {**HELD["payment"], **payment}}), "run-")
    assert checks.payments_of(right, Script(1, [lane])).passed
    payment["status"] = "reversed"
    wrong = await checks.history(facts(OPENED, {**HELD, "payment": {**HELD["payment"], **payment}}), "run-")
    assert not checks.payments_of(wrong, Script(1, [lane])).passed


@pytest.mark.parametrize(
    "data",
    [
        PAN.encode(),
        b'{"pan":"' + PAN.encode() + b'"}',
        b"12" + PAN.encode() + b"345",
        b"\x00\xff" + PAN.encode() + b"\xfe",
    ],
)
def test_a_card_number_is_found_whatever_is_around_it_and_not_repeated_in_full(data):
    found = list(checks.PanSearch([a_lane()]).find(data))
    assert found == [f"{PAN[:6]}...{PAN[-4:]}"]


def test_other_digits_are_no_card_number():
    search = checks.PanSearch([a_lane()])
    assert not list(search.find(b"4111110000000006 1795405632000 " + b"1" * 500))


def test_a_card_number_across_two_blocks_of_a_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "READ_BYTES", 64)
    (tmp_path / "a.log").write_bytes(b"x" * 56 + PAN.encode() + b"y" * 100)
    check = checks.no_pan_in_files(tmp_path, checks.PanSearch([a_lane()]))
    assert check.offenders == [f"a.log: {PAN[:6]}...{PAN[-4:]}"]


CONTROLLER = (
    "ControllerApis: [ControllerApis nodeId=1] Unexpected error handling request RequestHeader(apiKey="
)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("2026-01-01T00:00:00.000Z INFO    risk: 3 errors avoided", False),
        ("2026-01-01T00:00:00.000Z ERROR   risk: no", True),
        ("2026-01-01T00:00:00.000Z CRITICAL risk: no", True),
        ("Traceback (most recent call last):", True),
        ("[2026-01-01] FATAL Exiting Kafka", True),
        ("[2026-01-01] ERROR EventPerformanceMonitor: Exceptionally slow controller event", False),
        ("x ERROR   fetcher: Failed fetch offsets from 1: [Error 6] NotLeaderForPartitionError: y", False),
        ("x ERROR   fetcher: Failed fetch offsets from 1: [Error 29] TopicAuthorizationFailed: y", True),
        (f"x ERROR {CONTROLLER}CONTROLLER_REGISTRATION, apiVersion=0, clientId=1, z", False),
        (f"x ERROR {CONTROLLER}BROKER_REGISTRATION, apiVersion=0, clientId=1, z", True),
    ],
)
def test_errors_in_logs_are_seen(tmp_path, line, bad):
    (tmp_path / "risk.log").write_text(f"fine\n{line}\n")
    assert checks.no_error_in_logs([tmp_path / "risk.log"]).passed is not bad
