"""Topics, positions and lag on a real broker."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from mini_visa import kafka, topics
from mini_visa.broker import BrokerError
from mini_visa.kafka import TopicError, TopicPlan
from tests.faults.network import Proxy

pytestmark = pytest.mark.broker


def _plan(environment: str, **config: str) -> TopicPlan:
    return TopicPlan(f"{environment}.letters", 2, 1, {"retention.ms": "86400000"} | config)


async def _status(settings, name):
    return next(topic for topic in await kafka.list_topics(settings) if topic.name == name)


class TestApply:
    async def test_every_declared_topic_is_made_with_its_configuration(self, fresh_broker, settings_for):
        settings = settings_for(fresh_broker.address, partitions=3, replies_partitions=2)
        changes = await kafka.apply_topics(settings)
        names = [topic.name for topic in topics.ALL] + [topics.dead_letters(name) for name in topics.SERVICES]
        assert [change.name for change in changes] == names
        assert {change.action for change in changes} == {"created"}
        there = {topic.name: topic for topic in await kafka.list_topics(settings)}
        assert sorted(there) == sorted(names)
        assert there["gateway.replies"].partitions == 2
        assert there["payment.events"].partitions == 3
        for topic in topics.ALL:
            config = there[topic.name].config
            assert config["retention.ms"] == str(topic.retention_ms)
            assert config["message.timestamp.type"] == "CreateTime"
            assert config["message.timestamp.after.max.ms"] == "60000"
            assert config["min.insync.replicas"] == "1"

    async def test_a_second_time_changes_nothing(self, broker, settings_for, environment):
        settings, plan = settings_for(broker), _plan(environment)
        assert [change.action for change in await kafka.apply_topics(settings, [plan])] == ["created"]
        assert await kafka.apply_topics(settings, [plan]) == []

    async def test_two_at_once_both_succeed(self, broker, settings_for, environment):
        settings, plan = settings_for(broker), _plan(environment)
        await asyncio.gather(*(kafka.apply_topics(settings, [plan]) for _ in range(3)))
        assert (await _status(settings, plan.name)).partitions == 2

    async def test_what_drifted_is_set_back_and_what_an_operator_added_stays(
        self, broker, settings_for, environment
    ):
        settings, plan = settings_for(broker), _plan(environment)
        await kafka.apply_topics(settings, [plan])
        admin = AIOKafkaAdminClient(bootstrap_servers=broker)
        await admin.start()
        try:
            drift = {"retention.ms": "5000000", "segment.ms": "7200000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, plan.name, drift)])
        finally:
            await admin.close()
        (change,) = await kafka.apply_topics(settings, [plan])
        assert (change.action, change.config) == ("changed", {"retention.ms": "86400000"})
        config = (await _status(settings, plan.name)).config
        assert (config["retention.ms"], config["segment.ms"]) == ("86400000", "7200000")

    async def test_another_partition_count_is_refused_and_nothing_is_made(
        self, broker, settings_for, environment
    ):
        settings, plan = settings_for(broker), _plan(environment)
        await kafka.apply_topics(settings, [plan])
        other = TopicPlan(f"{environment}.other", 1, 1, {})
        wider = TopicPlan(plan.name, 3, 1, plan.config)
        with pytest.raises(TopicError, match=r"has 2 partitions, the settings say 3"):
            await kafka.apply_topics(settings, [other, wider])
        assert other.name not in {topic.name for topic in await kafka.list_topics(settings)}

    async def test_what_the_cluster_refuses_is_an_error_with_its_reason(
        self, broker, settings_for, environment
    ):
        with pytest.raises(TopicError, match=r"refused to create .*InvalidReplicationFactor"):
            await kafka.apply_topics(settings_for(broker), [TopicPlan(f"{environment}.t", 1, 5, {})])
        with pytest.raises(TopicError, match=r"refused to create .*InvalidConfig"):
            await kafka.apply_topics(
                settings_for(broker), [TopicPlan(f"{environment}.t", 1, 1, {"retention.ms": "soon"})]
            )


class TestPositions:
    async def test_end_offsets_count_every_record(self, broker, settings_for, environment):
        settings, plan = settings_for(broker), _plan(environment)
        await kafka.apply_topics(settings, [plan])
        await _produce(broker, plan.name, 1, 3)
        ends = await kafka.end_offsets(settings, [plan.name])
        assert ends == {TopicPartition(plan.name, 0): 0, TopicPartition(plan.name, 1): 3}
        assert (await _status(settings, plan.name)).records == 3

    async def test_a_missing_topic_is_named(self, broker, settings_for, environment):
        with pytest.raises(TopicError, match=rf"no topic {environment}\.none.*topics apply"):
            await kafka.end_offsets(settings_for(broker), [f"{environment}.none"])

    async def test_lag_is_what_groups_of_this_environment_have_not_read(
        self, broker, settings_for, environment
    ):
        settings, plan = settings_for(broker), _plan(environment)
        await kafka.apply_topics(settings, [plan])
        await _produce(broker, plan.name, 0, 5)
        for group in (f"{environment}.reader", "somebody-else.reader"):
            consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False)
            await consumer.start()
            try:
                consumer.assign([TopicPartition(plan.name, 0)])
                await consumer.commit({TopicPartition(plan.name, 0): 2})
            finally:
                await consumer.stop()
        (behind,) = await kafka.lag(settings)
        assert (behind.group, behind.topic, behind.partition) == (f"{environment}.reader", plan.name, 0)
        assert (behind.committed, behind.end, behind.records) == (2, 5, 3)

    async def test_the_newest_timestamp_is_the_last_records(self, broker, settings_for, environment):
        settings, plan = settings_for(broker), _plan(environment)
        await kafka.apply_topics(settings, [plan])
        assert await kafka.newest_timestamp_ms(settings, plan.name) is None
        await _produce(broker, plan.name, 0, 3, timestamp_ms=1_700_000_000_000)
        assert await kafka.newest_timestamp_ms(settings, plan.name) == 1_700_000_000_002


class TestDeadLetters:
    async def test_they_are_kept_from_when_they_were_buried_on(self, broker, settings_for, environment):
        """Not from the time of what they are about: that may be none, and older than anything is kept."""
        settings = settings_for(broker)
        plan = kafka.dead_letters_plan(settings, environment)
        await kafka.apply_topics(settings, [plan])
        before_ms = time.time() * 1_000
        await _produce(broker, plan.name, 0, 1, timestamp_ms=0)
        newest_ms = await kafka.newest_timestamp_ms(settings, plan.name)
        assert newest_ms is not None and newest_ms >= before_ms - 1_000


class TestUnreachable:
    async def test_a_broker_that_is_not_there_is_an_error_that_names_it(self, settings_for, monkeypatch):
        monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_S", 2.0)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"No Kafka answers at 127\.0\.0\.1:{port}"):
            await kafka.list_topics(settings_for(f"127.0.0.1:{port}"))

    async def test_one_that_restarts_is_waited_for_and_one_that_stays_away_is_an_error(
        self, broker, settings_for
    ):
        target = broker.rpartition(":")[2]
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        settings = settings_for(f"127.0.0.1:{port}")
        with pytest.raises(BrokerError, match="No Kafka answers"):
            await kafka.await_broker(settings, patience_s=0.3)
        waiting = asyncio.create_task(kafka.await_broker(settings, patience_s=20))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        proxy = Proxy(port, int(target))
        await proxy.start()
        try:
            await waiting
        finally:
            await proxy.stop()

    async def test_something_that_is_no_kafka_is_an_error_that_names_it(self, settings_for, monkeypatch):
        monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_S", 2.0)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            with pytest.raises(BrokerError, match="No Kafka answers"):
                await kafka.list_topics(settings_for(f"127.0.0.1:{port}"))


async def _produce(address: str, topic: str, partition: int, count: int, timestamp_ms: int | None = None):
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    try:
        for number in range(count):
            at = None if timestamp_ms is None else timestamp_ms + number
            await producer.send_and_wait(topic, b"%d" % number, partition=partition, timestamp_ms=at)
    finally:
        await producer.stop()
