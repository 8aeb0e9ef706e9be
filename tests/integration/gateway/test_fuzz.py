"""Attacks on the whole system as it runs: inputs made from its own OpenAPI document, ids of odd forms,
and the same request many times at once. No 500, and no answer that the document does not know.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from aiohttp import ClientSession
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from whole_system import Up, make_home

from mini_visa.demo.cards import card_numbers
from mini_visa.gateway.routes import ROUTES

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ATTACKED = [route for route in ROUTES if route.bounded and route.name != "put_rule"]
"""A rule that declines everything would spoil the other attacks; the back-test takes the same fields."""
_PANS = card_numbers(random.Random(7))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, jars_cache: Path) -> Iterator[str]:
    """Of the gateway of a whole system."""
    started = Up(make_home(tmp_path_factory.mktemp("fuzz"), jars_cache))
    try:
        started.until("Ready")
        yield started.state().gateway_url
        said = started.output.read_text()
        assert "a bug: please report it" not in said, said
    finally:
        started.end()


def opened(url: str, limit: str = "1000.00") -> tuple[str, str]:
    """(PAN, account id) of a new account."""
    pan = next(_PANS)
    answer = requests.post(
        f"{url}/accounts", json={"request_id": secrets.token_hex(8), "pan": pan, "limit": limit}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    return pan, answer.json()["account_id"]


@pytest.fixture(scope="module")
def known(url: str) -> dict[str, Any]:
    """Path parameters that lead somewhere."""
    pan, account = opened(url)
    body = {"request_id": secrets.token_hex(8), "pan": pan, "amount": "10.00"}
    answer = requests.post(f"{url}/payments/authorize", json=body, timeout=30)
    return {
        "payment_id": answer.json()["payment_id"],
        "account_id": account,
        "n": "1",
        "name": f"holds:cardholder:{account}",
        "cycle": "2026-01-01T00:00:00Z",
        "rule": "velocity-count-60s",
    }


@pytest.fixture(scope="module")
def api(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json", wait_for_schema=30)


CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("route", ATTACKED, ids=lambda route: route.name)
def test_no_input_is_a_server_error(
    url: str, api: Any, known: dict[str, Any], route: Any, mode: GenerationMode
) -> None:
    operation = api[route.path][route.method]

    @hypothesis.settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), leads_somewhere=st.booleans())
    def attack(case: Any, leads_somewhere: bool) -> None:
        if leads_somewhere and case.path_parameters:
            case.path_parameters = {name: known[name] for name in case.path_parameters}
        answer = case.call(base_url=url, timeout=30)
        assert answer.status_code not in (500, 503), answer.text
        if answer.status_code == 504:  # a made-up Consistency-Token names a position that never comes
            assert answer.json()["type"] == "urn:mini-visa:problem:not-yet-visible"
        if answer.status_code not in (404, 405):  # what schemathesis makes of a path may be another path
            case.validate_response(answer, checks=CHECKS)

    attack()


ODD_IDS = [
    "pay_", "pay__", "pay_a", "pay_a_", "pay_a_-1", "pay_a_ffffffffffffffff", "pay_a_fffffffffffffffff",
    "pay_a_ffffffffffff",
        "pay_a_7fffffffffffffff", "pay_a_8000000000000000", "pay_a_0x1", "pay_a_01", "pay_a_F", "pay_a_1%0a",
    "pay_a_1%00", "pay_%00_1", "pay_a_%D9%A1", "pay_%F0%9F%92%B3_1", "pay_a_%C2%B2", "pay_%ff_1",
    "pay_a_1%2f..",
    "pay_" + "a" * 64 + "_1", "pay_" + "a" * 65 + "_1", "pay_" + "a" * 5_000, "pay_a_1%20",
    "pay_'%20OR%201=1--_1",
    "pay_%7Bx%7D_1", "pay_a_1;x=1", "..%2f..%2fmetrics", "%2e%2e", "pay_4111111111111111_1", "null", "0",
]  # fmt: skip


def test_odd_ids_are_404_everywhere(url: str) -> None:
    for number, odd in enumerate(ODD_IDS):
        # An id that is well formed reaches its account, where each operation needs a request_id of its own.
        body, other, third = ({"request_id": f"odd-{number}-{operation}"} for operation in "abc")
        for answer in (
            requests.get(f"{url}/payments/{odd}", timeout=30),
            requests.get(f"{url}/payments/{odd}/explanation", timeout=30),
            requests.post(f"{url}/payments/{odd}/captures", json=body, timeout=30),
            requests.post(f"{url}/payments/{odd}/reversals", json=other | {"amount": "1.00"}, timeout=30),
            requests.post(f"{url}/payments/{odd}/chargebacks/%D9%A1/accept", json=third, timeout=30),
            requests.get(f"{url}/accounts/{odd.replace('pay_', 'tok_')}/entries", timeout=30),
        ):
            assert answer.status_code in (404, 405), (odd, answer.request.url, answer.text)
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert "4111111111111111" not in answer.text


async def test_one_request_sent_by_forty_at_once_has_one_outcome(url: str) -> None:
    pan, account = await asyncio.to_thread(opened, url)
    body = {"request_id": secrets.token_hex(8), "pan": pan, "amount": "10.00"}
    other = body | {"amount": "10.01"}
    async with ClientSession(url) as session:

        async def send(sent: dict[str, str]) -> tuple[int, str, bool]:
            async with session.post("/payments/authorize", json=sent) as answer:
                return answer.status, await answer.text(), "Idempotency-Replayed" in answer.headers

        answers = await asyncio.gather(*(send(other if n % 4 == 3 else body) for n in range(40)))
        done = [(text, replayed) for status, text, replayed in answers if status == 200]
        assert {status for status, _, _ in answers} == {200, 422}
        assert len({text for text, _ in done}) == 1
        assert sum(not replayed for _, replayed in done) == 1
        assert len(done) in (10, 30), "all of one meaning, none of the other"
        async with session.get(f"/accounts/{account}") as answer:
            assert (await answer.json())["held"] == ("10.00" if len(done) == 30 else "10.01")


async def test_an_id_that_was_used_for_one_operation_is_refused_for_another(url: str) -> None:
    pan, account = await asyncio.to_thread(opened, url)
    request_id = secrets.token_hex(8)
    async with ClientSession(url) as session:
        body = {"request_id": request_id, "pan": pan, "amount": "10.00"}
        async with session.post("/payments/authorize", json=body) as answer:
            payment = (await answer.json())["payment_id"]
        for method, path, sent in (
            ("POST", f"/payments/{payment}/captures", {}),
            ("POST", f"/payments/{payment}/increments", {"amount": "10.00"}),
            ("POST", f"/payments/{payment}/reversals", {}),
            ("PATCH", f"/accounts/{account}", {"limit": "5.00"}),
            ("POST", f"/accounts/{account}/payments", {"amount": "10.00"}),
            ("POST", "/payments/reversals", {"pan": pan, "original_request_id": "x"}),
            ("POST", "/payments/authorize", {"pan": pan, "amount": "10.00", "merchant_id": "m"}),
        ):
            async with session.request(method, path, json=sent | {"request_id": request_id}) as answer:
                assert answer.status == 422, (path, await answer.text())
                assert (await answer.json())["type"] == "urn:mini-visa:problem:request-id-reused"
        async with session.get(f"/payments/{payment}") as answer:
            amounts = (await answer.json())["amounts"]
            assert (amounts["authorized"], amounts["held"], amounts["captured"]) == ("10.00", "10.00", "0.00")


async def test_an_explanation_has_what_the_decision_saw(url: str) -> None:
    pan, _ = await asyncio.to_thread(opened, url, "15.00")
    async with ClientSession(url) as session:

        async def explained(amount: str) -> dict[str, Any]:
            body = {"request_id": secrets.token_hex(8), "pan": pan, "amount": amount}
            async with session.post("/payments/authorize", json=body) as answer:
                payment = (await answer.json())["payment_id"]
            async with session.get(f"/payments/{payment}/explanation") as answer:
                assert answer.status == 200
                found: dict[str, Any] = await answer.json()
                return found

        approved, declined = await explained("10.00"), await explained("10.00")
        assert approved["decision"]["response_code"] == "00" and declined["decision"]["response_code"] == "51"
        assert [one["decision"]["available_before"] for one in (approved, declined)] == ["15.00", "5.00"]
        assert approved["decision"]["limit"] == "15.00" and approved["risk"]["evaluated"]
        assert approved["decision"]["command"]["topic"] == "account.commands"
        assert approved["decision"]["event"]["offset"] < declined["decision"]["event"]["offset"]
        for _ in range(9):
            last = await explained("0.00")
        (hit,) = [rule for rule in last["risk"]["rules"] if rule["outcome"] == "decline"]
        assert hit["value"] > hit["threshold"] and hit["version"] >= 1 and hit["window_s"] > 0
        assert last["decision"]["response_code"] == "65"
