"""The projection on the real Kafka: exactly once, from where the database stands."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from mini_visa import topics
from mini_visa.readmodel import Database, PaymentFilters
from mini_visa.readmodel.projector import RebuildNeeded
from mini_visa.readmodel.testing import EventLog, random_log

from .conftest import digest_of

pytestmark = pytest.mark.broker


async def test_what_is_in_the_topics_is_in_sql_once(world, database, read_model):
    log = random_log(400, accounts=20)
    await world.send(log, transactional=True)
    await world.catch_up(database)
    assert await digest_of(database) == await world.folded()
    for account_id, account in log.accounts.items():
        assert await read_model.account(account_id) == account
    for payment_id, payment in log.payments.items():
        assert (await read_model.payment(payment_id)).payment == payment
    assert len((await read_model.alerts(None, 1_000)).items) == sum(map(len, log.alerts.values()))


async def test_a_second_run_goes_on_where_the_database_stands(world, database):
    log = random_log(100, accounts=10)
    await world.send(log)
    first = await world.catch_up(database)
    again = await world.catch_up(database)
    account = next(iter(log.accounts))
    log.authorize(account, 100)
    await world.send(log)
    second = await world.catch_up(database)
    assert (first.records, again.records, second.records) == (sum(world.sent.values()) - 1, 0, 1)
    assert await digest_of(database) == await world.folded()


async def test_what_a_transaction_took_back_is_not_shown(world, database):
    log = random_log(50, accounts=5)
    await world.send(log, transactional=True, commit=False)
    await world.send(log, transactional=True)
    projector = await world.catch_up(database)
    assert projector.records == sum(world.sent.values())
    assert await digest_of(database) == await world.folded()


async def test_events_are_seen_soon_and_an_idle_partition_is_not_old(world, database, read_model):
    log = EventLog()
    account = log.open("tok_1")
    async with world.running(database, group=f"{world.settings.environment}.g"):
        for _ in range(5):
            log.authorize(account, 100)
            await world.send(log)
            assert await read_model.wait_for(log.partition(account), log.last_position(account), 30)
        await asyncio.sleep(1.5)  # nothing happens, and yet it does not age
        async with asyncio.timeout(30):
            while await read_model.lag_ms() >= 1_000:  # noqa: ASYNC110 - it is a figure, not an event
                await asyncio.sleep(0.1)
    await asyncio.sleep(0.1)  # longer than an answer is kept
    at_stop = await read_model.lag_ms()
    await asyncio.sleep(0.2)
    assert await read_model.lag_ms() >= at_stop + 200


async def test_garbage_goes_to_the_dead_letters_and_the_next_record_is_applied(world, database, read_model):
    log = EventLog()
    account = log.open("tok_1")
    partition = log.partition(account)
    log.garbage(partition)
    log.garbage(partition, None)
    log.garbage(partition, b'{"type":"payment_authorized/1"}')
    payment = log.authorize(account, 100)
    await world.send(log)
    async with world.running(database, group=f"{world.settings.environment}.g"):
        await world.applied(read_model)
    assert (await read_model.payment(payment)).payment == log.payments[payment]
    letters = [
        dict(record.headers) | {"value": record.value}
        for record in (await dead_letters(world))[partition]
        if dict(record.headers)["source"].decode().startswith(world.events)
    ]
    assert [letter["value"] for letter in letters] == [
        b"\xff not json",
        None,
        b'{"type":"payment_authorized/1"}',
    ]
    assert [letter["source"].decode() for letter in letters] == [
        f"{world.events}/{partition}/{offset}" for offset in (1, 2, 3)
    ]
    assert b"missing required field" in letters[2]["reason"]


async def dead_letters(world):
    return await world.contents(topics.dead_letters("projection"))


async def test_committed_offsets_of_the_group_play_no_part(world, database, read_model):
    group = f"{world.settings.environment}.g"
    log = random_log(100, accounts=5)
    await world.send(log)
    consumer = AIOKafkaConsumer(bootstrap_servers=world.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(world.events, p) for p in range(4)])
    await consumer.commit({TopicPartition(world.events, p): 10**6 for p in range(4)})
    await consumer.stop()
    async with world.running(database, group=group):
        await world.applied(read_model)
    assert await digest_of(database) == await world.folded()


async def test_two_that_share_a_group_share_the_work(world, database, read_model):
    group = f"{world.settings.environment}.g"
    other = Database.of(world.settings, write=True)
    log = random_log(300, accounts=20)
    async with (
        world.running(database, group=group, instance="one") as one,
        world.running(other, group=group, instance="two") as two,
    ):
        for _ in range(20):
            await asyncio.sleep(0.2)
            if one._applied and two._applied and len(one._applied) + len(two._applied) == 8:
                break
        await world.send(log)
        await world.applied(read_model)
        assert one.records and two.records
    await other.close()
    assert await digest_of(database) == await world.folded()


async def test_two_that_apply_the_same_partitions_at_once_apply_nothing_twice(world, database, read_model):
    """As when one was taken for dead and is not."""
    log = random_log(100, accounts=20)
    other = Database.of(world.settings, write=True)
    async with world.running(database), world.running(other):
        for _ in range(10):
            await world.send(log)
            for account in list(log.accounts)[:20]:
                log.authorize(account, 100)
        await world.send(log)
        await world.applied(read_model)
    await other.close()
    assert await digest_of(database) == await world.folded()


async def test_a_topic_made_anew_is_refused_also_when_it_is_longer(world, database):
    await world.send(random_log(50, accounts=5))
    await world.catch_up(database)
    before = await digest_of(database)
    await world.delete(world.events)
    await world.create(world.events)
    world.sent.clear()
    await world.send(random_log(500, accounts=5, seed=2))
    with pytest.raises(RebuildNeeded, match="readmodel rebuild"):
        await world.catch_up(database)
    assert await digest_of(database) == before


async def test_a_log_that_ends_before_the_position_is_refused(world, database):
    await world.send(random_log(50, accounts=5))
    await world.catch_up(database)
    await world.delete(world.events)
    await world.create(world.events)
    with pytest.raises(RebuildNeeded, match=r"the log ends at 0.*readmodel rebuild"):
        await world.catch_up(database)


async def test_missing_topics_are_named(world, database):
    await world.delete(world.events)
    with pytest.raises(Exception, match=f"no topic {world.events}.*topics apply"):
        await asyncio.wait_for(world.projector(database).run(), 60)
    await world.create(world.events)


async def test_lists_are_served_while_rows_are_written(world, database, read_model):
    log = random_log(300, accounts=20)
    async with world.running(database):
        await world.send(log)
        async with asyncio.timeout(60):
            while len((await read_model.payments(PaymentFilters(), None, 1_000)).items) < len(log.payments):
                pass
