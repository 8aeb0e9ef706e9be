"""The tokenization keys' file: read, or made with one random key where there is none.

A line a key, newest first: ``KEY_ID:HEX``. The account id of a card is its token under the OLDEST key,
so a key that is added in front changes no id. Whoever has this file can compute tokens from PANs: it is
readable by its owner only, and losing it means that no card finds its account again.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from mini_visa.domain.cards import InvalidTokenKey, Tokenizer, parse_token_keys
from mini_visa.settings import Settings

FIRST_KEY_ID: Final = "1"
SECRET_BYTES: Final = 32


def token_keys_file(settings: Settings) -> Path:
    return settings.token_keys_file or settings.home / "token-keys"


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises `InvalidTokenKey` with the file and the line, PermissionError where it cannot be read."""
    if not path.exists():
        _create(path)
    try:
        return Tokenizer(parse_token_keys(path.read_text("ascii")))
    except (InvalidTokenKey, UnicodeDecodeError) as error:
        reason = "it is not ASCII" if isinstance(error, UnicodeDecodeError) else error
        raise InvalidTokenKey(f"{path}: {reason}") from None


def _create(path: Path) -> None:
    """Complete before it is there: two gateways that start at once end up with one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(f"{FIRST_KEY_ID}:{secrets.token_hex(SECRET_BYTES)}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
