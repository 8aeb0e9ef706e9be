from __future__ import annotations

import hmac
import json
from pathlib import Path

import pytest

from mini_visa.gateway import access
from mini_visa.gateway.access import Access, AccessError, create_key, keys_file, list_keys, revoke_key
from mini_visa.gateway.problems import Problem
from mini_visa.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, auth="required")


@pytest.fixture(autouse=True)
def _changes_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "RELOAD_S", 0.0)


def refusal(used: Access, authorization: str | None, scope: str = "payments:write") -> Problem:
    with pytest.raises(Problem) as caught:
        used.client(authorization, scope)
    return caught.value


def test_a_key_stands_for_its_client_within_its_scopes(settings: Settings) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    used = Access(settings)
    assert used.client(f"Bearer {key}", "payments:write").name == "shop"
    assert used.client(f"bearer {key}", "payments:write").name == "shop"
    problem = refusal(used, f"Bearer {key}", "ledger:read")
    assert problem.status == 403 and "ledger:read" in problem.detail
    assert used.client(None, None).name == "local", "what needs no scope needs no key"


def test_a_scope_may_be_for_what_the_client_itself_has_made(settings: Settings) -> None:
    key = create_key(
        keys_file(settings), "shop", ["payments:write:own", "payments:read", "accounts:read:own"]
    )
    used = Access(settings)
    assert used.client(f"Bearer {key}", "payments:write") == ("shop", True)
    assert used.client(f"Bearer {key}", "payments:read") == ("shop", False)
    assert used.client(f"Bearer {key}", "accounts:read") == ("shop", True)
    assert refusal(used, f"Bearer {key}", "accounts:write").status == 403
    with pytest.raises(AccessError, match="unknown scopes"):
        create_key(keys_file(settings), "shop", ["ledger:read:own"])


def test_what_is_no_valid_key_is_401_and_not_repeated(settings: Settings) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    other = key[:-1] + ("a" if key[-1] != "a" else "b")
    unknown = f"mvk_{'0' * 12}_{key[17:]}"
    used = Access(settings)
    wrong = ["", "Bearer", "Bearer ", f"Basic {key}", key, f"Bearer {other}", f"Bearer {unknown}"]
    odd = [f"Bearer  {key}", f"Bearer {key} ", "Bearer é", "Bearer \udcff", f"Bearer {key * 100}"]
    for given in (None, *wrong, *odd):
        problem = refusal(used, given)
        assert (problem.status, problem.headers["WWW-Authenticate"]) == (401, 'Bearer realm="mini-visa"')
        assert "mvk_" not in problem.body().decode()


def test_the_file_has_digests_only_and_only_its_owner_may_read_it(settings: Settings) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    assert key.encode() not in keys_file(settings).read_bytes()
    assert key[17:] not in keys_file(settings).read_text()
    assert keys_file(settings).stat().st_mode & 0o777 == 0o600
    (row,) = json.loads(keys_file(settings).read_text())
    assert len(row["sha256"]) == 64


def test_digests_are_compared_in_constant_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    compared = []
    real = hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    Access(settings).client(f"Bearer {key}", "payments:write")
    assert compared == [(64, 64)]


def test_a_revoked_key_is_refused_by_a_running_gateway_and_others_stay(settings: Settings) -> None:
    path = keys_file(settings)
    key, other = (create_key(path, name, ["payments:write"]) for name in ("shop", "bank"))
    used = Access(settings)
    assert used.client(f"Bearer {key}", "payments:write").name == "shop"
    revoked = revoke_key(path, key[4:16])
    assert refusal(used, f"Bearer {key}").status == 401
    assert used.client(f"Bearer {other}", "payments:write").name == "bank"
    assert revoke_key(path, key[4:16]) == revoked, "once is enough"
    with pytest.raises(AccessError, match="no key"):
        revoke_key(path, "0" * 12)


def test_a_key_that_is_made_later_counts_without_a_restart(settings: Settings) -> None:
    create_key(keys_file(settings), "shop", ["payments:write"])
    used = Access(settings)
    key = create_key(keys_file(settings), "bank", ["payments:read"])
    assert used.client(f"Bearer {key}", "payments:read").name == "bank"


def test_a_file_that_is_damaged_later_leaves_the_keys_in_force(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    used = Access(settings)
    keys_file(settings).write_text("[{")
    assert used.client(f"Bearer {key}", "payments:write").name == "shop"
    assert "keys stay as they were" in caplog.text


def test_a_file_that_cannot_be_read_leaves_the_keys_in_force(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    used = Access(settings)
    keys_file(settings).unlink()
    keys_file(settings).mkdir()
    for _ in range(2):
        assert used.client(f"Bearer {key}", "payments:write").name == "shop"
    assert "cannot be read: Is a directory" in caplog.text


def test_a_file_that_is_gone_leaves_nobody(settings: Settings) -> None:
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    used = Access(settings)
    keys_file(settings).unlink()
    assert refusal(used, f"Bearer {key}").status == 401


def test_a_gateway_that_could_let_nobody_in_does_not_start(settings: Settings) -> None:
    with pytest.raises(AccessError, match="keys create"):
        Access(settings)
    key = create_key(keys_file(settings), "shop", ["payments:write"])
    revoke_key(keys_file(settings), key[4:16])
    with pytest.raises(AccessError, match="no usable key"):
        Access(settings)
    keys_file(settings).write_text("{")
    with pytest.raises(AccessError, match="damaged"):
        Access(settings)


@pytest.mark.parametrize("name", ["local", "migration", "shadow", "clearing", "reversal"])
def test_no_key_speaks_for_the_program_itself(tmp_path: Path, name: str) -> None:
    with pytest.raises(AccessError, match="are names of the program's own"):
        create_key(tmp_path / "keys.json", name, ["payments:write"])
    assert list_keys(tmp_path / "keys.json") == []
    create_key(tmp_path / "keys.json", f"{name}s", ["payments:write"])


def test_a_key_needs_a_name_and_scopes_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for name, scopes in (("shop", []), ("shop", ["payments:all"]), ("", ["payments:read"]),
                         ("a b", ["payments:read"]), ("x" * 65, ["payments:read"])):  # fmt: skip
        with pytest.raises(AccessError):
            create_key(path, name, scopes)
    assert list_keys(path) == []


def test_without_access_control_everyone_is_the_same_client(tmp_path: Path) -> None:
    used = Access(Settings(home=tmp_path, auth="off"))
    assert used.client(None, "payments:write") == used.client("Bearer x", "risk:write") == ("local", False)
