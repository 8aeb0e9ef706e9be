"""Asking the clearing house, until it is clear what it decided: an unknown outcome is asked for again, never
guessed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import aiohttp
import msgspec

from mini_visa.clearing_house.book import PENDING, Answer, Presented
from mini_visa.domain.clearing import CancelPresentment, Presentment, Submission

PAUSE_S: Final = 0.05
"""Before the second try; each later pause is up to twice as long."""
PAUSE_S_MAX: Final = 5.0
ANSWER_BYTES_MAX: Final = 64 << 10


class Refused(Exception):
    """The clearing house will not take this presentment as it is: asking again is of no use."""


class ClearingHouse:
    """A client with one pool of connections. Close it."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        tries_max: int,
        connections_max: int,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives numbers from 0 to 1: no two connectors come back at the same moment."""
        self._url = url.rstrip("/")
        self._tries_max = tries_max
        self._jitter = jitter
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            raise_for_status=False,
        )

    async def close(self) -> None:
        await self._http.close()

    async def outcome(self, submission: Submission) -> Answer | None:
        """Present it or call it back, and ask until it is decided; None: not known after `tries_max` tries.
        Raises `Refused`."""
        url = f"{self._url}/presentments/{submission.key}"
        for attempt in range(self._tries_max):
            if attempt:
                await asyncio.sleep(self._pause_s(attempt))
            try:
                answer = await self._ask(url, submission)
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
                continue  # It may have decided or not: the same question again, under the same key.
            if answer is not None and answer.status != PENDING:
                return answer
        return None

    async def _ask(self, url: str, submission: Submission) -> Answer | None:
        if isinstance(submission, CancelPresentment):
            question = self._http.post(f"{url}/cancel")
        else:
            question = self._http.post(url, data=msgspec.json.encode(_body_of(submission)))
        async with question as response:
            text = await response.content.read(ANSWER_BYTES_MAX)
            if response.status in (200, 202):
                return msgspec.json.decode(text, type=Answer)
            if 400 <= response.status < 500 and response.status not in (408, 425, 429):
                raise Refused(f"HTTP {response.status} to {submission.key}")
            return None

    def _pause_s(self, attempt: int) -> float:
        """Exponential, with full jitter."""
        longest: float = min(PAUSE_S_MAX, PAUSE_S * 2**attempt)
        return longest * self._jitter()


def _body_of(presentment: Presentment) -> Presented:
    return Presented(
        amount=presentment.amount,
        currency=presentment.currency,
        captured_at=presentment.captured_at,
        card_bin=presentment.card.bin,
        card_last4=presentment.card.last4,
        merchant_id=presentment.merchant.id,
        mcc=presentment.merchant.mcc,
        authorization_code=presentment.authorization_code,
    )
