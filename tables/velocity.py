"""What risk remembers of cards and of recent requests.

velocity: account -> its rings of buckets.
risk-requests: "window/account/client/request_id" -> the verdict given, so that a retry gets the same one
and is not counted again. With no request_id: that this client, whose key is for its own payments only, has
sent an authorization. `window` numbers the stretches of event time of the length that a request is
remembered for, so a request is looked for in this one and the one before, and what is older can be
forgotten in key order without an index.
risk-forgotten: one row, `BOOKMARK` -> where forgetting goes on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from mini_visa.domain.payment import RuleHit, Verdict
from mini_visa.domain.risk import RuleSet, Velocity
from mini_visa.streams import Table, versioned
from mini_visa.streams.table import TableView

FORGOTTEN_PER_TICK_MAX: Final = 5_000
"""More than arrive in a partition between two ticks, so that forgetting keeps up."""


class Assessed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request that was decided."""

    at: int
    rules: int
    """Number of the rule set it was decided by."""
    score: int = 0
    response_code: str = ""
    hits: tuple[RuleHit, ...] = ()
    fingerprint: str = ""
    """Of the request; another with its id is judged anew."""


class Bookmark(msgspec.Struct, frozen=True, array_like=True):
    """Rows of risk-requests up to this key are gone: no need to wade through their tombstones."""

    key: str


VELOCITY: Table[Velocity] = versioned("velocity", Velocity)
REQUESTS: Table[Assessed] = versioned("risk-requests", Assessed)
FORGOTTEN: Table[Bookmark] = versioned("risk-forgotten", Bookmark)

NEW_CARD: Final = Velocity()
BOOKMARK: Final = b"bookmark"


@lru_cache(maxsize=8)
def _stretches(window: int) -> tuple[str, str]:
    """What the keys of this stretch of time begin with, and those of the one before it."""
    return f"{window:08d}/", f"{window - 1:08d}/"


def request_keys(account: str, client: str, request_id: str, window: int) -> tuple[bytes, bytes]:
    """Where a request decided now is remembered, and where one would be from the window before."""
    this, former = _stretches(window)
    request = f"{account}/{client}/{request_id}"
    return (this + request).encode(), (former + request).encode()


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
    velocity: TableView[Velocity],
    forgotten: TableView[Bookmark],
    *,
    now: int,
    window_ms: int,
) -> None:
    """Forget the requests of the windows before the last two, at most `FORGOTTEN_PER_TICK_MAX` of them,
    and the cards among them whose windows are empty by now."""
    bookmark: Bookmark | None = forgotten.get(BOOKMARK)
    start, end = bookmark.key if bookmark else "", _stretches(now // window_ms)[1]
    last = ""
    for count, (key, _) in enumerate(requests.range(start, end), start=1):
        del requests[key]
        account = key.split("/", 2)[1]
        card: Velocity | None = velocity.get(account)
        if card is not None and card.until <= now:
            del velocity[account]
        last = key
        if count == FORGOTTEN_PER_TICK_MAX:
            break
    if last:
        forgotten[BOOKMARK] = Bookmark(last)
