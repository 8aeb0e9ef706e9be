"""What one partition's store does in the background is charged to that partition, evenly, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.growth import Apart, Cost, Partition, totals_us
from tests.bench.parts import AT_WORK
from tests.bench.workload import PLAIN


def _cost(steps_us: float, background_us: float) -> Cost:
    return Cost(steps_us, background_us, disk_mib=1.0, resident_mib=1.0)


def test_background_work_is_shared_evenly_by_the_runs():
    assert totals_us([_cost(10, 0), _cost(12, 0), _cost(11, 30)]) == (20, 22, 21)


def test_a_run_begins_and_ends_with_a_store_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    partition = Partition(100, PLAIN, tmp_path)
    cost = partition.cost(2_000)
    assert cost.steps_us > 1
    assert cost.background_us >= 0
    database = partition._pass._store._database
    assert [database.property_int_value(name) for name in AT_WORK] == [0] * len(AT_WORK)
    assert database.property_int_value("rocksdb.num-entries-active-mem-table") == 0


async def test_a_partition_has_a_process_of_its_own():
    with Apart(100) as partition:
        await partition.run(500)
        await partition.run(500)
        process = partition._process
        assert len(partition.costs) == 2
    assert process.exitcode == -9
    assert not partition._folder.exists()


async def test_a_partition_whose_process_ends_is_an_error():
    with Apart(100) as partition:
        partition._process.kill()
        with pytest.raises(RuntimeError, match="process ended"):
            await partition.run(500)
