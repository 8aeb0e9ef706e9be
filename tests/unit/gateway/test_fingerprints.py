"""What makes two requests the same: their meaning, not their bytes."""

from __future__ import annotations

from typing import Any

import pytest

from mini_visa.gateway.endpoints import fingerprint, take_idempotency_key
from mini_visa.gateway.problems import Problem
from mini_visa.gateway.requests import AUTHORIZE

GOOD: dict[str, Any] = {"request_id": "r1", "pan": "4111111111111111", "amount": "10.00"}
ACCOUNT = "tok_1abc"


def digest(
    members: dict[str, Any],
    name: str = "authorize",
    account: str = ACCOUNT,
    path: dict[str, str] | None = None,
) -> str:
    values = AUTHORIZE.read(members)
    del values["pan"]
    return fingerprint(name, account, path or {}, values)


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(GOOD.items())),
        GOOD | {"request_id": "r2"},
        GOOD | {"capture": False, "partial_approval": False, "metadata": {}},
    ],
    ids=["another order", "another request_id", "defaults written out"],
)
def test_the_same_meaning_has_the_same_digest(same: dict[str, Any]) -> None:
    assert digest(same) == digest(GOOD)


def test_the_order_of_metadata_has_no_meaning() -> None:
    assert digest(GOOD | {"metadata": {"a": "1", "b": "2"}}) == digest(
        GOOD | {"metadata": {"b": "2", "a": "1"}}
    )


def test_each_other_meaning_has_another_digest() -> None:
    digests = [
        digest(GOOD),
        digest(GOOD, name="increment"),
        digest(GOOD, account="tok_1abd"),
        digest(GOOD, path={"payment_id": "pay_1abc_1"}),
        digest(GOOD, path={"payment_id": "pay_1abc_2"}),
        *(
            digest(GOOD | change)
            for change in (
                {"amount": "10.01"}, {"currency": "USD"}, {"merchant_id": "m1"}, {"mcc": "5411"},
                {"terminal_id": "m1"}, {"country": "DE"}, {"device_id": "m1"}, {"ip": "127.0.0.1"},
                {"expiry": "2028-09"}, {"cvv_match": True}, {"cvv_match": False}, {"capture": True},
                {"partial_approval": True}, {"metadata": {"a": "1"}}, {"metadata": {"a": "2"}},
                {"metadata": {"1": "a"}},
            )
        ),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)


def test_the_digest_never_changes_from_one_version_to_the_next() -> None:
    """A retry may reach a gateway of another version."""
    assert fingerprint("authorize", ACCOUNT, {}, {"amount": "10.00", "currency": None}) == (
        "da4908c05292af2e6ad868d70266f076"
    )


@pytest.mark.parametrize(
    ("headers", "members", "request_id"),
    [
        ([], {"request_id": "r1"}, "r1"),
        (["r1"], {}, "r1"),
        (["r1"], {"request_id": "r1"}, "r1"),
        (['"r1"'], {}, "r1"),
        ([" r1 "], {}, "r1"),
    ],
)
def test_the_header_carries_the_request_id_or_agrees_with_it(
    headers: list[str], members: dict[str, Any], request_id: str
) -> None:
    take_idempotency_key(headers, members)
    assert members["request_id"] == request_id


@pytest.mark.parametrize(
    ("headers", "members"),
    [
        (["r2"], {"request_id": "r1"}),
        (["r1"], {"request_id": 1}),
        (["r1"], {"request_id": None}),
        (["r1", "r1"], {}),
        ([""], {}),
        (['""'], {}),
        (['"'], {}),
        (["r 1"], {}),
        (["r" * 65], {}),
        (["4111 1111 1111 1111"], {}),
    ],
)
def test_a_header_that_disagrees_or_is_no_id_is_refused_by_its_name(
    headers: list[str], members: dict[str, Any]
) -> None:
    with pytest.raises(Problem) as caught:
        take_idempotency_key(headers, members)
    assert (caught.value.status, caught.value.errors[0].field) == (400, "Idempotency-Key")
    assert "4111" not in caught.value.body().decode()
