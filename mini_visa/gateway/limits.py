"""Admission: how many requests are worked on at once, and how many a client may send a second."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from time import monotonic
from typing import Final

from mini_visa.gateway.problems import busy

CLIENTS_MAX: Final = 10_000


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
