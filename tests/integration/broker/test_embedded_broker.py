"""The embedded broker: found again, never orphaned, never a stranger's killer, clear when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidTimestampError

from mini_visa.broker import BrokerError, EmbeddedBroker, embedded, jars
from mini_visa.broker.process import Identity
from mini_visa.broker.wire import at_rest
from mini_visa.kafka import TopicPlan, apply_topics
from mini_visa.transactions import hanging

pytestmark = pytest.mark.broker


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "broker"


def _same(broker: EmbeddedBroker) -> EmbeddedBroker:
    """The same broker as another process sees it: known by its directory only."""
    return EmbeddedBroker(broker.home, libs_cache=broker.libs_cache)


def _pid(broker: EmbeddedBroker) -> int:
    pid = broker.health().pid
    assert pid is not None
    return pid


def _ends(pid: int, within_s: float = 30.0) -> bool:
    found = Identity.of(pid)
    return found is None or found.wait(within_s)


async def _produce(address: str, topic: str, values: list[bytes], **options: object) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0, **options)
    finally:
        await producer.stop()


async def _values(address: str, topic: str, **options: Any) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", **options)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                values += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


class TestRunning:
    def test_it_answers_and_says_where_and_how_big_it_is(self, fresh_broker):
        health = fresh_broker.health()
        assert health.running and health.answers
        assert health.address == fresh_broker.address
        assert health.version == jars.kafka_version()
        assert health.memory_bytes and health.memory_bytes < 400 << 20
        assert any("started" in line for line in fresh_broker.logs(20))

    def test_another_process_finds_it_instead_of_starting_a_second(self, fresh_broker):
        assert _same(fresh_broker).start() is False
        assert _same(fresh_broker).address == fresh_broker.address
        assert _pid(_same(fresh_broker)) == _pid(fresh_broker)

    def test_another_process_can_stop_it(self, fresh_broker):
        pid = _pid(fresh_broker)
        assert _same(fresh_broker).stop() is True
        assert _ends(pid)
        assert fresh_broker.address is None
        assert fresh_broker.health().running is False
        assert fresh_broker.stop() is False

    async def test_records_and_port_outlive_a_stop_and_a_kill(self, fresh_broker, settings_for):
        address = fresh_broker.address
        await apply_topics(settings_for(address), [TopicPlan("kept", 1, 1, {})])
        await _produce(address, "kept", [b"before the stop"])
        fresh_broker.stop()
        assert fresh_broker.start() is True
        assert fresh_broker.address == address
        await _produce(address, "kept", [b"before the kill"])
        fresh_broker.kill()
        assert fresh_broker.health().running is False
        fresh_broker.start()
        assert fresh_broker.address == address
        assert await _values(address, "kept") == [b"before the stop", b"before the kill"]

    async def test_a_record_from_the_future_is_refused(self, fresh_broker, settings_for):
        await apply_topics(settings_for(fresh_broker.address), [TopicPlan("timely", 1, 1, {})])
        now_ms = int(time.time() * 1000)
        await _produce(fresh_broker.address, "timely", [b"now"], timestamp_ms=now_ms)
        with pytest.raises(InvalidTimestampError):
            await _produce(fresh_broker.address, "timely", [b"later"], timestamp_ms=now_ms + 300_000)


class TestStopping:
    """In order when it is at rest; as a crash in the middle of transactions, whose markers it would lose."""

    async def test_it_is_at_rest_when_no_transaction_was_open_for_a_while(self, fresh_broker, settings_for):
        await apply_topics(settings_for(fresh_broker.address), [TopicPlan("facts", 1, 1, {})])
        host, port = fresh_broker.address.split(":")

        async def rests(quiet_s: float, timeout_s: float) -> bool:
            return await asyncio.to_thread(at_rest, host, int(port), quiet_s, timeout_s)

        assert await rests(0.1, 5.0)
        producer = AIOKafkaProducer(bootstrap_servers=fresh_broker.address, transactional_id="t")
        await producer.start()
        try:
            async with producer.transaction():
                await producer.send_and_wait("facts", b"1", partition=0)
                assert not await rests(0.1, 0.5)
            assert await rests(0.1, 5.0), "also when it was committed a moment ago"
            busy = asyncio.create_task(_commit_for_ever(producer))
            assert not await rests(0.5, 1.0)
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
        finally:
            await producer.stop()
        fresh_broker.kill()
        assert not at_rest(host, int(port), 0.0, 1.0), "one that does not answer tells nothing"

    @pytest.mark.parametrize("busy", [False, True], ids=["at rest", "busy"])
    async def test_a_stop_is_in_order_only_at_rest(self, fresh_broker, settings_for, busy):
        settings = settings_for(fresh_broker.address)
        await apply_topics(settings, [TopicPlan("facts", 1, 1, {})])
        producer = AIOKafkaProducer(bootstrap_servers=fresh_broker.address, transactional_id="t")
        await producer.start()
        async with producer.transaction():
            await producer.send_and_wait("facts", b"committed", partition=0)
        if busy:
            await producer.begin_transaction()
            await producer.send_and_wait("facts", b"not committed", partition=0)
        await producer.stop()  # what it has begun stays open
        assert await asyncio.to_thread(fresh_broker.stop, quiet_s=0.1)
        assert (fresh_broker.home / "data" / ".kafka_cleanshutdown").exists() is not busy
        await asyncio.to_thread(fresh_broker.start)
        successor = AIOKafkaProducer(bootstrap_servers=fresh_broker.address, transactional_id="t")
        await successor.start()  # ends what its predecessor had begun
        await successor.stop()
        host, port = fresh_broker.address.split(":")
        assert await asyncio.to_thread(at_rest, host, int(port), 0.1, 30.0)
        assert await hanging(settings, after_s=-60.0) == []
        values = await _values(fresh_broker.address, "facts", isolation_level="read_committed")
        assert values == [b"committed"]


async def _commit_for_ever(producer: AIOKafkaProducer) -> None:
    while True:
        async with producer.transaction():
            await producer.send_and_wait("facts", b"again", partition=0)


class TestProcesses:
    def test_two_starts_at_once_make_one_broker(self, home, jars_cache):
        brokers = [EmbeddedBroker(home, libs_cache=jars_cache) for _ in range(2)]
        try:
            with ThreadPoolExecutor(2) as pool:
                started = list(pool.map(EmbeddedBroker.start, brokers))
            assert sorted(started) == [False, True]
            assert brokers[0].address == brokers[1].address
        finally:
            for broker in brokers:
                broker.stop()

    @pytest.mark.parametrize("victim", ["starter", "launcher"])
    def test_it_does_not_outlive_who_started_it(self, home, jars_cache, victim):
        """SIGKILL: whoever started it, or watches it, has no chance to clean up."""
        code = (
            "import sys, time; from pathlib import Path; from mini_visa.broker import EmbeddedBroker\n"
            "b = EmbeddedBroker(Path(sys.argv[1]), libs_cache=Path(sys.argv[2])); b.start()\n"
            "print(b.health().pid, b._launcher.pid, flush=True); time.sleep(600)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(home), str(jars_cache)], stdout=subprocess.PIPE, text=True
        ) as starter:
            assert starter.stdout is not None
            java, launcher = map(int, starter.stdout.readline().split())
            assert Identity.of(java)
            os.kill(starter.pid if victim == "starter" else launcher, signal.SIGKILL)
            try:
                assert _ends(java)
                assert _ends(launcher)
            finally:
                starter.kill()
                EmbeddedBroker(home).stop()

    def test_detached_it_outlives_who_started_it_until_it_is_stopped(self, home, jars_cache):
        code = (
            "import sys; from pathlib import Path; from mini_visa.broker import EmbeddedBroker\n"
            "EmbeddedBroker(Path(sys.argv[1]), libs_cache=Path(sys.argv[2])).start(detach=True)"
        )
        subprocess.run([sys.executable, "-c", code, str(home), str(jars_cache)], check=True, timeout=120)
        broker = EmbeddedBroker(home)
        try:
            assert broker.health().answers
        finally:
            assert broker.stop() is True

    def test_a_stranger_with_the_remembered_pid_is_left_alone(self, home):
        with subprocess.Popen(["sleep", "60"]) as stranger:
            home.mkdir()
            state = {"port": 1, "controller_port": 2, "cluster_id": "x", "version": jars.kafka_version()}
            (home / "broker.json").write_text(json.dumps(state | {"pid": stranger.pid, "started": "earlier"}))
            broker = EmbeddedBroker(home)
            assert broker.address is None
            assert broker.stop() is False
            assert stranger.poll() is None
            stranger.kill()


class TestPorts:
    def test_a_port_that_was_taken_meanwhile_is_replaced(self, fresh_broker):
        fresh_broker.stop()
        port = json.loads((fresh_broker.home / "broker.json").read_text())["port"]
        with socket.create_server(("127.0.0.1", port)):
            fresh_broker.start()
            assert fresh_broker.address != f"127.0.0.1:{port}"
            assert fresh_broker.health().answers

    def test_a_chosen_port_that_is_taken_is_an_error_that_says_so(self, home, jars_cache):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(BrokerError, match=f"Port {port} is in use"):
                EmbeddedBroker(home, libs_cache=jars_cache, port=port).start()

    def test_a_chosen_port_other_than_the_running_one_is_an_error(self, fresh_broker):
        with pytest.raises(BrokerError, match="runs already"):
            EmbeddedBroker(fresh_broker.home, libs_cache=fresh_broker.libs_cache, port=1).start()


class TestCannotStart:
    def test_a_full_disk_is_named_before_anything_is_written(self, home, jars_cache, monkeypatch):
        monkeypatch.setattr(embedded, "DISK_FREE_BYTES_MIN", 1 << 60)
        with pytest.raises(BrokerError, match=r"Only \d+ MB are free"):
            EmbeddedBroker(home, libs_cache=jars_cache).start()
        assert not (home / "data").exists()

    def test_files_that_are_no_kafka_data_are_left_alone(self, home, jars_cache):
        (home / "data").mkdir(parents=True)
        (home / "data" / "thesis.txt").write_text("precious")
        with pytest.raises(BrokerError, match="not a Kafka data directory"):
            EmbeddedBroker(home, libs_cache=jars_cache).start()
        assert (home / "data" / "thesis.txt").read_text() == "precious"

    def test_data_of_a_newer_kafka_are_left_alone(self, home, jars_cache):
        home.mkdir()
        state = {"port": 1, "controller_port": 2, "cluster_id": "x", "version": "99.0.0"}
        (home / "broker.json").write_text(json.dumps(state))
        with pytest.raises(BrokerError, match=r"written by Kafka 99\.0\.0"):
            EmbeddedBroker(home, libs_cache=jars_cache).start()

    def test_a_broken_state_file_is_named(self, home):
        home.mkdir()
        (home / "broker.json").write_text("{")
        with pytest.raises(BrokerError, match=r"broker\.json cannot be read"):
            EmbeddedBroker(home).start()

    def test_a_broker_that_dies_while_it_starts_shows_the_end_of_its_log(self, fresh_broker):
        fresh_broker.stop()
        meta = fresh_broker.home / "data" / "meta.properties"
        meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
        with pytest.raises(BrokerError, match=r"(?s)ended while it started.*node.*7"):
            fresh_broker.start()
        assert fresh_broker.health().running is False

    def test_a_broker_that_is_not_ready_in_time_shows_the_end_of_its_log(self, fresh_broker):
        with pytest.raises(BrokerError, match=r"(?s)was not ready within 0 s.*Its log"):
            fresh_broker.await_ready(brokers=2, timeout_s=0.1)
