"""Three brokers: an acknowledged record survives any one of them."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from mini_visa.broker import Cluster
from mini_visa.kafka import TopicPlan, apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.slow]


async def test_writes_go_on_when_a_broker_dies_and_nothing_acknowledged_is_lost(
    tmp_path, jars_cache, settings_for
):
    with Cluster(tmp_path / "cluster", libs_cache=jars_cache) as cluster:
        settings = settings_for(cluster.addresses, replication=3)
        partitions = [TopicPartition("safe", number) for number in range(3)]
        await apply_topics(settings, [TopicPlan("safe", 3, 3, {"min.insync.replicas": "2"})])
        producer = AIOKafkaProducer(bootstrap_servers=cluster.addresses, acks="all", enable_idempotence=True)
        await producer.start()
        acknowledged = []
        try:
            for number in range(30):
                if number == 10:
                    cluster.nodes[1].kill()
                if number == 20:
                    cluster.nodes[1].start()
                value = b"%d" % number
                await producer.send_and_wait("safe", value, partition=number % 3)
                acknowledged.append(value)
        finally:
            await producer.stop()
        consumer = AIOKafkaConsumer(bootstrap_servers=cluster.addresses, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign(partitions)
            values = [(await consumer.getone()).value for _ in acknowledged]
        finally:
            await consumer.stop()
        assert sorted(values) == sorted(acknowledged)
