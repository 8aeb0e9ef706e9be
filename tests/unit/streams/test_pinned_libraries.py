"""The kernel stands on parts of Faust and aiokafka that an upgrade may move: then these fail first."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka
import faust
import mode
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol import fetch
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record._crecords import default_records
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from counting import ITEMS, ROWS, SEEN, Item

from mini_visa.settings import Settings
from mini_visa.streams import Context, create_app
from mini_visa.streams import app as kernel_app
from mini_visa.streams.app import FAUST_VERSION, App, Kernel
from mini_visa.streams.poison import Fatal


@pytest.fixture
def app(tmp_path: Path) -> App:
    return create_app("counting", Settings(home=tmp_path, broker="kafka://nowhere:1"))


def test_the_versions_are_the_ones_the_kernel_is_checked_with() -> None:
    assert faust.__version__ == FAUST_VERSION == "0.15.3"
    assert aiokafka.__version__.startswith("0.14.")


def test_another_faust_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_app.importlib.metadata, "version", lambda _: "0.16.0")
    with pytest.raises(Fatal, match=r"faust-streaming 0\.16\.0 is installed"):
        create_app("counting")


def test_faust_starts_its_sensors_and_the_kernel_and_nothing_else(app: App) -> None:
    """Points 8 to 12 of docs/kernel.md: what is not started cannot commit, seek, restart or recover."""
    started = [type(service).__name__ for service in app.on_init_dependencies()]
    assert started == ["Monitor", "Kernel"]
    assert isinstance(app.kernel, Kernel)
    assert app._consumer is None and app._producer is None and app._transport is None


async def test_a_started_app_has_touched_no_consumer_producer_or_table_of_faust(app: App) -> None:
    @app.follower
    class Nothing:
        """An app needs something to run."""

        ready = True

        def __init__(self, settings: Settings) -> None:
            self.stopping = asyncio.Event()

        async def run(self) -> None:
            await self.stopping.wait()

        def stop(self) -> None:
            self.stopping.set()

    async with app:
        await asyncio.sleep(0)
        assert app._consumer is None and app._producer is None and app._transport is None
        assert "tables" not in app.__dict__ and "topics" not in app.__dict__


def test_fausts_hooks_are_where_the_kernel_overrides_them() -> None:
    for name in ("on_first_start", "on_start", "on_started", "on_init_dependencies"):
        assert inspect.isfunction(getattr(faust.App, name)), name
    boot = faust.app.base.BootStrategy
    for name in ("server", "client_only", "producer_only", "sensors"):
        assert list(inspect.signature(getattr(boot, name)).parameters) == ["self"]
    # The three are all that an app asks its strategy for, besides the web server that create_app turns off.
    base = inspect.getsource(faust.App)
    asked = set(re.findall(r"self\.boot_strategy\.(\w+)", base))
    assert asked == {"server", "client_only", "producer_only", "_should_enable_web"}
    assert "self.boot_strategy = self.BootStrategy(self)" in base
    for name in ("on_started_init_extra_tasks", "on_started_init_extra_services"):
        assert inspect.iscoroutinefunction(getattr(faust.App, name)), name
    assert "for service in self._extra_services" in base and "self._extra_service_instances = [" in base
    assert isinstance(inspect.getattr_static(faust.App, "producer"), property)
    assert isinstance(inspect.getattr_static(faust.App, "consumer"), property)


async def test_sending_outside_the_transaction_is_refused(app: App) -> None:
    """Point 8."""
    for attempt in (
        lambda: app.send("items", value=b"x"),
        lambda: app.topic("items", value_type=bytes).send(value=b"x"),
        lambda: app.topic("items", value_type=bytes).send_soon(value=b"x"),
    ):
        with pytest.raises(Fatal, match="outside the batch's transaction"):
            result = attempt()
            if inspect.isawaitable(result):
                await result
    for use in ("producer", "consumer"):
        with pytest.raises(Fatal, match="outside the batch's transaction"):
            getattr(app, use)
    with pytest.raises(Fatal):
        app.agent(ITEMS)
    with pytest.raises(Fatal):
        app.Table("rows")


def test_modes_worker_ends_where_the_kernels_one_ends_sooner() -> None:
    """`worker._Worker` overrides the sleep before the loop is closed."""
    assert "await asyncio.sleep(1.0)" in inspect.getsource(mode.Worker._sentinel_task)
    assert "ensure_future(self._sentinel_task(), loop=self.loop)" in inspect.getsource(mode.Worker)


def test_a_table_belongs_to_one_processor(app: App) -> None:
    """Point 6."""

    @app.processor(source=ITEMS, tables=[ROWS], sinks=[SEEN])
    def one(_: Item, __: Context) -> None: ...

    with pytest.raises(AssertionError, match="a table belongs to one processor"):

        @app.processor(source=ITEMS, tables=[ROWS])
        def two(_: Item, __: Context) -> None: ...

    with pytest.raises(AssertionError, match="two processors one"):
        app.processor(source=ITEMS, name="one")(one.handler)


def test_aiokafkas_group_coordinator_has_the_shape_that_membership_uses() -> None:
    wanted = {
        "group_id", "group_instance_id", "session_timeout_ms", "heartbeat_interval_ms", "retry_backoff_ms",
        "enable_auto_commit", "assignors", "max_poll_interval_ms", "rebalance_timeout_ms",
    }  # fmt: skip
    assert wanted <= set(inspect.signature(GroupCoordinator.__init__).parameters)
    source = inspect.getsource(GroupCoordinator)
    for used in ("self.generation", "self.member_id", "def check_errors", "def close"):
        assert used in source
    assert "on_partitions_revoked(revoked)" in source and "on_partitions_assigned(assigned)" in source
    for method in ("register_fetch_waiters", "subscribe", "assigned_partitions"):
        assert hasattr(SubscriptionState, method)
    for method in (
        "bootstrap", "send", "coordinator_lookup", "set_topics", "add_topic", "close", "get_random_node",
        "force_metadata_update", "_wait_on_metadata",
    ):  # fmt: skip
        assert hasattr(AIOKafkaClient, method)


def test_aiokafkas_record_batches_take_a_producer_once_they_are_filled() -> None:
    """`commit._Pack` fills them before the transaction's producer is known."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=1,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=0,
        batch_size=100,
    )
    assert builder.append(0, 1, b"k", b"v", []) is not None
    assert builder.append(1, 1, b"k", b"v" * 100, []) is None
    builder.set_producer_state(7, 3, 40)
    (batch,) = _batches(bytes(builder.build()))
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 3, 40)
    assert batch.is_transactional and batch.validate_crc()
    assert [record.value for record in batch] == [b"v"]


