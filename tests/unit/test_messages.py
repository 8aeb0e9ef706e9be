"""Messages of every version that was ever written are read for ever. `tests/unit/messages` has recorded ones:
a file a type and version, a line a record, as a service wrote it. Lines are added, never changed or removed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mini_visa import topics
from mini_visa.domain.messages import Message, MessageCodec, Undecodable

FOLDER = Path(__file__).parent / "messages"
RECORDED = [
    pytest.param(line["topic"], line["value"], line.get("means"), id=f"{path.stem}-{line['topic']}-{number}")
    for path in sorted(FOLDER.glob("*.jsonl"))
    for number, line in enumerate(map(json.loads, path.read_text().splitlines()))
]
TOPICS = {topic.name: topic for topic in topics.ALL}


def codec_of(topic: Any) -> MessageCodec[Any]:
    codec: MessageCodec[Any] = topic.decode.__self__
    return codec


def test_there_is_a_record_of_every_type_in_every_topic_that_may_hold_it() -> None:
    recorded = {(name, json.loads(value)["type"]) for name, value, _ in (row.values for row in RECORDED)}
    declared = {
        (topic.name, kind.__struct_config__.tag) for topic in topics.ALL for kind in codec_of(topic).types
    }
    assert recorded >= declared, "record one of each new type and version: tests/unit/messages"


@pytest.mark.parametrize(("topic", "value", "means"), RECORDED)
def test_a_recorded_message_still_means_what_it_meant(topic: str, value: str, means: Any) -> None:
    """What is written again is what was read: no field is lost, none is made up. `means` is for a version
    that has been replaced: what its upcast makes of it."""
    message = TOPICS[topic].decode(value.encode())
    assert json.loads(TOPICS[topic].encode(message)) == (means or json.loads(value))


@pytest.mark.parametrize(("topic", "value", "means"), RECORDED)
def test_an_old_worker_reads_a_message_with_a_field_that_it_does_not_know(
    topic: str, value: str, means: Any
) -> None:
    """Anywhere in it: a new optional field may be one of a payment's or of a capture's."""
    newer = _with_a_new_field(json.loads(value))
    assert newer != json.loads(value)
    assert TOPICS[topic].decode(json.dumps(newer).encode()) == TOPICS[topic].decode(value.encode())


def _with_a_new_field(value: Any) -> Any:
    """Every object in `value` has one, but those whose keys are data."""
    if isinstance(value, list):
        return [_with_a_new_field(one) for one in value]
    if isinstance(value, dict):
        data = ("metadata", "body", "thresholds")
        inner = {key: one if key in data else _with_a_new_field(one) for key, one in value.items()}
        return {**inner, "added_in_a_later_version": {"anything": [1]}}
    return value


class Sold(Message, frozen=True, kw_only=True, omit_defaults=True, tag="sold/3"):
    amount: int
    currency: str
    note: str = ""


class SoldInDollars(Message, frozen=True, kw_only=True, omit_defaults=True, tag="sold/2"):
    amount: int

    def upcast(self) -> Sold:
        return Sold(amount=self.amount, currency="USD")


class SoldInWholeDollars(Message, frozen=True, kw_only=True, omit_defaults=True, tag="sold/1"):
    dollars: int

    def upcast(self) -> SoldInDollars:
        return SoldInDollars(amount=self.dollars * 100)


SOLD: MessageCodec[Sold] = MessageCodec(Sold, SoldInDollars, SoldInWholeDollars)


@pytest.mark.parametrize(
    "value",
    [
        b'{"type":"sold/3","amount":500,"currency":"USD"}',
        b'{"type":"sold/2","amount":500}',
        b'{"type":"sold/1","dollars":5}',
    ],
)
def test_an_old_version_is_read_as_the_newest_step_by_step(value: bytes) -> None:
    message = SOLD.decode(value)
    assert message == Sold(amount=500, currency="USD")
    assert SOLD.encode(message) == b'{"type":"sold/3","amount":500,"currency":"USD"}'


def test_a_version_that_this_program_does_not_know_is_not_guessed() -> None:
    with pytest.raises(Undecodable, match="unknown message type"):
        SOLD.decode(b'{"type":"sold/4","amount":500,"currency":"USD"}')


def test_a_new_worker_reads_a_message_without_its_new_optional_field() -> None:
    before = msgspec.defstruct(
        "Before",
        [("amount", int), ("currency", str)],
        bases=(Message,),
        tag="sold/3",
        frozen=True,
        kw_only=True,
    )
    old = MessageCodec(before).encode(before(amount=5, currency="USD"))
    assert SOLD.decode(old) == Sold(amount=5, currency="USD", note="")
    new = SOLD.encode(Sold(amount=5, currency="USD", note="x"))
    assert MessageCodec(before).decode(new) == before(amount=5, currency="USD")
