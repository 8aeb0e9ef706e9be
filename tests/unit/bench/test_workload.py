"""How many of a workload's records are to be approved follows from it: the services say the same."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_visa import topics
from mini_visa.domain.commands import ReversePayment
from mini_visa.streams.worker import find
from tests.bench.parts import Pass, fetched
from tests.bench.services import EVENT_TIME_BACK_MS, Tally, outputs
from tests.bench.topiclog import Entry
from tests.bench.workload import HOT, HOT_HOLDS, HOT_REQUESTS, HOT_SHARE, PLAIN, SPREAD, Mix, Workload

RECORDS = 4_000


def _load(accounts: int) -> Workload:
    start_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
    return Workload(series="test", accounts=accounts, start_ms=start_ms)


class Partition:
    """One partition of a service, which counts its outputs."""

    def __init__(self, service: str, folder: Path) -> None:
        (processor,) = find(service).app.processors.values()
        self._pass = Pass(processor, folder)
        self._offset = 0
        self.tallies = {topic.name: Tally(topic) for topic in outputs(service)}

    def run(self, entries: Iterable[Entry], *, counted: bool = True) -> None:
        batch = list(entries)
        result = self._pass.run(fetched(batch, self._offset), self._offset, measured=False)
        self._offset += len(batch)
        for topic, _, _, value, *_ in result.outputs if counted else ():
            if topic in self.tallies:
                self.tallies[topic](SimpleNamespace(value=value))

    def check(self, records: int, approved: int) -> None:
        for tally in self.tallies.values():
            tally.check(records, approved)

    def close(self) -> None:
        self._pass.close()


@pytest.mark.parametrize("mix", [PLAIN, SPREAD, HOT])
def test_authorization_approves_what_the_workload_says(tmp_path: Path, mix: Mix):
    load, partition = _load(200), Partition("authorization", tmp_path)
    partition.run(load.open_accounts(), counted=False)
    partition.run([*load.history(mix), *load.authorizations(RECORDS, step_ms=1, mix=mix)])
    history = 0 if mix is PLAIN else HOT_REQUESTS
    partition.check(history + RECORDS, load.approved)
    assert load.approved < history + RECORDS
    with pytest.raises(RuntimeError, match="approved on payment"):
        partition.tallies["payment.events"].check(history + RECORDS, load.approved - 1)
    partition.close()


def test_risk_approves_what_the_workload_says(tmp_path: Path):
    load, partition = _load(100), Partition("risk", tmp_path)
    partition.run(load.authorizations(1_000, step_ms=60, assessed=False), counted=False)
    before = load.approved
    partition.run(load.authorizations(RECORDS, step_ms=60, assessed=False))
    approved = load.approved - before
    assert 0.1 * RECORDS < approved < 0.9 * RECORDS
    partition.check(RECORDS, approved)
    partition.close()


def test_an_output_said_twice_is_an_error(tmp_path: Path):
    load, partition = _load(100), Partition("risk", tmp_path)
    (entry,) = islice(load.authorizations(1, step_ms=1, assessed=False), 1)
    partition.run([entry])
    partition.run([entry])
    with pytest.raises(RuntimeError, match="about 1 requests"):
        partition.check(2, 2)
    partition.close()


def _kinds(mix: Mix) -> tuple[int, set[str]]:
    """Reversals, and the accounts that they are about."""
    entries = _load(500).authorizations(RECORDS, step_ms=1, mix=mix)
    commands = [topics.ACCOUNT_COMMANDS.decode(value) for _, value, _ in entries]
    reversals = [command for command in commands if isinstance(command, ReversePayment)]
    return len(reversals), {reversal.account for reversal in reversals}


def test_hot_and_spread_have_the_same_mix():
    (hot, hot_accounts), (spread, spread_accounts) = _kinds(HOT), _kinds(SPREAD)
    assert hot == pytest.approx(RECORDS * HOT_SHARE / 2, rel=0.1)
    assert spread == pytest.approx(hot, rel=0.1)
    assert len(hot_accounts) == 1
    assert len(spread_accounts) > 200
    histories = [list(_load(500).history(mix)) for mix in (HOT, SPREAD)]
    assert len(histories[0]) == len(histories[1]) == HOT_REQUESTS
    assert HOT_HOLDS < HOT_REQUESTS
