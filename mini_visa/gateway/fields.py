"""Fields of requests: one description of each drives both the validation and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final

from mini_visa.domain.cards import PAN_DIGITS_MAX, PAN_DIGITS_MIN, InvalidPan, check_pan
from mini_visa.domain.money import EXPONENTS, InvalidAmount, format_amount, parse_amount
from mini_visa.gateway.problems import FieldError, bad_input
from mini_visa.gateway.strict_json import showable

METADATA_PAIRS_MAX: Final = 20
METADATA_KEY_MAX: Final = 64
METADATA_VALUE_MAX: Final = 256
IDENTIFIER_MAX: Final = 64
_DECIMALS_MAX: Final = max(EXPONENTS.values())


class Invalid(ValueError):
    """A value that its field does not take. The text completes "FIELD ..." and never quotes the value."""


Check = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """`check` takes the JSON value and returns what handlers get, or raises `Invalid`."""

    name: str
    check: Check
    schema: Mapping[str, Any]
    required: bool = False
    default: Any = None
    """What handlers get when the client left the field out."""


@dataclass(frozen=True)
class Body:
    """The fields of one kind of request body, or of one kind of query string."""

    name: str
    fields: tuple[Field, ...]
    family: Field | None = None
    """Takes every "NAME.KEY" and gathers them as {KEY: value} under NAME; KEY is as in metadata."""
    _by_name: Mapping[str, Field] = field(init=False, repr=False)
    _required: frozenset[str] = field(init=False, repr=False)
    _defaults: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {field.name: field for field in self.fields})
        object.__setattr__(self, "_required", frozenset(f.name for f in self.fields if f.required))
        fields = (*self.fields, self.family) if self.family else self.fields
        object.__setattr__(self, "_defaults", {field.name: field.default for field in fields})

    def read(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Every field's checked value, defaults for what is absent. Raises `Problem` 400 that names
        every field at fault."""
        values = dict(self._defaults)
        errors: list[FieldError] = []
        for name, value in members.items():
            known = self._by_name.get(name)
            if known is None and self.family is not None and name.startswith(self.family.name + "."):
                key = name[len(self.family.name) + 1 :]
                try:
                    metadata({**values[self.family.name], key: value})
                except Invalid as error:
                    errors.append(FieldError(self.family.name, str(error)))
                else:
                    values[self.family.name] = {**values[self.family.name], key: value}
                continue
            if known is None:
                errors.append(FieldError(showable(name), "is not a field of this request"))
                continue
            try:
                values[name] = known.check(value)
            except Invalid as error:
                errors.append(FieldError(name, str(error)))
        errors.extend(FieldError(name, "is required") for name in sorted(self._required - members.keys()))
        if errors:
            raise bad_input(*errors)
        return values


# -- checks -------------------------------------------------------------------------------------------


def _string(value: Any) -> str:
    if type(value) is not str:
        raise Invalid("must be a string")
    return value


def matching(pattern: str, says: str) -> Check:
    """A check for strings that `pattern` matches in full."""
    full = re.compile(pattern, re.ASCII).fullmatch

    def check(value: Any) -> str:
        if type(value) is not str or full(value) is None:
            raise Invalid(says if type(value) is str else "must be a string")
        return value

    return check


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Invalid("must be true or false")
    return value


def pan(value: Any) -> str:
    try:
        check_pan(_string(value))
    except InvalidPan as error:
        raise Invalid(str(error)) from None
    return str(value)


def amount(value: Any) -> str:
    """The text of an amount that is right in some currency: which one is known only later, see `money`."""
    if type(value) is not str:
        raise Invalid('must be a decimal string such as "10.00"')
    try:
        parse_amount(value, min(len(value.partition(".")[2]), _DECIMALS_MAX))
    except InvalidAmount as error:
        raise Invalid(str(error)) from None
    return value


