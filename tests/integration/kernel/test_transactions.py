"""The transactional producer alone: what is lost on its way is sent again, and is in the log once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.structs import TopicPartition
from laboratory import Laboratory

from mini_visa.streams import runtime, transaction_wire
from mini_visa.streams.commit import RECORD_BATCH_BYTES_MAX, OutcomeUnknown, Transactions
from mini_visa.streams.poison import Fatal
from mini_visa.streams.wire import Wire

pytestmark = pytest.mark.broker

PROGRESS = b"progress"


@pytest.fixture
async def lab(laboratory: Laboratory) -> Laboratory:
    await laboratory.create_topics(partitions=2)
    await laboratory.create_topic(laboratory.changelog(), partitions=2)
    return laboratory


@asynccontextmanager
async def owner(lab: Laboratory, *, timeout_s: float = 10.0) -> AsyncIterator[Transactions]:
    """Whoever takes partition 0 of the items."""
    transactions = Transactions(
        f"{lab.prefix}.0",
        lab.group(),
        TopicPartition(lab.items, 0),
        TopicPartition(lab.changelog(), 0),
        timeout_s,
        lab.options,
    )
    try:
        await transactions.fence()
        yield transactions
    finally:
        await transactions.stop()


async def commit(
    lab: Laboratory, transactions: Transactions, next_offset: int, values: Sequence[bytes]
) -> int:
    """`values` to both partitions of a topic, one row each, and the offset."""
    outputs = [(lab.seen, number % 2, b"k", value, 1, ()) for number, value in enumerate(values)]
    rows = [(b"row%d" % number, value) for number, value in enumerate(values)]
    return await transactions.commit(outputs, rows, PROGRESS, next_offset)


async def values_of(lab: Laboratory, topic: str) -> list[bytes | None]:
    """What a reader of committed records sees, all partitions."""
    found = await lab.read(topic)
    return [record.value for partition in sorted(found) for record in found[partition]]


async def test_each_transaction_is_there_once_with_its_rows_and_its_offset(lab: Laboratory) -> None:
    async with owner(lab) as transactions:
        last = [await commit(lab, transactions, number + 1, [b"%d" % number] * 2) for number in range(3)]
    assert await values_of(lab, lab.seen) == [b"0", b"1", b"2"] * 2
    rows = [[b"%d" % number, b"%d" % number, PROGRESS] for number in range(3)]
    assert await values_of(lab, lab.changelog()) == [value for three in rows for value in three]
    assert last == [2, 6, 10], "the commit markers of the transactions before have offsets too"
    assert (await lab.committed())[0] == 3


async def test_more_than_one_batch_of_a_partition_keeps_its_order(lab: Laboratory) -> None:
    """Kafka takes one batch of a partition in a request; each begins where the last one's numbers ended."""
    big = RECORD_BATCH_BYTES_MAX // 3
    values = [b"%02d" % (number // 2) + b"x" * big for number in range(16)]
    async with owner(lab) as transactions:
        await commit(lab, transactions, 1, values)
        await commit(lab, transactions, 2, values)
    assert [value and value[:2] for value in await values_of(lab, lab.seen)] == [
        b"%02d" % (number % 8) for number in range(32)
    ]


@pytest.mark.parametrize("request_name", ["_ProduceStruct", "_TxnOffsetCommitStruct", "_EndTxnStruct"])
async def test_an_answer_that_is_lost_is_asked_for_again_and_changes_nothing(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    async with owner(lab) as transactions:
        await commit(lab, transactions, 1, [b"a", b"a"])
        send, lost = transactions._sender.send, []

        async def lose(node: int, request: Any, **options: Any) -> Any:
            answer = await send(node, request, **options)
            classes = getattr(request, "_CLASSES", ())
            if any(each.__name__ == request_name for each in classes) and len(lost) < 2:
                lost.append(answer)
                raise errors.KafkaConnectionError("the answer is lost")
            return answer

        monkeypatch.setattr(transactions._sender, "send", lose)
        await commit(lab, transactions, 2, [b"b", b"b"])
        assert len(lost) == 2
        await commit(lab, transactions, 3, [b"c", b"c"])
    assert await values_of(lab, lab.seen) == [b"a", b"b", b"c"] * 2
    assert (await lab.committed())[0] == 3


async def test_a_new_owner_fences_the_old_one_whose_records_nobody_sees(lab: Laboratory) -> None:
    async with owner(lab) as old:
        await commit(lab, old, 1, [b"old", b"old"])
        async with owner(lab) as new:
            with pytest.raises(errors.KafkaError, match="another worker owns the partition now"):
                await commit(lab, old, 2, [b"late", b"late"])
            await commit(lab, new, 2, [b"new", b"new"])
    assert await values_of(lab, lab.seen) == [b"old", b"new"] * 2
    assert (await lab.committed())[0] == 2


async def test_a_new_owner_that_comes_before_the_commit_takes_the_transaction_away(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything was acknowledged; the commit is refused, and nothing of it stands."""
    async with owner(lab) as old:
        end = old._end

        async def fenced_before(*, commit: bool) -> None:
            if commit:
                async with owner(lab):
                    pass
            await end(commit=commit)

        monkeypatch.setattr(old, "_end", fenced_before)
        with pytest.raises(OutcomeUnknown, match="another worker owns the partition now"):
            await commit(lab, old, 1, [b"late", b"late"])
    assert await values_of(lab, lab.seen) == []
    assert await values_of(lab, lab.changelog()) == []
    assert lab.partitions and not await lab.committed()


async def test_a_batch_that_is_refused_aborts_what_was_taken(lab: Laboratory) -> None:
    await lab.configure(lab.seen, **{"max.message.bytes": "1000"})
    async with owner(lab) as transactions:
        with pytest.raises(errors.MessageSizeTooLargeError):
            await commit(lab, transactions, 1, [b"x" * 2_000, b"fits"])
        async with owner(lab) as new:
            await commit(lab, new, 1, [b"y", b"y"])
    assert await values_of(lab, lab.seen) == [b"y", b"y"]
    assert (await lab.committed())[0] == 1


async def test_a_cluster_without_these_transactions_is_refused(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire("features", lab.options)
    await wire.start()
    try:
        found = await wire.features()
        assert found[transaction_wire.TRANSACTION_VERSION] >= 2

        async def older(self: Wire) -> dict[str, int]:
            return {**found, transaction_wire.TRANSACTION_VERSION: 1}

        await runtime._check_transactions(wire)
        monkeypatch.setattr(Wire, "features", older)
        with pytest.raises(Fatal, match=r"transaction\.version is 1, and 2 is needed: Kafka 4\.0"):
            await runtime._check_transactions(wire)
    finally:
        await wire.stop()
