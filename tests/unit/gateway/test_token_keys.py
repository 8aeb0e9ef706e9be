from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mini_visa.domain.cards import InvalidTokenKey
from mini_visa.gateway.access import Access
from mini_visa.gateway.exchange import Exchange
from mini_visa.gateway.metrics import Metrics
from mini_visa.gateway.service import Gateway
from mini_visa.gateway.token_keys import load_tokenizer
from mini_visa.settings import Settings

PAN = "4111111111111111"


def gateway(path: Path) -> Gateway:
    settings, metrics = Settings(home=path.parent), Metrics()
    return Gateway(
        settings,
        tokenizer=load_tokenizer(path),
        exchange=Exchange({}, gateway_id=0, produce_seconds=metrics.produce_seconds),
        access=Access(settings),
        metrics=metrics,
    )


def test_a_key_that_is_added_in_front_changes_no_account_id(tmp_path: Path) -> None:
    path = tmp_path / "token-keys"
    before = gateway(path).card(PAN)
    path.write_text(f"2:{'ab' * 32}\n" + path.read_text())
    assert gateway(path).card(PAN) == before
    assert load_tokenizer(path).token(PAN) != before.token, "the newest key is another one"


def test_the_first_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token-keys"
    assert load_tokenizer(path).token(PAN) == load_tokenizer(path).token(PAN)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["token-keys"]


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path / "a").token(PAN) != load_tokenizer(tmp_path / "b").token(PAN)


def test_gateways_that_start_at_once_end_up_with_one_key(tmp_path: Path) -> None:
    path = tmp_path / "token-keys"
    tokens: list[str] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        tokens.append(load_tokenizer(path).token(PAN))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8 and len(set(tokens)) == 1


@pytest.mark.parametrize(
    "text", ["", "# none\n", "1:zz\n", "1\n", "1:00\n", "é\n", f"1:{'ab' * 32}\n1:{'cd' * 32}\n"]
)
def test_a_file_that_cannot_be_used_is_named_and_its_secrets_are_not(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token-keys"
    path.write_text(text)
    with pytest.raises(InvalidTokenKey) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "abab" not in str(caught.value)
