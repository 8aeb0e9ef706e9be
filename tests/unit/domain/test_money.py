import pytest

from mini_visa.domain.money import (
    AMOUNT_MAX,
    EXPONENTS,
    InvalidAmount,
    UnknownCurrency,
    exponent_of,
    format_amount,
    parse_amount,
    share,
)


@pytest.mark.parametrize(
    ("text", "exponent", "minor"),
    [
        ("10.00", 2, 1000),
        ("0.00", 2, 0),
        ("0.01", 2, 1),
        ("9999999999.99", 2, AMOUNT_MAX),
        ("10", 0, 10),
        ("0", 0, 0),
        ("1.234", 3, 1234),
        ("1.2345", 4, 12345),
    ],
)
def test_an_amount_is_read_exactly(text: str, exponent: int, minor: int) -> None:
    assert parse_amount(text, exponent) == minor
    assert format_amount(minor, exponent) == text


@pytest.mark.parametrize(
    "text",
    ["10", "10.0", "10.005", "1e5", "1E5", "-1.00", "+1.00", "NaN", "Infinity", " 1.00", "1.00 ", "1.00\n",
     "1_0.00", "1,000.00", "010.00", "00.00", ".50", "5.", "", ".", "0x1.00", "١.٠٠", "１.00", "1.0\u0660",
     "10000000000.00", "9" * 31 + ".00", "1" * 10_000, "1.00.00", "1 000.00", "$1.00"],
)  # fmt: skip
def test_an_amount_that_is_not_exact_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidAmount, match="must "):
        parse_amount(text, 2)


@pytest.mark.parametrize("value", [10.0, 10, None, True, ["10.00"]])
def test_an_amount_is_a_string(value: object) -> None:
    with pytest.raises(InvalidAmount, match="must be a string"):
        parse_amount(value, 2)  # type: ignore[arg-type]


def test_a_currency_without_decimals_takes_none() -> None:
    with pytest.raises(InvalidAmount, match="exactly 0 decimals, has 2"):
        parse_amount("10.00", 0)


@pytest.mark.parametrize(
    ("minor", "exponent", "text"),
    [(-5, 2, "-0.05"), (-123456, 2, "-1234.56"), (-7, 0, "-7"), (-1, 3, "-0.001")],
)
def test_a_debt_is_written_with_a_minus(minor: int, exponent: int, text: str) -> None:
    assert format_amount(minor, exponent) == text


def test_currencies_have_the_decimals_of_iso_4217() -> None:
    assert {code: exponent_of(code) for code in ("JPY", "USD", "EUR", "KWD", "CLF", "VND", "ISK", "BHD")} == {
        "JPY": 0, "USD": 2, "EUR": 2, "KWD": 3, "CLF": 4, "VND": 0, "ISK": 0, "BHD": 3,
    }  # fmt: skip
    assert len(EXPONENTS) > 150 and all(len(code) == 3 and code.isupper() for code in EXPONENTS)


@pytest.mark.parametrize("code", ["XYZ", "usd", "", "US", "HRK", "DEM", "XAU", "XXX"])
def test_a_code_that_is_no_active_currency_is_refused(code: str) -> None:
    with pytest.raises(UnknownCurrency, match="ISO 4217"):
        exponent_of(code)


@pytest.mark.parametrize(
    ("amount", "basis_points", "fee"),
    [
        (10_000, 150, 150),
        (12_345, 150, 185),
        (12_345, 13, 16),
        (1, 150, 0),
        (33, 150, 0),
        (34, 150, 1),
        (0, 150, 0),
    ],
)
def test_a_share_is_rounded_half_up(amount: int, basis_points: int, fee: int) -> None:
    assert share(amount, basis_points) == fee
