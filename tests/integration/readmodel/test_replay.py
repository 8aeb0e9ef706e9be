"""Accounts and payments from the log alone, against the read model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mini_visa.kafka import apply_topics
from mini_visa.readmodel import Database
from mini_visa.readmodel.testing import EventLog, random_log
from mini_visa.replay import CannotReplay, replay

from .conftest import PARTITIONS, World

pytestmark = pytest.mark.broker


@dataclass
class Story:
    world: World
    log: EventLog
    account: str
    payment: str
    held_at: int
    """When the payment was authorized and nothing else."""


@pytest.fixture
async def story(fresh_broker, settings_for) -> Story:
    world = World(settings_for(fresh_broker.address, partitions=PARTITIONS))
    await apply_topics(world.settings)
    log = random_log(100, accounts=5)
    log.gaps = False
    account = log.open("tok_story", limit=50_000)
    payment = log.authorize(account, 3_000)
    held_at = log.now - 10
    log.capture(payment, 1_000)
    log.reverse(payment)
    log.tick()
    database = Database.of(world.settings, write=True)
    await database.migrate()
    await world.send(log)
    await world.catch_up(database)
    await database.close()
    return Story(world, log, account, payment, held_at)


async def test_an_account_and_a_payment_are_replayed_as_they_are_and_as_they_were(story):
    settings, log = story.world.settings, story.log
    now = await replay(settings, story.account)
    assert (now.differences, now.account, now.events) == ([], log.accounts[story.account], 4)
    assert now.checked == ["its own events", "the read model"]
    assert "no topic" in now.skipped[0]  # no authorization service ran here
    payment = await replay(settings, story.payment)
    assert (payment.differences, payment.payment, payment.events) == ([], log.payments[story.payment], 3)

    then = await replay(settings, story.payment, at=story.held_at)
    assert then.differences == []
    assert (then.payment.authorized, then.payment.captured, then.account.held) == (3_000, 0, 3_000)
    assert then.events == 1
    by_offset = await replay(settings, story.payment, offset=then.offset)
    assert (by_offset.payment, by_offset.account) == (then.payment, then.account)

    for other in [*list(log.accounts)[:5], *list(log.payments)[:5]]:  # whose accounts went on after them
        assert (await replay(settings, other)).differences == []

    database = Database.of(settings, write=True)
    async with database.transaction() as connection:
        await connection.exec_driver_sql("DELETE FROM payment_events WHERE type = 'payment_reversed/1'")
    await database.close()
    damaged = await replay(settings, story.account)
    assert any("held 2000 instead of 0" in difference for difference in damaged.differences)
    assert any(story.payment in difference for difference in damaged.differences)

    for nobody in ("tok_nobody", "pay_nobody_1"):
        with pytest.raises(CannotReplay, match="is not in the log"):
            await replay(settings, nobody)
    with pytest.raises(CannotReplay, match="neither an account") as refusal:
        await replay(settings, "4111111111111111")
    assert "4111" not in str(refusal.value)
    with pytest.raises(CannotReplay, match="by then"):
        await replay(settings, story.account, at=1)
