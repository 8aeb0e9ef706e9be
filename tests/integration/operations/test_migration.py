"""Another system's accounts, holds and decisions, taken over by a whole running system."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mini_visa.demo.cards import card_numbers
from mini_visa.demo.checks import PanSearch, no_pan_in_files

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ACCOUNTS = 400
_NUMBERS = card_numbers(random.Random(77))


def time_text(seconds_from_now: float) -> str:
    return datetime.fromtimestamp(time.time() + seconds_from_now, UTC).isoformat(timespec="milliseconds")


def written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def an_account(number: int, pan: str, **more: str) -> dict[str, str]:
    return {"kind": "account", "id": f"a{number}", "pan": pan, "currency": "USD", "limit": "500.00", **more}


def a_hold(number: int, pan: str, until: str, **more: str) -> dict[str, str]:
    row = {"kind": "hold", "id": f"h{number}", "pan": pan, "currency": "USD", "amount": "20.00"}
    return {**row, "expires_at": until, "merchant_id": "m1", **more}


def account_ids(shell) -> dict[str, str]:
    """Last event of each account that was opened: id -> its JSON."""
    process = shell.start("events", "tail", "--from-beginning", "--no-follow", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    accounts = {}
    for line in out.splitlines():
        event = json.loads(line)["event"]
        if event and "account" in event:
            accounts[event["account"]["account_id"]] = event["account"]
    return accounts


def test_accounts_and_holds_move_once_through_a_crash_and_card_numbers_stay_behind(system, shell, tmp_path):
    pans = [next(_NUMBERS) for _ in range(ACCOUNTS)]
    until = time_text(86_400)
    rows = [an_account(n, pan, balance="30.00" if n % 2 else "-5.00") for n, pan in enumerate(pans)]
    rows += [a_hold(n, pan, until) for n, pan in enumerate(pans)]
    rows.append(a_hold(ACCOUNTS, pans[0], time_text(-60)))
    file = written(tmp_path / "monolith.jsonl", rows)

    checked = shell.json("migrate", "import", file, "--dry-run")
    assert checked["rows"] == {"account": ACCOUNTS, "hold": ACCOUNTS + 1} and checked["imported"] == 0
    assert account_ids(shell).keys().isdisjoint({"a0"})

    killed = shell.start("migrate", "import", file)
    deadline = time.monotonic() + 60
    while len(account_ids(shell)) < ACCOUNTS // 4:
        assert killed.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
    killed.kill()
    killed.communicate()

    done = shell.json("migrate", "import", file)
    assert (done["refused"], done["expired"]) == (0, 1)
    assert done["imported"] + done["before"] == 2 * ACCOUNTS and done["before"] > 0
    again = shell.json("migrate", "import", file)
    assert (again["imported"], again["before"], again["expired"]) == (0, 2 * ACCOUNTS, 1)

    moved = [one for one in account_ids(shell).values() if one["limit"] == 50_000]
    assert len(moved) == ACCOUNTS
    assert all(one["held"] == 2_000 for one in moved)
    assert sorted(one.get("posted", 0) for one in moved) == [-500] * 200 + [3_000] * 200
    hold = _payment_of(shell, moved[0]["account_id"])
    assert abs(hold["expires_at"] - datetime.fromisoformat(until).timestamp() * 1000) < 1
    assert shell.json("replay", moved[0]["account_id"])["differences"] == []

    limit_changed = written(tmp_path / "changed.jsonl", [an_account(0, pans[1], limit="1.00"), rows[1]])
    refused = shell.json("migrate", "import", limit_changed)
    assert refused["before"] == 2, "an id that was imported is not looked at again"
    taken = written(tmp_path / "taken.jsonl", [{**an_account(0, pans[0]), "id": "other"}])
    refused = shell.json("migrate", "import", taken, code=1)
    assert refused["refusals"] == ["line 1: account: the card has an account already"]
    assert no_pan_in_files(system.home, PanSearch([], pans)).passed


def _payment_of(shell, account: str) -> dict[str, Any]:
    process = shell.start("events", "tail", "--from-beginning", "--no-follow", "--account", account, "--json")
    out, _ = process.communicate(timeout=60)
    return next(json.loads(line)["event"]["payment"] for line in out.splitlines() if "payment" in line)


def test_decisions_are_compared_and_every_difference_is_named(shell, tmp_path):
    rich, poor = next(_NUMBERS), next(_NUMBERS)
    accounts = written(
        tmp_path / "accounts.jsonl", [an_account(9_001, rich), an_account(9_002, poor, limit="10.00")]
    )
    assert shell.json("migrate", "import", accounts)["imported"] == 2

    def asked(number: int, pan: str, amount: str, theirs: str, **more: str) -> dict[str, str]:
        row = {"kind": "authorization", "id": f"d{number}", "pan": pan, "amount": amount, "currency": "USD"}
        return {**row, "at": time_text(number / 10), "response_code": theirs, **more}

    log = [
        asked(1, rich, "400.00", "00"),
        asked(2, rich, "400.00", "51"),
        {"kind": "reversal", "id": "r1", "pan": rich, "at": time_text(0.25), "original_id": "d1"},
        asked(3, rich, "450.00", "00"),  # only because the first was reversed
        asked(4, poor, "20.00", "00"),  # they were more generous
        asked(5, next(_NUMBERS), "1.00", "14"),
    ]
    file = written(tmp_path / "decisions.jsonl", log)
    compared = shell.json("migrate", "shadow", file, "--run", "first", code=1)
    assert (compared["compared"], compared["agreed"], compared["agreement"]) == (5, 4, 80.0)
    assert compared["codes"] == {"00": {"00": 2, "51": 1}, "14": {"14": 1}, "51": {"51": 1}}
    assert compared["differences"] == [{"line": 5, "id": "d4", "theirs": "00", "ours": "51", "rules": []}]
    assert shell.json("migrate", "shadow", file, "--run", "first", "--agreement", "80")["agreed"] == 4

    burst = [asked(100 + n, poor, "0.50", "00") for n in range(12)]
    compared = shell.json(
        "migrate", "shadow", written(tmp_path / "burst.jsonl", burst), "--speed", "0", code=1
    )
    assert compared["codes"]["00"]["65"] == 2 or compared["codes"]["00"]["65"] == 3
    assert {one["rules"][0] for one in compared["differences"] if one["ours"] == "65"} == {
        "velocity-count-60s/1"
    }
