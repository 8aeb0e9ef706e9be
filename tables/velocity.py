"""What risk remembers of cards and of recent requests.

velocity: account -> its rings of buckets.
risk-requests: "account/client/request_id" -> the verdict given, so that a retry gets the same one and
is not counted again. Remembered for the setting `request_window_h` of event time.
risk-request-order: position in the log -> which request that was: the index by age, oldest first.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mini_visa.domain.payment import RuleHit, Verdict
from mini_visa.domain.risk import RuleSet, Velocity
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView

FORGOTTEN_PER_TICK_MAX: Final = 5_000
"""More than arrive in a partition between two ticks, so that forgetting keeps up."""


class Assessed(msgspec.Struct, frozen=True, array_like=True):
    """A request that was decided."""

    position: int
    """Its offset in card.requests, and the key of its row in risk-request-order."""
    at: int
    rules: int
    """Number of the rule set it was decided by."""
    score: int = 0
    response_code: str = ""
    hits: tuple[RuleHit, ...] = ()


class RequestAge(msgspec.Struct, frozen=True, array_like=True):
    at: int
    request: bytes
    """Key of the row in risk-requests."""


VELOCITY: Table[Velocity] = versioned("velocity", Velocity)
REQUESTS: Table[Assessed] = versioned("risk-requests", Assessed)
REQUEST_ORDER: Table[RequestAge] = versioned("risk-request-order", RequestAge)

NEW_CARD: Final = Velocity()
_BOOKMARK: Final = b"~"
"""Key of the row that says how far forgetting has come, so that it need not wade through deleted rows."""


def request_key(account: str, client: str, request_id: str) -> bytes:
    return f"{account}/{client}/{request_id}".encode()


def _order_key(position: int) -> bytes:
    return b"%016d" % position


def remember(
    requests: TableView[Assessed],
    order: TableView[RequestAge],
    key: bytes,
    assessed: Assessed,
    former: Assessed | None,
) -> None:
    """`former` is the row that this one replaces: one that was due to be forgotten."""
    requests[key] = assessed
    order[_order_key(assessed.position)] = RequestAge(assessed.at, key)
    if former is not None:
        del order[_order_key(former.position)]


def verdict_of(assessed: Assessed, rules: RuleSet) -> Verdict:
    """The verdict that was given; `rules` are the ones it was decided by."""
    if not assessed.hits:
        return rules.clean
    return Verdict(
        score=assessed.score,
        response_code=assessed.response_code,
        hits=assessed.hits,
        evaluated=rules.clean.evaluated,
    )


def forget(
    requests: TableView[Assessed],
    order: TableView[RequestAge],
    velocity: TableView[Velocity],
    *,
    before: int,
    now: int,
) -> int:
    """Forget requests decided up to `before` (ms), at most `FORGOTTEN_PER_TICK_MAX`, and what their
    cards' windows no longer hold at `now`. Returns how many."""
    bookmark: RequestAge | None = order.get(_BOOKMARK)
    position, forgotten = bookmark.request.decode() if bookmark else "", 0
    for position_found, age in order.range(position, _BOOKMARK):
        if age.at > before or forgotten == FORGOTTEN_PER_TICK_MAX:
            break
        position, forgotten = position_found, forgotten + 1
        del requests[age.request]
        del order[position]
        account = age.request.split(b"/", 1)[0]
        card: Velocity | None = velocity.get(account)
        if card is not None and card.until <= now:
            del velocity[account]
    if forgotten:
        order[_BOOKMARK] = RequestAge(0, position.encode())
    return forgotten
