"""What reversal remembers.

sagas: payment id -> its saga, while a step of it is open.
saga-deadlines: the same by time.
"""

from __future__ import annotations

from mini_visa.domain.saga import Saga
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView
from tables.schedule import Schedule, schedule_table

SAGAS: Table[Saga] = versioned("sagas", Saga)
DEADLINES: Table[int] = schedule_table("saga-deadlines")


def keep(
    sagas: TableView[Saga], deadlines: Schedule, payment_id: str, former: Saga | None, saga: Saga | None
) -> None:
    """Store `saga` in place of `former`, with its deadline; None: there is none."""
    if saga is former:
        return
    if saga is None:
        del sagas[payment_id]
    else:
        sagas[payment_id] = saga
    before = None if former is None else former.deadline
    after = None if saga is None else saga.deadline
    if before != after:
        if before is not None:
            deadlines.remove(before, payment_id)
        if after is not None:
            deadlines.add(after, payment_id)
