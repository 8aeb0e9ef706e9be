"""What became of a transaction that hangs in a partition, from what its coordinator wrote down."""

from __future__ import annotations

import struct

from aiokafka import TopicPartition

from mini_visa.transactions import (
    EMPTY,
    ONGOING,
    PREPARE_ABORT,
    PREPARE_COMMIT,
    Decision,
    Hanging,
    Open,
    State,
    parse,
)
from mini_visa.transactions import (
    decide as verdict_on,
)

COMPLETE_COMMIT = 4
HERE, THERE = ("payment.events", 0), ("payment.events", 1)
HUNG = Open(TopicPartition(*HERE), 7, 2, 0, 100, 1_000)


def state(status: int, *places: tuple[str, int], epoch: int = 2, version: int = 0) -> State:
    return State(status, 7, epoch, frozenset(places), 1_000, version)


def decide(hung: Open, history: list[State]) -> Decision:
    return verdict_on(hung, history).decision


BEGINNING = state(EMPTY)


def test_what_was_decided_counts():
    for status, decision in ((PREPARE_COMMIT, Decision.COMMIT), (PREPARE_ABORT, Decision.ABORT)):
        history = [BEGINNING, state(ONGOING, HERE), state(status, HERE, THERE), state(COMPLETE_COMMIT)]
        assert decide(HUNG, history) is decision


def test_the_last_decision_about_the_partition_counts():
    first = [BEGINNING, state(ONGOING, HERE), state(PREPARE_ABORT, HERE), state(COMPLETE_COMMIT)]
    second = [state(ONGOING, HERE), state(PREPARE_COMMIT, HERE), state(COMPLETE_COMMIT)]
    later_elsewhere = [state(PREPARE_ABORT, THERE), state(5)]
    assert decide(HUNG, [*first, *second, *later_elsewhere]) is Decision.COMMIT


def test_a_transaction_that_has_an_epoch_of_its_own_is_decided_under_the_next():
    """Transaction version 2, what the kernel's are of."""
    own = [state(ONGOING, HERE), state(PREPARE_COMMIT, HERE, epoch=3), state(COMPLETE_COMMIT, epoch=3)]
    assert decide(HUNG, own) is Decision.COMMIT
    assert decide(HUNG, own[1:]) is Decision.COMMIT, "its beginning was compacted away"


def test_that_the_one_before_it_was_committed_says_nothing():
    """The coordinator's log has lost its end: it knows nothing of what the partition has."""
    before = [
        state(ONGOING, HERE, epoch=1),
        state(PREPARE_COMMIT, HERE, epoch=2),
        state(COMPLETE_COMMIT, epoch=2),
    ]
    for history in (before, before[1:]):
        assert decide(HUNG, history) is Decision.UNKNOWN


def test_a_fenced_transaction_is_aborted_under_the_next_epoch():
    history = [BEGINNING, state(ONGOING, HERE), state(PREPARE_ABORT, HERE, epoch=3), state(EMPTY, epoch=3)]
    assert decide(HUNG, history) is Decision.ABORT


def test_one_that_is_going_on_is_its_coordinators_to_end():
    for status in (ONGOING, PREPARE_COMMIT, PREPARE_ABORT):
        assert decide(HUNG, [BEGINNING, state(status, HERE)]) is Decision.OPEN
    assert decide(HUNG, [BEGINNING, state(ONGOING, THERE)]) is Decision.ABORT, "it goes on elsewhere"


def test_what_the_coordinator_never_heard_of_is_no_commit():
    assert decide(HUNG, [BEGINNING]) is Decision.ABORT
    assert decide(HUNG, [BEGINNING, state(PREPARE_COMMIT, THERE), state(COMPLETE_COMMIT)]) is Decision.ABORT


def test_under_version_2_a_coordinator_that_knows_nothing_has_lost_it():
    """Its partitions are joined by their leaders, not announced by the client: none is forgotten."""
    fenced = state(EMPTY, version=2)
    assert decide(HUNG, [fenced]) is Decision.UNKNOWN
    assert decide(HUNG, [BEGINNING, state(ONGOING, THERE, version=2)]) is Decision.UNKNOWN
    assert decide(HUNG, [state(COMPLETE_COMMIT, version=2)]) is Decision.UNKNOWN


def test_the_marker_has_the_epoch_that_the_coordinators_own_would_have():
    own = [state(ONGOING, HERE), state(PREPARE_COMMIT, HERE, epoch=3), state(COMPLETE_COMMIT, epoch=3)]
    assert verdict_on(HUNG, own) == (Decision.COMMIT, 3)
    fenced = [BEGINNING, state(ONGOING, HERE), state(PREPARE_ABORT, HERE, epoch=3), state(EMPTY, epoch=3)]
    assert verdict_on(HUNG, fenced) == (Decision.ABORT, 3)
    announced = [BEGINNING, state(ONGOING, HERE), state(PREPARE_COMMIT, HERE), state(COMPLETE_COMMIT)]
    assert verdict_on(HUNG, announced) == (Decision.COMMIT, 2)
    assert verdict_on(HUNG, [BEGINNING]) == (Decision.ABORT, 2)


def test_nothing_is_guessed_when_the_log_was_compacted():
    assert decide(HUNG, []) is Decision.UNKNOWN
    assert decide(HUNG, [state(COMPLETE_COMMIT)]) is Decision.UNKNOWN
    assert decide(HUNG, [state(EMPTY, epoch=3)]) is Decision.UNKNOWN
    assert decide(HUNG, [state(COMPLETE_COMMIT), state(ONGOING, THERE)]) is Decision.UNKNOWN


def test_both_forms_of_the_coordinators_records_are_read():
    head = struct.pack(">qhib", 7, 2, 60_000, PREPARE_COMMIT)
    tail = struct.pack(">qq", 1_000, 900)
    name = b"payment.events"
    plain = struct.pack(">i", 1) + struct.pack(">h", len(name)) + name + struct.pack(">iii", 2, 0, 1)
    compact = b"\x02" + bytes([len(name) + 1]) + name + b"\x03" + struct.pack(">ii", 0, 1) + b"\x00"
    wanted = state(PREPARE_COMMIT, HERE, THERE)
    assert parse(b"\x00\x00" + head + plain + tail) == wanted
    assert parse(b"\x00\x01" + head + compact + tail + b"\x00") == wanted
    client = b"\x02" + b"\x00\x08" + bytes(8) + b"\x02\x02" + b"\x00\x02"
    assert parse(b"\x00\x01" + head + compact + tail + client) == wanted._replace(version=2)
    assert parse(b"\x00\x00" + head + struct.pack(">i", -1) + tail) == state(PREPARE_COMMIT)
    assert parse(b"\x00\x02") is None


def test_people_are_told_what_it_means():
    assert str(Hanging(HUNG, Decision.COMMIT, 2)) == (
        "payment.events/0 cannot be read beyond offset 99: a transaction was committed, its marker is missing"
    )
