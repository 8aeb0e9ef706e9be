"""What every message on a topic is: a frozen struct whose JSON tag names its type and version.

On the wire: ``{"type":"authorize/1", ...}``. The number is the message's version. A new
*optional* field keeps the version (old readers ignore it, new readers use its default). Anything
else is a new struct with the next number, and the old struct stays with an ``upcast()`` to it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False):
    """Base of all messages. Subclasses set ``tag="name/version"``. A frozen value is in no cycle, so the
    garbage collector need not walk it."""


class Undecodable(ValueError):
    """A record's bytes are not a message of its topic. The text never quotes the bytes."""


class MessageCodec(Generic[M]):
    """Bytes of one topic <-> its message types (JSON, UTF-8)."""

    __slots__ = ("_decoder", "_encoder", "types", "upcasts")

    def __init__(self, *types: type[Any]) -> None:
        """`types`: every struct, of every version, that a record of the topic may hold."""
        assert types, "a topic has at least one message type"
        union: Any = types[0]
        for other in types[1:]:
            union = union | other
        self.types = types
        self.upcasts = any(hasattr(message, "upcast") for message in types)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(union)
        self._encoder = msgspec.json.Encoder()

    def encode(self, message: M) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes | None) -> M:
        """Raises `Undecodable` with the field and the reason."""
        if data is None:
            raise Undecodable("the record has no value")
        try:
            message = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(f"not a message of this topic: {_reason(error)}") from None
        while self.upcasts and hasattr(message, "upcast"):
            message = message.upcast()
        return message  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    """msgspec's reason, without values: it may quote an unknown tag, which could hold anything."""
    text = str(error)
    if "Invalid value" in text:
        return "unknown message type" + (text[text.index(" - at") :] if " - at" in text else "")
    return text if isinstance(error, msgspec.DecodeError) else type(error).__name__
