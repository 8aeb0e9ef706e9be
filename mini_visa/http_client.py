"""Calls the gateway from the command line: JSON in, JSON out, problems as errors that say what to do."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from mini_visa.errors import UserError

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 16 << 20


class Refused(UserError):
    """The gateway answered with a problem (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        lines = [f"{status} {problem.get('title', '')}: {problem.get('detail', '')}".rstrip(": ")]
        lines += [f"  {error.get('field')}: {error.get('message')}" for error in problem.get("errors", [])]
        super().__init__("\n".join(lines))


class Unreachable(UserError):
    """No gateway at the address."""


@dataclass(frozen=True)
class GatewayClient:
    """`url`: of the gateway, without a path. `api_key`: "" when authentication is off."""

    url: str
    api_key: str = ""

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        if not self.url.startswith(("http://", "https://")):
            raise Unreachable(f"The gateway's address must start with http:// or https://, not {self.url!r}.")
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key := self.api_key.strip():  # a file's last line has its end with it
            if not (key.isascii() and key.isprintable()):  # the error of the library would show it
                raise UserError("MINI_VISA_API_KEY is not a key: mini-visa keys create makes one.")
            headers["Authorization"] = f"Bearer {key}"
        try:
            request = urllib.request.Request(  # noqa: S310
                self.url.rstrip("/") + path, body, headers, method=method
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return _document(answer.read(ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as refused:
            with refused:
                raise Refused(refused.code, _document(refused.read(ANSWER_BYTES_MAX))) from None
        except (OSError, ValueError, HTTPException) as failure:
            reason = str(getattr(failure, "reason", failure)).strip()
            raise Unreachable(
                f"No gateway answers at {self.url} ({reason}). Start one with `mini-visa up`, "
                "or name another with --url or MINI_VISA_URL."
            ) from None


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {"detail": "the answer is not JSON: is this address the gateway's?"}
    return found if isinstance(found, dict) else {"items": found}
