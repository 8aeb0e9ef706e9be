"""A rebuild beside the live read model: the same rows, put in place while it is read and written."""

from __future__ import annotations

import asyncio

import pytest

from mini_visa.readmodel import Database, DatabaseUnusable, PaymentFilters, ReadModel
from mini_visa.readmodel.rebuild import rebuild
from mini_visa.readmodel.testing import random_log

from .conftest import digest_of

pytestmark = pytest.mark.broker


def paid_again(log, times: int) -> None:
    for _ in range(times):
        for account in list(log.accounts)[:10]:
            log.capture(log.authorize(account, 100))


async def test_a_sound_read_model_is_rebuilt_to_the_same_rows(world, database, read_model):
    await world.send(random_log(300, accounts=20))
    await world.catch_up(database)
    before = await digest_of(database)
    shown = []
    done = await rebuild(world.settings, views=world.views, show=lambda *step: shown.append(step))
    assert (done.compared, done.different, done.switched) == (True, [], True)
    assert done.records == sum(world.sent.values())
    assert done.rows["payments"] == before["payments"][0]
    assert {what for what, _, _ in shown} >= {"applying the log", "comparing", "switching"}
    reader = Database.of(world.settings)
    assert await digest_of(reader) == before == await world.folded()
    await reader.close()
    assert not list(world.settings.home.glob("*.next.sqlite*"))


async def test_what_differs_from_the_log_is_named_and_put_right(world, database, read_model):
    await world.send(random_log(200, accounts=10))
    await world.catch_up(database)
    async with database.transaction() as connection:
        await connection.exec_driver_sql("UPDATE accounts SET held = held + 1")
        await connection.exec_driver_sql("DELETE FROM payments")
    checked = await rebuild(world.settings, views=world.views, switch=False)
    assert (checked.compared, checked.different, checked.switched) == (True, ["accounts", "payments"], False)
    assert (await read_model.payments(PaymentFilters())).items == []
    done = await rebuild(world.settings, views=world.views)
    assert done.different == ["accounts", "payments"]
    assert (await read_model.payments(PaymentFilters())).items
    assert await digest_of(database) == await world.folded()


async def test_queries_and_the_projection_go_on_through_a_rebuild(world, database, read_model):
    log = random_log(200, accounts=20)
    await world.send(log)
    first = next(iter(log.payments))
    done = asyncio.Event()
    queries = 0

    async def pay() -> None:
        while not done.is_set():
            paid_again(log, 2)
            await world.send(log, transactional=True)

    async def read() -> None:
        nonlocal queries
        newest = 0
        while not done.is_set():
            assert (await read_model.payment(first)) is not None
            page = await read_model.payments(PaymentFilters(), None, 1)
            assert page.items[0].created_at >= newest, "went back in time"
            newest = page.items[0].created_at
            queries += 1

    async with world.running(database, group=f"{world.settings.environment}.g"):
        await world.applied(read_model)
        work = [asyncio.create_task(pay()), asyncio.create_task(read()), asyncio.create_task(read())]
        for _ in range(2):
            rebuilt = await rebuild(world.settings, views=world.views)
            assert (rebuilt.compared, rebuilt.different) == (True, [])
            assert not any(task.done() for task in work), [task for task in work if task.done()]
        done.set()
        await asyncio.gather(*work)
        await world.applied(read_model)
    assert queries > 10
    assert await digest_of(database) == await world.folded()


async def test_a_topic_made_anew_is_taken_up_by_a_rebuild(world, database, read_model):
    await world.send(random_log(300, accounts=10))
    await world.catch_up(database)
    await world.delete(world.events)
    await world.create(world.events)
    world.sent.clear()
    await world.send(random_log(50, accounts=5, seed=2))
    done = await rebuild(world.settings, views=world.views)
    assert (done.compared, done.switched) == (False, True)
    await world.catch_up(database)
    assert await digest_of(database) == await world.folded()


@pytest.mark.parametrize("revision", [None, "0000", "9999"])
async def test_a_database_of_another_version_or_none_is_made_anew(world, database, revision):
    await world.send(random_log(50, accounts=5))
    async with database.transaction() as connection:
        statement = (
            "DROP TABLE alembic_version"
            if revision is None
            else f"UPDATE alembic_version SET version_num = '{revision}'"
        )
        await connection.exec_driver_sql(statement)
    done = await rebuild(world.settings, views=world.views)
    assert (done.compared, done.switched) == (False, True)
    async with await ReadModel.open(world.settings) as opened:
        assert (await opened.payments(PaymentFilters())).items


async def test_a_second_rebuild_at_the_same_time_is_refused(world, database):
    await world.send(random_log(50, accounts=5))
    async with database.beside().alone():
        with pytest.raises(DatabaseUnusable, match="another rebuild is at work"):
            await rebuild(world.settings, views=world.views)


async def test_a_rebuild_that_fails_leaves_the_live_read_model_as_it_was(world, database, read_model):
    await world.send(random_log(50, accounts=5))
    await world.catch_up(database)
    before = await digest_of(database)

    def fails(what: str, *_: int) -> None:
        if what == "switching":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await rebuild(world.settings, views=world.views, show=fails)
    assert await digest_of(database) == before
    assert not list(world.settings.home.glob("*.next.sqlite*"))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_file_that_cannot_be_read_is_replaced(world):
    await world.send(random_log(50, accounts=5))
    file = Database.of(world.settings).file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no database at all, but long enough" * 500)
    done = await rebuild(world.settings, views=world.views)
    assert (done.compared, done.switched) == (False, True)
    async with await ReadModel.open(world.settings) as opened:
        assert (await opened.payments(PaymentFilters())).items
