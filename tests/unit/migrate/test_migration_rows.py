"""What another system's files may hold: strict, with line numbers, and never a value in an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mini_visa.domain.cards import Tokenizer, TokenKey
from mini_visa.domain.payment import AccountStatus
from mini_visa.migrate.importing import KINDS, command_of
from mini_visa.migrate.rows import BadFile, read

PAN = "4111111111111111"
ACCOUNT = {"kind": "account", "id": "a-1", "pan": PAN, "currency": "USD", "limit": "1000.00"}
HOLD = {
    "kind": "hold", "id": "h-1", "pan": PAN, "currency": "USD", "amount": "25.00",
    "expires_at": "2030-01-01T00:00:00Z", "merchant_id": "m-1", "mcc": "5411",
}  # fmt: skip


def written(path: Path, *rows: dict[str, object] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_json_lines_are_read_with_their_defaults(tmp_path):
    account, hold = read(written(tmp_path / "a.jsonl", ACCOUNT, "", HOLD), KINDS)
    assert (account.line, account.values["limit"], account.values["balance"]) == (1, 100_000, 0)
    assert (account.values["status"], account.values["expiry"]) == (AccountStatus.ACTIVE, "")
    assert (hold.line, hold.values["amount"], hold.values["country"]) == (3, 2_500, "")
    assert hold.values["expires_at"] == 1_893_456_000_000


def test_csv_says_the_same(tmp_path):
    path = written(
        tmp_path / "a.csv",
        "kind,id,pan,currency,limit,balance,amount,expires_at",
        f"account,a-1,{PAN},USD,1000.00,-5.50,,",
        f'hold,"h-1",{PAN},USD,,,25.00,2030-01-01T00:00:00Z',
    )
    account, hold = read(path, KINDS)
    assert (account.line, account.values["balance"]) == (2, -550)
    assert (hold.line, hold.values["amount"]) == (3, 2_500)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "card"}, "line 2: kind must be account or hold"),
        ({"kind": ["account"]}, "line 2: kind must be account or hold"),
        ({"pan": "4111111111111112"}, "line 2: pan has a wrong check digit"),
        ({"pan": None}, "line 2: pan is missing"),
        ({"limit": "1000"}, "line 2: limit must have exactly 2 decimals, has 0"),
        ({"limit": 1000.0}, "line 2: limit must be text, in quotes"),
        ({"balance": "5,00"}, "line 2: balance must be digits"),
        ({"currency": "usd"}, "line 2: currency"),
        ({"status": "gone"}, "line 2: status must be"),
        ({"expiry": "12/28"}, "line 2: expiry must be a month"),
        ({"id": "a 1"}, "line 2: id must be 1 to 64 characters"),
        ({"id": "a-0"}, "line 2: id is that of an earlier row"),
        ({"name": "x"}, "line 2: 1 fields that account does not have: it has id, pan"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_line_and_field_without_its_value(tmp_path, change, says):
    path = written(tmp_path / "a.jsonl", {**ACCOUNT, "id": "a-0"}, {**ACCOUNT, **change})
    with pytest.raises(BadFile) as refused:
        list(read(path, KINDS))
    assert says in str(refused.value)
    assert PAN not in str(refused.value) and "4111111111111112" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "", "must end with .jsonl or .csv"),
        ("a.jsonl", "[1]\n", "line 1: is not a JSON object"),
        ("a.jsonl", "{\n", "line 1: is not a JSON object"),
        ("a.jsonl", "x" * 70_000, "line 1: longer than"),
        ("a.csv", "id,pan\n", "line 1: must name the columns"),
        ("a.csv", "kind,kind\n", "line 1: must name the columns"),
        ("a.csv", "kind,id\naccount\n", "line 2: has 1 cells"),
        ("a.csv", 'kind,id\naccount,"x"y\n', "line 2"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadFile, match=says):
        list(read(path, KINDS))


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"kind":"\xff"}\n')
    with pytest.raises(BadFile, match="not UTF-8"):
        list(read(tmp_path / "a.jsonl", KINDS))
    with pytest.raises(BadFile, match="No such file"):
        list(read(tmp_path / "b.jsonl", KINDS))


def test_many_faults_are_counted_and_the_first_are_shown(tmp_path):
    path = written(tmp_path / "a.jsonl", *[{**ACCOUNT, "id": f"a-{n}", "limit": "1"} for n in range(30)])
    with pytest.raises(BadFile) as refused:
        list(read(path, KINDS))
    assert str(refused.value).count("line ") == 20 and "and 10 more" in str(refused.value)


def test_a_command_has_the_gateways_token_and_no_card_number(tmp_path):
    tokenizer = Tokenizer([TokenKey("2", b"n" * 16), TokenKey("1", b"o" * 16)])
    account, hold = (
        command_of(row, tokenizer) for row in read(written(tmp_path / "a.jsonl", ACCOUNT, HOLD), KINDS)
    )
    assert account.account == hold.account == tokenizer.tokens(PAN)[-1], "the oldest key names the account"
    assert (account.request_id, hold.request_id) == ("account:a-1", "hold:h-1")
    assert hold.advice_until == 1_893_456_000_000
    assert PAN not in repr(account) + repr(hold)
    changed = written(tmp_path / "b.jsonl", {**ACCOUNT, "limit": "1.00"})
    (other,) = (command_of(row, tokenizer) for row in read(changed, KINDS))
    assert other.request_id == account.request_id and other.fingerprint != account.fingerprint
