"""Problems: every answer that is not a success, as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:mini-visa:problem:"


class FieldError(NamedTuple):
    """One thing wrong with the input. `message` never quotes the value: it could be a PAN."""

    field: str
    message: str


class Problem(Exception):
    """Raised anywhere below an endpoint; becomes the answer. `detail` tells a client what to do."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`kind` is the last part of `type`; `more` are members beside the standard ones."""
        super().__init__(f"{status} {kind}")
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.more = dict(more or {})
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        members: dict[str, Any] = {
            "type": TYPE_PREFIX + self.kind,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            members["errors"] = [error._asdict() for error in self.errors]
        return orjson.dumps(members | self.more)


def bad_input(*errors: FieldError) -> Problem:
    """400: the request itself is wrong; the same request can never succeed."""
    first = errors[0]
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(400, "bad-input", f"{first.field} {first.message}{others}", errors=errors)


def not_found(what: str) -> Problem:
    return Problem(404, "not-found", f"There is no such {what}.")


def busy(kind: str, detail: str, *, status: int = 503, retry_after_s: int = 1) -> Problem:
    """503 or 429 with Retry-After: nothing was done, the same request may succeed later."""
    return Problem(status, kind, detail, headers={"Retry-After": str(max(1, retry_after_s))})
