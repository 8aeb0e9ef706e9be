"""The services that the kernel's tests run: small, and exact to the record.

`count` keeps, per key, how many records it saw and the sum of their numbers, and answers each record with
the running values: an output is a witness of every record before it.

    python -m tests.integration.kernel.apps [counting] [doubling] [ticking]
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from mini_visa.settings import Settings, settings
from mini_visa.streams import App, Context, Impossible, Topic, create_app, versioned


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


def topic(name: str, kind: type) -> Topic[Any]:
    decoder = msgspec.json.Decoder(kind)

    def decode(data: bytes | None) -> Any:
        if data is None:
            raise ValueError("no value")
        return decoder.decode(data)

    return Topic(name, decode, msgspec.json.Encoder().encode)


def counting(prefix: str, configuration: Settings | None = None) -> App:
    """Counts `PREFIX.items` into `PREFIX.seen`."""
    items, seen, other = (
        topic(f"{prefix}.items", Item),
        topic(f"{prefix}.seen", Seen),
        topic(f"{prefix}.other", Seen),
    )
    rows, notes = versioned("rows", Row), versioned("notes", str)
    app = create_app(prefix, configuration)  # a service of the test's own: dead letters are named after it

    @app.processor(source=items, tables=[rows, notes], sinks=[seen, other])
    def count(item: Item, context: Context) -> None:
        key = context.key or b""
        match item.do:
            case "fail":
                raise Failure("the handler has a bug")
            case "impossible":
                context.table(rows)[key] = Row(1_000_000, 0)
                context.emit(seen, Seen(item.number, 0, 0))
                raise Impossible("no state allows it")
            case "huge row":
                context.table(notes)[key] = "x" * 1_500_000
            case "huge output":
                context.emit(seen, Seen(item.number, 0, 0), key=b"x" * 1_500_000)
            case "delete":
                del context.table(rows)[key]
                return
            case "only output":
                context.emit(other, Seen(item.number, 0, 0))
                return
            case "nothing":
                return
        row = context.table(rows).get(key, Row())
        row = Row(row.count + 1, row.total + item.number)
        context.table(rows)[key] = row
        context.emit(seen, Seen(item.number, row.count, row.total))

    return app


def doubling(prefix: str, configuration: Settings | None = None) -> App:
    """A second service in the same process: two processors on the same source."""
    items, doubled, tripled = (
        topic(f"{prefix}.items", Item),
        topic(f"{prefix}.doubled", Seen),
        topic(f"{prefix}.tripled", Seen),
    )
    app = create_app(f"{prefix}-more", configuration)

    @app.processor(source=items, tables=[versioned("rows", Row)], sinks=[doubled])
    def double(item: Item, context: Context) -> None:
        context.emit(doubled, Seen(2 * item.number, 0, 0))

    @app.processor(source=items, tables=[versioned("rows", Row)], sinks=[tripled])
    def triple(item: Item, context: Context) -> None:
        context.emit(tripled, Seen(3 * item.number, 0, 0))

    return app


def ticking(prefix: str, configuration: Settings | None = None) -> App:
    """Answers each tick with the event time it stands for."""
    items, seen = topic(f"{prefix}.items", Item), topic(f"{prefix}.seen", Seen)
    app = create_app(prefix, configuration)

    @app.processor(source=items, sinks=[seen], tick=lambda: Item(-1))
    def tick(item: Item, context: Context) -> None:
        context.emit(seen, Seen(item.number, 0, context.timestamp))

    return app


SERVICES = {"counting": counting, "doubling": doubling, "ticking": ticking}


if __name__ == "__main__":
    from mini_visa.streams.worker import run_apps

    wanted = sys.argv[1:] or ["counting"]
    run_apps([SERVICES[name](os.environ["KERNEL_TEST_PREFIX"]) for name in wanted], settings())
