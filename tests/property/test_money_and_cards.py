from decimal import ROUND_HALF_UP, Decimal

from hypothesis import given
from hypothesis import strategies as st

from mini_visa.domain.cards import InvalidPan, Tokenizer, TokenKey, check_pan, luhn_valid, mask
from mini_visa.domain.ids import account_of, payment_id
from mini_visa.domain.money import AMOUNT_MAX, InvalidAmount, format_amount, parse_amount, share

EXPONENTS = st.integers(0, 4)
DIGITS = st.text("0123456789", min_size=11, max_size=18)
SECRETS = st.binary(min_size=16, max_size=64)


def with_check_digit(digits: str) -> str:
    return next(digits + last for last in "0123456789" if luhn_valid(digits + last))


@given(minor=st.integers(0, AMOUNT_MAX), exponent=EXPONENTS)
def test_what_is_written_is_read_back(minor: int, exponent: int) -> None:
    text = format_amount(minor, exponent)
    assert parse_amount(text, exponent) == minor
    assert Decimal(text) == Decimal(minor).scaleb(-exponent)


@given(text=st.one_of(st.text(max_size=40), st.from_regex(r"[0-9eE.+_ -]{1,14}")), exponent=EXPONENTS)
def test_what_is_read_is_what_was_written_or_it_is_refused(text: str, exponent: int) -> None:
    try:
        minor = parse_amount(text, exponent)
    except InvalidAmount as refusal:
        assert len(text) < 3 or text not in str(refusal)
    else:
        assert 0 <= minor <= AMOUNT_MAX and format_amount(minor, exponent) == text


@given(amount=st.integers(0, AMOUNT_MAX), basis_points=st.integers(0, 10_000))
def test_a_share_is_what_decimal_arithmetic_rounds_half_up_to(amount: int, basis_points: int) -> None:
    exact = Decimal(amount) * basis_points / 10_000
    assert share(amount, basis_points) == int(exact.quantize(Decimal(1), ROUND_HALF_UP))


@given(digits=DIGITS, place=st.integers(0, 30), change=st.integers(1, 9))
def test_one_right_check_digit_and_no_single_error_passes(digits: str, place: int, change: int) -> None:
    pan = with_check_digit(digits)
    check_pan(pan)
    place %= len(pan)
    wrong = pan[:place] + str((int(pan[place]) + change) % 10) + pan[place + 1 :]
    try:
        check_pan(wrong)
    except InvalidPan as refusal:
        assert wrong not in str(refusal)
    else:
        raise AssertionError("a single wrong digit passed")


@given(digits=DIGITS, secrets=st.lists(SECRETS, min_size=1, max_size=3, unique=True))
def test_a_token_survives_every_rotation_and_hides_the_pan(digits: str, secrets: list[bytes]) -> None:
    pan = with_check_digit(digits)
    keys = [TokenKey(f"k{number}", secret) for number, secret in enumerate(secrets)]
    tokens = Tokenizer(keys).tokens(pan)
    assert tokens == tuple(Tokenizer([key]).token(pan) for key in keys) and len(set(tokens)) == len(keys)
    assert all(pan not in token and account_of(payment_id(token, 7)) == token for token in tokens)
    assert mask(pan).count("*") == len(pan) - 10


@given(positions=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=20, unique=True))
def test_no_two_commands_of_an_account_make_the_same_payment_id(positions: list[int]) -> None:
    assert len({payment_id("tok_1abc", position) for position in positions}) == len(positions)
