from mini_visa.domain import response_codes
from mini_visa.domain.response_codes import TEXTS, text_of


def test_every_code_has_two_digits_and_a_text() -> None:
    constants = {value for name, value in vars(response_codes).items() if name.isupper() and name != "TEXTS"}
    assert constants == set(TEXTS)
    assert all(len(code) == 2 and code.isdigit() and text_of(code) for code in TEXTS)
