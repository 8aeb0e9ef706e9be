"""Every bad value of every field: refused with the field's name, never with the value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_visa.gateway import requests
from mini_visa.gateway.fields import Body, money
from mini_visa.gateway.problems import Problem

PAN = "4111111111111111"
GOOD: dict[str, Any] = {"request_id": "r1", "pan": PAN, "amount": "10.00"}

BODIES = {
    body.name: body for body in vars(requests).values() if isinstance(body, Body) and body.family is None
}


def errors_of(body: Body, members: dict[str, Any]) -> dict[str, str]:
    """field -> message of what is wrong; empty when nothing is."""
    try:
        body.read(members)
    except Problem as problem:
        assert problem.status == 400
        return {error.field: error.message for error in problem.errors}
    return {}


NO_STRING: list[Any] = [None, 1, 1.5, True, [], {}, [PAN]]

BAD: dict[str, list[Any]] = {
    "amount": [
        *NO_STRING, "", "-10.00", "+10.00", "1e5", "1E5", "NaN", "nan", "Infinity", "10.", ".5", "010.00",
        "00", " 10.00", "10.00 ", "10.00\n", "1,000.00", "1_000", "0x10", "10.00000", str(10**30), "9" * 33,
        f"{10**30}.00", "١٠.٠٠", "１０.００", "10.0０", "10\u00a0", "--1", "1.0.0", PAN, "ten",
    ],
    "pan": [
        *NO_STRING, "", "4111 1111 1111 1111", "4111-1111-1111-1111", "411111111111111l", "4111111111111112",
        "41111111116", "41111111111111111112",
        "٤١١١١١١١١١١١١١١١", "４１１１１１１１１１１１１１１１", PAN + "\n",
        " " + PAN, "4111111111111111.0", "²" * 16,
    ],
    "request_id": [*NO_STRING, "", "r" * 65, "r1\n", "\nr1", "r 1", "é", "r/1", "r\0", "r\u200b", "１"],
    "currency": [*NO_STRING, "", "usd", "XXX", "US", "USDX", "USD\n", "ＵＳＤ", "XAU"],
    "merchant_id": [*NO_STRING, "", "m" * 65, "m 1", "m\n"],
    "mcc": [*NO_STRING, "", "541", "54111", "54a1", "٥٤١١"],
    "country": [*NO_STRING, "", "usa", "us", "U", "USA"],
    "ip": [*NO_STRING, "", "1.2.3", "1.2.3.256", "01.2.3.4", "::1::", "localhost", "1.2.3.4/8",
           "fe80::1%eth0", "::1%\ud800", "::1%" + "a" * 300],
    "expiry": [*NO_STRING, "", "2028-13", "2028-00", "28-01", "2028/01", "2028-1", "٢٠٢٨-01"],
    "cvv_match": [0, 1, "true", [], {}],
    "capture": [None, 0, 1, "true", "", [], {}],
    "partial_approval": [None, 0, 1, "false"],
    "metadata": [
        None, "", 1, [], [["a", "b"]], {"": "x"}, {"k" * 65: "x"}, {"k": "v" * 257}, {"k": 1}, {"k": None},
        {"k": {}}, {"k": "a\nb"}, {"k\0": "x"}, {"k": "\ud800"}, {str(n): "x" for n in range(21)},
    ],
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_refused_by_its_field_alone_and_not_quoted(field: str) -> None:
    for value in BAD[field]:
        found = errors_of(requests.AUTHORIZE, GOOD | {field: value})
        assert list(found) == [field], (field, value)
        assert found[field] and not found[field].endswith(".")
        if isinstance(value, str) and len(value) > 6:
            assert value not in found[field], (field, value)


GOOD_VALUES: dict[str, list[Any]] = {
    "amount": ["0", "0.00", "10", "10.00", "0.01", "10.000", "9999999999.99"],
    "pan": ["4111111111111111", "378282246310005", "6011111111111117", "4000000000000000006"],
    "request_id": ["a", "r" * 64, "A-z_0.9:x"],
    "currency": ["USD", "JPY", "KWD"],
    "ip": ["127.0.0.1", "2001:db8::1"],
    "expiry": ["2028-09", "2028-12"],
    "cvv_match": [True, False],
    "metadata": [{}, {"k" * 64: "v" * 256}, {str(n): "" for n in range(20)}, {"ключ": "значение"}],
}


@pytest.mark.parametrize("field", GOOD_VALUES)
def test_a_good_value_is_taken_as_it_is(field: str) -> None:
    for value in GOOD_VALUES[field]:
        assert requests.AUTHORIZE.read(GOOD | {field: value})[field] == value


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_an_unknown_field_is_refused_in_every_request_and_a_pan_as_its_name_not_repeated(body: Body) -> None:
    found = errors_of(body, {"amout": "1", PAN: "1"})
    assert found["amout"] == found["(unnamed)"] == "is not a field of this request"


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_each_required_field_is_named_when_it_is_missing(body: Body) -> None:
    required = {field.name for field in body.fields if field.required}
    assert {name for name, says in errors_of(body, {}).items() if says == "is required"} == required


def test_all_fields_at_fault_are_named_at_once() -> None:
    assert set(errors_of(requests.AUTHORIZE, {"pan": "1", "amount": 1, "x": 1})) == {
        "pan",
        "amount",
        "x",
        "request_id",
    }


@pytest.mark.parametrize(
    ("text", "exponent"), [("10", 2), ("10.0", 2), ("10.005", 2), ("10.00", 0), ("1.00", 3)]
)
def test_an_amount_has_exactly_its_currencys_decimals(text: str, exponent: int) -> None:
    with pytest.raises(Problem) as caught:
        money(text, exponent)
    assert (caught.value.status, caught.value.errors[0].field) == (400, "amount")


@pytest.mark.parametrize(
    ("text", "exponent", "minor"), [("10.00", 2, 1000), ("10", 0, 10), ("1.005", 3, 1005)]
)
def test_an_amount_is_read_exactly(text: str, exponent: int, minor: int) -> None:
    assert money(text, exponent) == minor


@pytest.mark.parametrize(
    "body", [requests.INCREMENT, requests.CAPTURE, requests.REFUND, requests.PAY_ACCOUNT]
)
def test_only_an_authorization_may_be_of_nothing(body: Body) -> None:
    for nothing in ("0", "0.00", "0.000"):
        assert errors_of(body, {"request_id": "r1", "amount": nothing}) == {
            "amount": "must be more than zero"
        }


# -- query strings ------------------------------------------------------------------------------------

BAD_QUERIES = [
    {"limit": "0"}, {"limit": "1001"}, {"limit": "-1"}, {"limit": "1.0"}, {"limit": ""}, {"limit": "٥"},
    {"limit": "²"}, {"limit": "9" * 5_000}, {"status": "approved"}, {"status": ""}, {"account": "a b"},
    {"from": "2026-01-01"}, {"from": "2026-01-01T00:00:00"}, {"from": "now"}, {"to": "2026-13-01T00:00:00Z"},
    {"to": "2026-01-01T00:00:00 02:00"}, {"min_amount": "1e5"}, {"max_amount": str(10**30)},
    {"cursor": "x" * 1025}, {"cursor": "\x00"}, {"metadata": "x"}, {"metadata.": "x"},
    {"metadata." + "k" * 65: "x"}, {"metadata.k": "v" * 257}, {f"metadata.{n}": "" for n in range(21)},
    {"page": "2"},
]  # fmt: skip


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: str(query)[:30])
def test_a_bad_query_is_refused(query: dict[str, str]) -> None:
    assert len(errors_of(requests.LIST_PAYMENTS, query)) == 1


def test_a_query_is_read_into_values() -> None:
    values = requests.LIST_PAYMENTS.read(
        {"from": "1970-01-01T00:00:01.500Z", "to": "1970-01-01T02:00:02+02:00", "min_amount": "10.50",
         "limit": "5", "metadata.order": "7", "metadata.a.b": "x"}
    )  # fmt: skip
    assert (values["from"], values["to"], values["min_amount"]) == (1_500, 2_000, Decimal("10.50"))
    assert (values["limit"], values["metadata"]) == (5, {"order": "7", "a.b": "x"})


# -- anything -----------------------------------------------------------------------------------------

_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(PAN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(BODIES)), st.data())
def test_any_value_in_any_field_is_taken_or_a_400(name: str, data: st.DataObject) -> None:
    body = BODIES[name]
    fields = st.sampled_from([field.name for field in body.fields]) | st.text(max_size=8)
    members = data.draw(st.dictionaries(fields, _VALUE, max_size=6))
    for says in errors_of(body, members).values():
        assert PAN not in says


@given(
    st.dictionaries(st.sampled_from([f.name for f in requests.LIST_PAYMENTS.fields]) | st.text(), st.text())
)
def test_any_query_is_taken_or_a_400(query: dict[str, str]) -> None:
    errors_of(requests.LIST_PAYMENTS, query)
