from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_visa.gateway.problems import Problem
from mini_visa.gateway.strict_json import parse_object, showable

PAN = "4111111111111111"

BAD = {
    "nothing": (b"", "body"),
    "no JSON": (b"amount=1", "body"),
    "half of it": (b'{"a": "' + PAN.encode(), "body"),
    "a list": (b"[1]", "body"),
    "a string": (f'"{PAN}"'.encode(), "body"),
    "two objects": (b"{}{}", "body"),
    "invalid UTF-8": (b'{"a": "\xff"}', "body"),
    "a lone continuation byte": (b'{"a": "\x80"}', "body"),
    "UTF-8 of a surrogate": (b'{"a": "\xed\xa0\x80"}', "body"),
    "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "body"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "body"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "body"),
    "a key twice": (b'{"a": 1, "a": 2}', "a"),
    "a key twice, escaped once": (b'{"a": 1, "\\u0061": 2}', "a"),
    "a key twice, deeper": (b'{"b": {"a": 1, "a": 1}}', "a"),
    "a PAN as a key, twice": (f'{{"{PAN}": 1, "{PAN}": 2}}'.encode(), "(unnamed)"),
    "NaN": (b'{"a": NaN}', "body"),
    "Infinity": (b'{"a": -Infinity}', "body"),
    "a comment": (b'{"a": 1} // one', "body"),
    "a trailing comma": (b'{"a": 1,}', "body"),
    "a raw newline in a string": (b'{"a": "\n"}', "body"),
    "20,000 arrays": (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "body"),
    "20,000 objects": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "body"),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", "body"),
}


@pytest.mark.parametrize(("data", "field"), BAD.values(), ids=BAD.keys())
def test_what_is_not_one_plain_json_object_is_refused_without_quoting_it(data: bytes, field: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_object(data)
    assert caught.value.status == 400
    assert [error.field for error in caught.value.errors] == [field]
    assert PAN not in caught.value.body().decode()


def test_an_object_is_read_as_it_is() -> None:
    assert parse_object('{"a": "10.00", "é": {"b": [1, null, true]}} '.encode()) == {
        "a": "10.00",
        "é": {"b": [1, None, True]},
    }


def test_a_name_is_repeated_only_when_it_looks_like_one() -> None:
    assert showable("amout") == "amout"
    for name in (PAN, f"pan_{PAN}", "card4111111", "a b", "é", "x" * 65, "", "1a", "a\n"):
        assert showable(name) == "(unnamed)", name


@given(st.binary(max_size=200))
def test_random_bytes_are_an_object_or_a_400(data: bytes) -> None:
    try:
        found = parse_object(data)
    except Problem as problem:
        assert problem.status == 400
        json.loads(problem.body())
    else:
        assert found == json.loads(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), _JSON, max_size=5))
def test_every_json_object_is_read_back(members: dict[str, object]) -> None:
    assert parse_object(json.dumps(members).encode()) == members
