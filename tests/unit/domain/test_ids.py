import pytest

from mini_visa.domain.ids import InvalidId, account_of, authorization_code, check_account_id, payment_id


@pytest.mark.parametrize("account", ["tok_1abc234", "tok_a_b-C", "tok_" + "x" * 64])
@pytest.mark.parametrize("position", [0, 1, 255, 2**48 - 1])
def test_a_payment_id_carries_its_account(account: str, position: int) -> None:
    made = payment_id(account, position)
    assert account_of(made) == account and made == payment_id(account, position)
    assert made.replace("_", "").replace("-", "").isalnum()


@pytest.mark.parametrize(
    "text",
    ["", "pay_", "pay_abc", "pay__1", "pay_abc_", "pay_abc_01", "pay_abc_G", "pay_abc_1\n", "tok_abc_1",
     "pay_ab/c_1", "pay_abc_1 ", "PAY_abc_1", "pay_" + "x" * 65 + "_1", "pay_abc_" + "f" * 13, "pay_àbc_1"],
)  # fmt: skip
def test_nonsense_is_not_a_payment_id(text: str) -> None:
    with pytest.raises(InvalidId, match="payment id"):
        account_of(text)


@pytest.mark.parametrize("text", ["", "tok_", "4111111111111111", "tok_a/b", "tok_a\x00", "tok_" + "x" * 65])
def test_nonsense_is_not_an_account_id(text: str) -> None:
    with pytest.raises(InvalidId, match="account id"):
        check_account_id(text)


def test_authorization_codes_are_six_characters_and_seldom_the_same() -> None:
    codes = {authorization_code(payment_id("tok_1abc", position)) for position in range(10_000)}
    assert len(codes) > 9_990
    assert all(
        len(code) == 6 and code.isascii() and code.isalnum() and code.upper() == code for code in codes
    )