def amount_over_zero(value: Any) -> str:
    if not amount(value).strip("0."):
        raise Invalid("must be more than zero")
    return str(value)


def currency(value: Any) -> str:
    if type(value) is not str or value not in EXPONENTS:
        raise Invalid("must be an ISO 4217 currency code in upper case")
    return value


def ip(value: Any) -> str:
    text = _string(value)
    try:
        if "%" not in text:  # a zone is any text, and says nothing outside its host
            return str(ip_address(text))
    except ValueError:
        pass
    raise Invalid("must be an IPv4 or IPv6 address, without a zone")


def short_text(most: int) -> Check:
    """A check for text of up to `most` characters of printable characters."""

    def check(value: Any) -> str:
        if type(value) is not str:
            raise Invalid("must be a string")
        if len(value) > most:
            raise Invalid(f"must have at most {most} characters")
        if not value.isprintable():  # also false for a lone surrogate, which UTF-8 cannot carry
            raise Invalid("must be printable characters only")
        return value

    return check


_metadata_key = short_text(METADATA_KEY_MAX)
_metadata_value = short_text(METADATA_VALUE_MAX)


def metadata(value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise Invalid("must be an object of strings")
    if len(value) > METADATA_PAIRS_MAX:
        raise Invalid(f"must have at most {METADATA_PAIRS_MAX} pairs")
    for key, text in value.items():
        try:
            if not _metadata_key(key):
                raise Invalid("must not be empty")
        except Invalid as error:
            raise Invalid(f"has a key that {error}") from None
        try:
            _metadata_value(text)
        except Invalid as error:
            raise Invalid(f"has a value that {error}") from None
    return value


def one_of(choices: type[StrEnum]) -> Check:
    """A check for the values of an enumeration."""
    says = f"must be one of {', '.join(choices)}"

    def check(value: Any) -> StrEnum:
        try:
            return choices(_string(value))
        except Invalid:
            raise
        except ValueError:
            raise Invalid(says) from None

    return check


def among(choices: Sequence[str]) -> Check:
    """A check for one of these words."""
    says = f"must be one of {', '.join(choices)}"

    def check(value: Any) -> str:
        if type(value) is not str or value not in choices:
            raise Invalid(says if type(value) is str else "must be a string")
        return value

    return check


def integer(least: int, most: int) -> Check:
    """A check for a whole number in a body."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise Invalid("must be a whole number")
        if not least <= value <= most:
            raise Invalid(f"must be from {least} to {most}")
        return value

    return check


def thresholds(value: Any) -> dict[str, int]:
    """Minor units by currency."""
    if type(value) is not dict:
        raise Invalid("must be an object of numbers by currency")
    check = integer(0, 10**15)
    for name, amount in value.items():
        if name not in EXPONENTS:
            raise Invalid("has a name that is not an ISO 4217 currency code in upper case")
        try:
            check(amount)
        except Invalid as error:
            raise Invalid(f"has an amount that {error}") from None
    return value


def moment(value: Any) -> int:
    """A time as RFC 3339 writes it, in ms."""
    try:
        at = datetime.fromisoformat(_string(value))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None or len(value) < len("2026-01-01T00:00:00Z"):
        raise Invalid('must be a time such as "2026-01-31T12:00:00.000Z" (a + is written %2B in a URL)')
    return int(at.timestamp() * 1000)


def whole_number(least: int, most: int) -> Check:
    """A check for a whole number in a query string."""

    def check(value: Any) -> int:
        if not (type(value) is str and value.isascii() and value.isdigit() and len(value) <= 18):
            raise Invalid("must be a whole number")
        if not least <= int(value) <= most:
            raise Invalid(f"must be from {least} to {most}")
        return int(value)

    return check


def units(value: Any) -> Decimal:
    """An amount to compare with, in units of whatever currency."""
    return Decimal(amount(value))


def has_decimals(text: str, exponent: int) -> bool:
    """Whether an amount that passed `amount` has exactly this many decimals."""
    return len(text.partition(".")[2]) == exponent


def money(text: str, exponent: int, name: str = "amount") -> int:
    """Minor units of an amount that passed `amount`. Raises `Problem` 400 where its decimals are not
    the currency's."""
    try:
        return parse_amount(text, exponent)
    except InvalidAmount as error:
        raise bad_input(FieldError(name, str(error))) from None


# -- fields -------------------------------------------------------------------------------------------

IDENTIFIER_PATTERN: Final = r"^[A-Za-z0-9._:-]{1,64}$"
_IDENTIFIER_SAYS = "must be 1 to 64 characters of A-Z a-z 0-9 . _ : -"
identifier: Check = matching(IDENTIFIER_PATTERN, _IDENTIFIER_SAYS)


PAYMENT_ID_PATTERN: Final = r"^pay_[A-Za-z0-9_-]{1,64}_(0|[1-9a-f][0-9a-f]{0,11})$"
identifier_of_payment: Check = matching(PAYMENT_ID_PATTERN, "must be a payment's id")
PAYMENT_ID_SCHEMA: Final = {
    "type": "string",
    "pattern": PAYMENT_ID_PATTERN,
    "description": "Of this payment.",
}


def identifier_schema(description: str) -> dict[str, Any]:
    return {"type": "string", "pattern": IDENTIFIER_PATTERN, "description": description}


def amount_schema(description: str) -> dict[str, Any]:
    return {
        "type": "string",
        "pattern": r"^(0|[1-9][0-9]*)(\.[0-9]+)?$",
        "maxLength": 32,
        "description": f"{description} Exactly the currency's decimals.",
        "examples": [format_amount(1000, 2)],
    }


REQUEST_ID = Field(
    "request_id",
    identifier,
    identifier_schema(
        "Idempotency key of the request. The header Idempotency-Key may carry it instead; if both do, "
        "they agree."
    ),
    required=True,
)
PAN = Field(
    "pan",
    pan,
    {
        "type": "string",
        "pattern": f"^[0-9]{{{PAN_DIGITS_MIN},{PAN_DIGITS_MAX}}}$",
        "description": "Card number with a right check digit. Never stored, logged or passed on.",
        "examples": ["4111111111111111"],
        "writeOnly": True,
    },
    required=True,
)
CURRENCY = Field(
    "currency",
    currency,
    {
        "type": "string",
        "pattern": "^[A-Z]{3}$",
        "description": "ISO 4217. Default: the account's.",
        "examples": ["USD"],
    },
)
EXPIRY = Field(
    "expiry",
    matching(r"[0-9]{4}-(0[1-9]|1[0-2])", 'must be a month such as "2028-09"'),
    {"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$", "description": "Of the card, YYYY-MM."},
    default="",
)
METADATA = Field(
    "metadata",
    metadata,
    {
        "type": "object",
        "maxProperties": METADATA_PAIRS_MAX,
        "propertyNames": {"minLength": 1, "maxLength": METADATA_KEY_MAX},
        "additionalProperties": {"type": "string", "maxLength": METADATA_VALUE_MAX},
        "description": "The client's own, kept with the payment. Not for card data.",
    },
    default={},
)


def amount_field(
    description: str, *, required: bool = False, zero: bool = False, name: str = "amount"
) -> Field:
    """A decimal string; `zero`: whether 0 is allowed."""
    check = amount if zero else amount_over_zero
    return Field(name, check, amount_schema(description), required=required)


def identifier_field(name: str, description: str, *, required: bool = False) -> Field:
    return Field(name, identifier, identifier_schema(description), required=required, default="")


def flag_field(name: str, description: str, *, default: bool | None = False) -> Field:
    schema: dict[str, Any] = {"type": "boolean", "description": description}
    if default is not None:
        schema["default"] = default
    return Field(name, flag, schema, default=default)
