"""A small processor for the unit tests of the kernel."""

from __future__ import annotations

import datetime
import os
import random
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from mini_visa.settings import Settings
from mini_visa.streams import Context, Impossible, Processor, Topic, versioned
from mini_visa.streams.ownership import Ownership, Plan, State
from mini_visa.streams.store import Identity


class Item(msgspec.Struct, frozen=True):
    number: int
    do: str = ""


class Row(msgspec.Struct, frozen=True):
    count: int = 0


def topic(name: str, key: str = "account", partitions: int | None = None) -> Topic[Any]:
    decoder = msgspec.json.Decoder(Item)

    def decode(data: bytes | None) -> Any:
        if data is None:
            raise ValueError("no value")
        return decoder.decode(data)

    return Topic(name, decode, msgspec.json.Encoder().encode, key=key, partitions=partitions)


ITEMS, SEEN = topic("items"), topic("seen")
REPLIES = topic("replies", key="gateway", partitions=3)
ROWS, NOTES = versioned("rows", Row), versioned("notes", str)

outside: dict[bytes, int] = {}


def _count(item: Item, context: Context) -> None:
    key = context.key or b""
    row = context.table(ROWS).get(key, Row())
    context.table(ROWS)[key] = Row(row.count + 1)
    context.emit(SEEN, Item(row.count + 1))
    match item.do:
        case "impossible":
            raise Impossible("no state allows it")
        case "bug":
            raise KeyError("a bug")
        case "clock":
            context.emit(SEEN, Item(int(time.time())))
        case "today":
            context.emit(SEEN, Item(datetime.datetime.now(tz=datetime.UTC).year))
        case "random":
            context.emit(SEEN, Item(random.randrange(10)))
        case "urandom":
            context.emit(SEEN, Item(os.urandom(1)[0]))
        case "uuid1":
            context.emit(SEEN, Item(uuid.uuid1().int % 1_000))
        case "uuid4":
            context.emit(SEEN, Item(uuid.uuid4().int % 1_000))
        case "socket":
            with socket.socket() as connection:
                connection.connect(("127.0.0.1", 9))
        case "file":
            with open(__file__) as file:  # noqa: PTH123
                file.readline()
        case "global":
            outside[key] = outside.get(key, 0) + 1
            context.emit(SEEN, Item(outside[key]))
        case "first in batch":
            if len(context.tables[ROWS]._dirty) == 1:  # its own row
                context.emit(SEEN, Item(-1))
        case "set order":
            for number, _ in enumerate({f"name-{number}" for number in range(20)}):
                context.emit(SEEN, Item(number, f"{_}"))
        case "delete":
            del context.table(ROWS)[key]


count = Processor("count", ITEMS, _count, (ROWS, NOTES), (SEEN, REPLIES))


def a_plan(home: Path, processor: Processor = count, **settings: Any) -> Plan:
    """Of a partition that never meets a broker."""
    return Plan(
        processor=processor,
        service="s",
        group="e.s.count",
        changelog="e.s.count.changelog",
        dead_letters="s.dead-letters",
        partition_counts={"items": 4, "seen": 4, "replies": 3},
        identity=Identity("cluster", bytes(16), bytes(16)),
        state=home,
        settings=Settings(home=home, **settings),
        client_options={"bootstrap_servers": "nowhere:1"},
    )


def become_running(one: Ownership) -> None:
    """As a partition that has been acquired."""
    for state in (State.FENCING, State.RESTORING, State.RUNNING):
        one._become(state)
