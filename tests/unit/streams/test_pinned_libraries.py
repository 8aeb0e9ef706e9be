"""The kernel stands on parts of Faust and aiokafka that an upgrade may move: then these fail first."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import aiokafka
import faust
import mode
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
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
    assert list(inspect.signature(faust.app.base.BootStrategy.server).parameters) == ["self"]
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


async def test_aiokafkas_batch_builder_is_filled_the_way_the_kernel_fills_it() -> None:
    """`commit._Pack` calls the builder below and sets the number of records itself."""
    producer = AIOKafkaProducer(bootstrap_servers="nowhere:1")
    try:
        plain, packed = producer.create_batch(), producer.create_batch()
        for number in range(3):
            assert plain.append(key=b"k", value=b"%d" % number, timestamp=1) is not None
            assert packed._builder.append(number, 1, b"k", b"%d" % number, []) is not None
        packed._relative_offset = 3
        assert packed.record_count() == plain.record_count() == 3
        plain.close()
        packed.close()
        assert bytes(packed._build()) == bytes(plain._build())
    finally:
        await producer.stop()


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
    for method in ("bootstrap", "send", "coordinator_lookup", "set_topics", "add_topic", "close"):
        assert hasattr(AIOKafkaClient, method)


def test_aiokafkas_back_off_between_transactions_is_the_one_the_kernel_shortens() -> None:
    import aiokafka.producer.sender as sender

    import mini_visa.streams.commit as commit

    source: Any = inspect.getsource(sender.AddPartitionsToTxnHandler.handle_response)
    assert "return BACKOFF_OVERRIDE" in source
    assert sender.BACKOFF_OVERRIDE == 0.002 and commit.RETRY_MS == 5
