"""The services that the kernel's tests run: small, and exact to the record.

`count` keeps, per key, how many records it saw and the sum of their numbers, and answers each record with
the running values: an output is a witness of every record before it.
"""

from __future__ import annotations

import os

import msgspec

from mini_visa.streams import Context, Impossible, Topic, create_app, versioned

PREFIX = os.environ.get("KERNEL_TEST_PREFIX", "kernel-test")


class Item(msgspec.Struct, frozen=True):
    number: int
    do: str = ""


class Seen(msgspec.Struct, frozen=True):
    number: int
    count: int
    total: int


class Row(msgspec.Struct, frozen=True):
    count: int = 0
    total: int = 0


class Failure(Exception):
    """What a bug in a handler looks like."""


def _topic(name: str, kind: type) -> Topic:
    decoder = msgspec.json.Decoder(kind)

    def decode(data: bytes | None):
        if data is None:
            raise ValueError("no value")
        return decoder.decode(data)

    return Topic(f"{PREFIX}.{name}", decode, msgspec.json.Encoder().encode)


ITEMS = _topic("items", Item)
SEEN = _topic("seen", Seen)
OTHER = _topic("other", Seen)
ROWS = versioned("rows", Row)
NOTES = versioned("notes", str)

app = create_app(PREFIX)  # a service of the test's own: dead letter topics are named after it


@app.processor(source=ITEMS, tables=[ROWS, NOTES], sinks=[SEEN, OTHER])
def count(item: Item, context: Context) -> None:
    key = context.key or b""
    match item.do:
        case "fail":
            raise Failure("the handler has a bug")
        case "impossible":
            raise Impossible("no state allows it")
        case "huge row":
            context.table(NOTES)[key] = "x" * 1_500_000
        case "huge output":
            context.emit(SEEN, Seen(item.number, 0, 0), key=b"x" * 1_500_000)
        case "delete":
            del context.table(ROWS)[key]
            return
        case "only output":
            context.emit(OTHER, Seen(item.number, 0, 0))
            return
        case "nothing":
            return
    row = context.table(ROWS).get(key, Row())
    row = Row(row.count + 1, row.total + item.number)
    context.table(ROWS)[key] = row
    context.emit(SEEN, Seen(item.number, row.count, row.total))


if __name__ == "__main__":
    from mini_visa.settings import settings
    from mini_visa.streams.worker import run_apps

    run_apps([app], settings())
