"""The files that another system hands over: what a row may hold, checked field by field, with line numbers.

JSON lines or CSV (by the file's name: .jsonl or .csv), UTF-8. Every value is text, written as the gateway's
API writes it. A row says what it is in `kind`. No error repeats a value: it could be a card number.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import orjson

from mini_visa.domain.money import InvalidAmount, exponent_of, parse_amount
from mini_visa.domain.payment import AccountStatus
from mini_visa.errors import UserError
from mini_visa.gateway.fields import (
    EXPIRY,
    Check,
    Invalid,
    currency,
    identifier,
    matching,
    moment,
    one_of,
    pan,
)

LINE_CHARACTERS_MAX: Final = 65_536
ERRORS_MAX: Final = 20
"""Shown of a file; the rest is counted."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid("must be text, in quotes")
    return value


class Column(NamedTuple):
    """What a field must be. `default` of None: it must be there."""

    check: Check
    default: Any = None


MCC: Final = Column(matching(r"[0-9]{4}", "must be 4 digits"), "")
COUNTRY: Final = Column(matching(r"[A-Z]{2}", "must be 2 upper-case letters (ISO 3166-1)"), "")
IDENTIFIER: Final = Column(identifier, "")
_MERCHANT: Final = {"merchant_id": IDENTIFIER, "mcc": MCC, "terminal_id": IDENTIFIER, "country": COUNTRY}
_CARD: Final = {"id": Column(identifier), "pan": Column(pan), "currency": Column(currency)}

KINDS: Final[dict[str, dict[str, Column]]] = {
    "account": {
        **_CARD,
        "limit": Column(_text),
        "balance": Column(_text, "0"),
        "status": Column(one_of(AccountStatus), AccountStatus.ACTIVE),
        "expiry": Column(EXPIRY.check, ""),
    },
    "hold": {**_CARD, "amount": Column(_text), "expires_at": Column(moment), **_MERCHANT},
    "authorization": {
        **_CARD,
        "at": Column(moment),
        "amount": Column(_text),
        "response_code": Column(
            matching(r"[0-9]{2}", "must be a response code of two digits (ISO 8583 field 39)")
        ),
        "expiry": Column(EXPIRY.check, ""),
        **_MERCHANT,
    },
    "reversal": {
        "id": Column(identifier),
        "pan": Column(pan),
        "at": Column(moment),
        "original_id": Column(identifier),
    },
}
"""kind -> its fields. `account` and `hold` are imported, `authorization` and `reversal` are compared."""
AMOUNTS: Final = ("limit", "amount", "balance")


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose fields have passed. Amounts are minor units, times ms."""

    line: int
    kind: str
    values: dict[str, Any]

    def __repr__(self) -> str:
        return f"Row(line {self.line}, {self.kind})"


class BadFile(UserError):
    """Lines that cannot be taken, each with its number, field and reason."""


def read(path: Path, kinds: Iterable[str]) -> Iterator[Row]:
    """The rows of `path`, all of `kinds`. Raises `BadFile` with the first `ERRORS_MAX` faults and the number
    of the others, once the file is read to its end."""
    allowed = frozenset(kinds)
    faults: list[str] = []
    count = 0
    seen: set[tuple[str, str]] = set()
    for line, members in _members(path):
        try:
            if isinstance(members, Fault):
                raise members
            row = _row(line, members, allowed)
            key = row.kind, row.values["id"]
            if key in seen:
                raise Fault("id", "is that of an earlier row of this kind")
            seen.add(key)
        except Fault as fault:
            count += 1
            if count <= ERRORS_MAX:
                faults.append(f"line {line}: {fault}")
            continue
        if not count:
            yield row
    if count > ERRORS_MAX:
        faults.append(f"and {count - ERRORS_MAX} more")
    if faults:
        raise BadFile(f"{path}: nothing was taken from it\n  " + "\n  ".join(faults))


class Fault(ValueError):
    """What is wrong with one row."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}" if field else reason)


def _row(line: int, members: dict[str, Any], allowed: frozenset[str]) -> Row:
    kind = members.pop("kind", None)
    if not isinstance(kind, str) or kind not in allowed:
        raise Fault("kind", f"must be {' or '.join(sorted(allowed))}")
    columns = KINDS[kind]
    if unknown := [name for name in members if name not in columns]:
        # A field's name is a value too when a row is shifted: it is not repeated.
        raise Fault("", f"{len(unknown)} fields that {kind} does not have: it has {', '.join(columns)}")
    values: dict[str, Any] = {}
    for name, (check, default) in columns.items():
        given = members.get(name)
        if given is None:
            if default is None:
                raise Fault(name, "is missing")
            values[name] = default
            continue
        try:
            values[name] = check(given)
        except Invalid as error:
            raise Fault(name, str(error)) from None
    for name in AMOUNTS:
        if name in values:
            values[name] = _minor(values[name], values["currency"], name)
    return Row(line, kind, values)


def _minor(text: str, currency: str, name: str) -> int:
    """`balance` may be below zero and, when left out, is "0" in any currency."""
    if name == "balance" and text == "0":
        return 0
    negative = name == "balance" and text.startswith("-")
    try:
        minor = parse_amount(text.removeprefix("-") if negative else text, exponent_of(currency))
    except InvalidAmount as error:
        raise Fault(name, str(error)) from None
    return -minor if negative else minor


# -- the two formats -------------------------------------------------------------------------------


def _members(path: Path) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """(line number, fields); a line that cannot be read at all is a `Fault`."""
    formats = {".jsonl": _json_lines, ".csv": _csv}
    form = formats.get(path.suffix)
    if form is None:
        raise BadFile(f"{path}: the name must end with .jsonl or .csv")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from form(file)
    except Fault as fault:
        raise BadFile(f"{path}: {fault}") from None
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadFile(f"{path}: it is not UTF-8") from None


def _json_lines(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    number = 0
    while text := file.readline(LINE_CHARACTERS_MAX):
        number += 1
        if len(text) == LINE_CHARACTERS_MAX:
            raise Fault("", f"line {number}: longer than {LINE_CHARACTERS_MAX} characters")
        if not text.strip():
            continue
        try:
            members = orjson.loads(text)
        except orjson.JSONDecodeError:
            members = None
        yield number, members if isinstance(members, dict) else Fault("", "is not a JSON object")


def _csv(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """An empty cell is a field that is not there."""
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        known = {"kind"}.union(*KINDS.values())
        if not header or "kind" not in header or not set(header) <= known or len(set(header)) != len(header):
            raise Fault(
                "", f"line 1: must name the columns, each once: kind and some of {', '.join(sorted(known))}"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                yield reader.line_num, Fault("", f"has {len(cells)} cells, the first line has {len(header)}")
            else:
                yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise Fault("", f"line {reader.line_num}: {error}") from None
