"""Request bodies: JSON (RFC 8259, I-JSON's rules of RFC 7493) with nothing left to interpretation.

Duplicate names, NaN, lone surrogates, invalid UTF-8, a byte order mark and deep nesting are refused.
The messages never quote the body.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from mini_visa.gateway.problems import FieldError, bad_input

BODY: Final = "body"
"""`field` of an error that is about the body as a whole."""

_SHOWABLE: Final = re.compile(r"(?!.*[0-9]{6})[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class _Duplicate(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def showable(name: str) -> str:
    """A client's field name as an error may repeat it: what looks unlike a name could be anything,
    a PAN too, and is not repeated."""
    return name if _SHOWABLE.fullmatch(name) else "(unnamed)"


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Duplicate(name)
            seen.add(name)
    return members


def _no_constant(_name: str) -> NoReturn:
    raise bad_input(FieldError(BODY, "is not JSON: NaN and Infinity are not JSON values"))


_DECODE: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant).decode


def parse_object(data: bytes) -> dict[str, Any]:
    """The object that `data` holds. Raises `Problem` 400."""
    if not data:
        raise bad_input(FieldError(BODY, "is missing: send a JSON object"))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise bad_input(FieldError(BODY, f"is not UTF-8 (at byte {error.start})")) from None
    try:
        value = _DECODE(text)
    except _Duplicate as error:
        raise bad_input(FieldError(showable(error.name), "is there more than once")) from None
    except json.JSONDecodeError as error:
        raise bad_input(
            FieldError(BODY, f"is not JSON: error at line {error.lineno}, column {error.colno}")
        ) from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        raise bad_input(
            FieldError(BODY, "is not acceptable JSON: nested too deep or a huge number")
        ) from None
    if not isinstance(value, dict):
        raise bad_input(FieldError(BODY, "must be a JSON object"))
    return value
