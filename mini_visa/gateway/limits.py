"""Admission: how many requests are worked on at once, and how many a client may send a second."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from statistics import median
from time import monotonic
from typing import Final

from mini_visa.gateway.problems import busy

CLIENTS_MAX: Final = 10_000

BOUND_FIRST: Final = 256
BOUND_LEAST: Final = 64
"""Fewer would not keep the pipeline busy, which works in batches; and a few clients are never refused,
however slow the machine."""
WINDOW_S: Final = 0.1
"""Answers are judged by their median over so long, and at least `ANSWERS_MIN` of them."""
ANSWERS_MIN: Final = 5
SHRINK_MOST: Final = 0.7
"""A window that was too slow takes no more than this away, one that was not adds a tenth."""
GROW: Final = 1.1


class InFlight:
    """A bound on the requests that are worked on at once. It follows how long answers take.

    Requests in flight are the rate of answers times how long each takes. What arrives beyond the rate that
    can be answered only waits, and makes all others wait. So while answers take longer than `target_s` the
    bound falls, and while they do not and it was reached it rises, as TCP's window does. It begins at
    `BOUND_FIRST` and stays between `BOUND_LEAST` and `most`. A target of 0: it is `most`.
    """

    def __init__(self, most: int, target_s: float) -> None:
        self._most = float(most)
        self._target_s = target_s
        self._least = min(self._most, BOUND_LEAST)
        self._bound = min(self._most, BOUND_FIRST) if target_s else self._most
        self._reached = False
        self._window: list[float] = []
        self._ends = 0.0
        self.in_flight = 0
        """Of the requests that it bounds; who begins and ends them counts."""

    @property
    def bound(self) -> int:
        return int(self._bound)

    def admit(self) -> None:
        """`in_flight` counts the one that asks. Raises `Problem` 503."""
        if self.in_flight >= self._bound:
            self._reached = True
        if self.in_flight > self._bound:
            raise busy("busy", "Too many requests at once. Nothing was done: send it again in a moment.")

    def answered(self, seconds: float) -> None:
        """One that was admitted has taken so long."""
        if not self._target_s:
            return
        window = self._window
        window.append(seconds)
        if len(window) < ANSWERS_MIN:
            return
        now = monotonic()
        if now < self._ends:
            return
        took = median(window)
        if took > self._target_s:
            self._bound = max(self._least, self._bound * max(SHRINK_MOST, self._target_s / took))
        elif self._reached:
            self._bound = min(self._most, self._bound * GROW + 1)
        self._reached = False
        window.clear()
        self._ends = now + WINDOW_S


class RateLimit:
    """A token bucket per client: `per_s` requests a second, `burst` at once. 0 per second: no limit."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, client: str) -> None:
        """Takes one token of `client`'s. Raises `Problem` 429 with the time until there is one."""
        if self._per_s <= 0:
            return
        now = monotonic()
        tokens, since = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_s)
        if tokens < 1:
            self._buckets[client] = (tokens, now)
            raise busy(
                "rate-limited",
                "Too many requests from this client: wait as long as Retry-After says.",
                status=429,
                retry_after_s=ceil((1 - tokens) / self._per_s),
            )
        self._buckets[client] = (tokens - 1, now)
        if len(self._buckets) > CLIENTS_MAX:
            self._buckets.popitem(last=False)
