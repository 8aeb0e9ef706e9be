"""Who may do what: bearer keys with scopes. Off by default on one machine, see the setting `auth`.

The keys file holds SHA-256 digests only; a key itself is shown once, when it is made. (A key has 256
random bits, so a fast hash is enough: there is nothing to guess.)
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import msgspec

from mini_visa.domain.commands import LOCAL_CLIENT, RESERVED_CLIENTS
from mini_visa.errors import UserError
from mini_visa.gateway.problems import Problem
from mini_visa.settings import Settings

log = logging.getLogger(__name__)

SCOPES: Final[Mapping[str, str]] = {
    "payments:write": "authorize, capture, reverse, refund, dispute",
    "payments:read": "see payments",
    "accounts:write": "open and change accounts",
    "accounts:read": "see accounts and statements",
    "ledger:read": "see the ledger and settlement",
    "risk:read": "see alerts and rules",
    "risk:write": "change rules",
    "operations:read": "see metrics",
}
OWN: Final = ":own"
OWNED: Final = ("payments:write", "payments:read", "accounts:write", "accounts:read")
"""A key may have each of these for its own client's payments and accounts only: "payments:read:own"."""
RELOAD_S: Final = 1.0
"""A key that is made or revoked counts after this time at the latest."""
KEYS_MAX: Final = 10_000

_KEY: Final = re.compile(r"mvk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class AccessError(UserError, ValueError):
    """The keys file, or what was asked of it, cannot be used. The text says what to do."""


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the file has it. `name` is the client: the scope of its request ids."""

    key_id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: str
    revoked_at: str = ""


def keys_file(settings: Settings) -> Path:
    return settings.home / "keys.json"


def list_keys(path: Path) -> list[AccessKey]:
    """Every key ever made, revoked ones too. Raises `AccessError` on one that cannot be used."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return msgspec.json.decode(data, type=list[AccessKey])
    except msgspec.DecodeError as error:
        raise AccessError(f"{path} is damaged ({error}): restore it or remove it and make new keys") from None


def create_key(path: Path, name: str, scopes: Iterable[str]) -> str:
    """Adds a key for the client `name` and returns it: the only time it can be seen.

    Raises `AccessError` for an unknown scope, none, or a name that is bad or the program's own.
    """
    wanted = tuple(sorted(set(scopes)))
    known = [*SCOPES, *(scope + OWN for scope in OWNED)]
    unknown = [scope for scope in wanted if scope not in known]
    if unknown or not wanted:
        raise AccessError(f"unknown scopes {unknown or '(none given)'}: choose from {', '.join(known)}")
    if not _NAME.fullmatch(name):
        raise AccessError("a client's name is 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if name in RESERVED_CLIENTS:
        raise AccessError(
            f"{', '.join(sorted(RESERVED_CLIENTS))} are names of the program's own: choose another"
        )
    keys = list_keys(path)
    if len(keys) >= KEYS_MAX:
        raise AccessError(f"there are {KEYS_MAX} keys already: remove revoked ones from {path}")
    key_id = secrets.token_hex(6)
    key = f"mvk_{key_id}_{secrets.token_urlsafe(32)}"
    added = AccessKey(key_id=key_id, name=name, sha256=_digest(key), scopes=wanted, created_at=_now())
    _write(path, [*keys, added])
    return key


def revoke_key(path: Path, key_id: str) -> AccessKey:
    """The key is refused from now on. Raises `AccessError` when there is none of this id."""
    keys = list_keys(path)
    for place, key in enumerate(keys):
        if key.key_id == key_id:
            revoked = key if key.revoked_at else msgspec.structs.replace(key, revoked_at=_now())
            keys[place] = revoked
            _write(path, keys)
            return revoked
    raise AccessError(f"there is no key {key_id}: list them to see their ids")


class Client(NamedTuple):
    """Who asks, and whether what others have made is there for it."""

    name: str
    own: bool = False
    """Only what its own requests have made."""


LOCAL: Final = Client(LOCAL_CLIENT)


class Access:
    """Turns an Authorization header into the client it stands for."""

    def __init__(self, settings: Settings) -> None:
        """Raises `AccessError` when access is required and no key is usable."""
        self.required = settings.auth == "required"
        self._path = keys_file(settings)
        self._keys: dict[str, AccessKey] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")
        if self.required:
            self._keys = {key.key_id: key for key in list_keys(self._path)}
            if not any(not key.revoked_at for key in self._keys.values()):
                raise AccessError(
                    f"MINI_VISA_AUTH is required and {self._path} holds no usable key: "
                    "make one with `mini-visa keys create NAME --scope payments:write`, "
                    "or set MINI_VISA_AUTH=off"
                )

    def client(self, authorization: str | None, scope: str | None) -> Client:
        """Who asks. Raises `Problem` 401 (who are you?) or 403 (you may not)."""
        if not self.required or scope is None:
            return LOCAL
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        match = _KEY.fullmatch(key) if scheme.lower() == "bearer" else None
        known = self._keys.get(match[1]) if match else None
        if known is None or not hmac.compare_digest(known.sha256, _digest(key)) or known.revoked_at:
            raise Problem(
                401,
                "unauthorized",
                "Send Authorization: Bearer KEY with a valid key.",
                headers={"WWW-Authenticate": 'Bearer realm="mini-visa"'},
            )
        own = scope not in known.scopes
        if own and scope + OWN not in known.scopes:
            raise Problem(
                403,
                "forbidden",
                f"This key lacks the scope {scope}.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
        return Client(known.name, own)

    def _reload(self) -> None:
        """Reads the file when it, or who may read it, has changed. One that cannot be used leaves
        the keys known before in force."""
        now = monotonic()
        if now - self._looked < RELOAD_S:
            return
        self._looked = now
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        stamp = (status.st_ctime_ns, status.st_ino)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.key_id: key for key in list_keys(self._path)}
        except AccessError as error:
            log.error("the access keys stay as they were: %s", error)


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(path: Path, keys: list[AccessKey]) -> None:
    """Replaces the file in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: Any = msgspec.to_builtins(keys)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        json.dump(rows, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