def test_aiokafkas_group_coordinator_does_what_membership_counts_on() -> None:
    """A member that gave up its partitions rejoins, errors of callbacks do not (hence `poison`), and closing
    leaves the group only without an instance's name."""
    source = inspect.getsource(GroupCoordinator)
    join = inspect.getsource(GroupCoordinator.ensure_active_group)
    assert (
        join.index("_on_join_prepare") < join.index("_stop_heartbeat_task") < join.index("_do_rejoin_group")
    )
    assert "self.generation > 0 and self._group_instance_id is None" in source
    assert "idle_time >= self._max_poll_interval" in source, "POLL_NEVER_MS turns this off"
    assert "await self._coordination_task" in inspect.getsource(GroupCoordinator.close)
    for callback in ("_on_join_prepare", "_on_join_complete"):
        assert "except Exception:" in inspect.getsource(getattr(GroupCoordinator, callback))


def test_aiokafkas_requests_and_responses_have_the_shape_that_the_wire_reads() -> None:
    parameters = {
        FetchRequest: ["max_wait_time", "min_bytes", "max_bytes", "isolation_level", "topics", "rack_id"],
        OffsetRequest: ["replica_id", "isolation_level", "topics"],
        OffsetFetchRequest: ["consumer_group", "partitions"],
    }
    for request, wanted in parameters.items():
        assert list(inspect.signature(request).parameters) == wanted
    found = 0
    for response in vars(fetch).values():
        if not (inspect.isclass(response) and response.__name__.startswith("FetchResponse_v")):
            continue
        topic = dict(zip(response.SCHEMA.names, response.SCHEMA.fields, strict=True))["topics"].array_of
        fields = dict(zip(topic.names, topic.fields, strict=True))["partitions"].array_of.names
        if response.API_VERSION >= 4:  # the first that knows transactions
            found += 1
            assert fields[:4] == ("partition", "error_code", "highwater_offset", "last_stable_offset")
            assert fields[5 if response.API_VERSION >= 5 else 4] == "aborted_transactions"
            assert fields[-1] == "message_set"
    assert found >= 8
    batch = default_records.DefaultRecordBatch
    for name in ("base_offset", "next_offset", "is_control_batch", "is_transactional", "producer_id"):
        assert hasattr(batch, name), name


def _batches(data: bytes) -> Iterator[Any]:
    memory = MemoryRecords(data)
    while memory.has_next():
        yield memory.next_batch()
