import pytest

from mini_visa.domain.cards import (
    InvalidPan,
    InvalidTokenKey,
    Tokenizer,
    TokenKey,
    card_of,
    check_pan,
    luhn_valid,
    mask,
    parse_token_keys,
)

VISA = "4111111111111111"
OLD = TokenKey("a1", b"o" * 32)
NEW = TokenKey("b2", b"n" * 32)


@pytest.mark.parametrize(
    "pan", [VISA, "5555555555554444", "378282246310005", "6011000990139424", "4000000000000000006"]
)
def test_test_cards_of_the_networks_are_accepted(pan: str) -> None:
    check_pan(pan)


@pytest.mark.parametrize(
    ("pan", "reason"),
    [
        ("4111111111111112", "check digit"),
        ("1411111111111111", "check digit"),
        ("4111 1111 1111 1111", "digits only"),
        ("4111-1111-1111-1111", "digits only"),
        ("411111111111111a", "digits only"),
        ("٤١١١١١١١١١١١١١١١", "digits only"),
        ("4111111111111111\n", "digits only"),
        ("", "digits only"),
        ("00000000000", "has 11"),
        ("00000000000000000000", "has 20"),
        (4111111111111111, "string"),
        (None, "string"),
    ],
)
def test_a_bad_pan_is_refused_without_being_quoted(pan: str, reason: str) -> None:
    with pytest.raises(InvalidPan, match=reason) as refusal:
        check_pan(pan)
    assert "4111" not in str(refusal.value)


def test_every_single_wrong_digit_fails_the_check() -> None:
    for place, digit in enumerate(VISA):
        for other in set("0123456789") - {digit}:
            assert not luhn_valid(VISA[:place] + other + VISA[place + 1 :])


def test_a_token_is_the_same_always_and_does_not_show_the_pan() -> None:
    token = Tokenizer([NEW]).token(VISA)
    assert token == Tokenizer([NEW]).token(VISA)
    assert token.startswith("tok_b2") and len(token) == len("tok_b2") + 24
    assert VISA not in token and token != Tokenizer([NEW]).token("5555555555554444")


def test_after_a_rotation_the_old_token_is_still_found() -> None:
    before, after = Tokenizer([OLD]), Tokenizer([NEW, OLD])
    assert after.tokens(VISA) == (after.token(VISA), before.token(VISA))
    assert after.token(VISA).startswith("tok_b2")


def test_no_secret_is_in_a_repr_or_an_error() -> None:
    assert "ooo" not in repr(OLD) and "6f6f" not in repr(OLD)
    assert "ooo" not in repr(Tokenizer([OLD]))
    with pytest.raises(InvalidTokenKey) as refusal:
        TokenKey("a1", b"secret")
    assert "secret'" not in str(refusal.value)


@pytest.mark.parametrize("key_id", ["", "A1", "a_1", "a" * 9, "a:1"])
def test_a_key_id_fits_into_a_token(key_id: str) -> None:
    with pytest.raises(InvalidTokenKey, match="key id"):
        TokenKey(key_id, b"x" * 32)


@pytest.mark.parametrize("keys", [[], [OLD, OLD]])
def test_a_tokenizer_needs_keys_with_ids_of_their_own(keys: list[TokenKey]) -> None:
    with pytest.raises(InvalidTokenKey):
        Tokenizer(keys)


def test_keys_are_read_from_lines() -> None:
    keys = parse_token_keys(f"# newest first\nb2:{NEW.secret.hex()}\n\na1:{OLD.secret.hex()}\n")
    assert keys == (NEW, OLD)


@pytest.mark.parametrize("line", ["a1", "a1:xyz", "a1:00", ":" + "00" * 32])
def test_a_bad_key_line_is_named_by_its_number_only(line: str) -> None:
    with pytest.raises(InvalidTokenKey, match="line 2") as refusal:
        parse_token_keys("# keys\n" + line)
    assert "xyz" not in str(refusal.value)


def test_a_card_shows_six_and_four_digits() -> None:
    assert mask(VISA) == "411111******1111"
    assert card_of(VISA, "tok_x").bin == "411111" and card_of(VISA, "tok_x").last4 == "1111"
