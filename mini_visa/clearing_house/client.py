"""Asking the clearing house, until it is clear what it decided: an unknown outcome is asked for again, never
guessed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
import msgspec

from mini_visa.clearing_house.app import Answers, Submitted
from mini_visa.clearing_house.book import PENDING, Answer, Presented
from mini_visa.domain.clearing import CancelPresentment, Presentment, Submission

PAUSE_S: Final = 0.05
"""Before the second try; each later pause is up to twice as long."""
PAUSE_S_MAX: Final = 5.0


class Refused(Exception):
    """The clearing house does not understand the question: asking again is of no use."""


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

    async def outcomes(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        """Present them or call them back, and ask until each is decided: key -> answer. A key that is
        missing is not known after `tries_max` tries. One with the status `conflict` will never be taken.

        Raises `Refused`."""
        known: dict[str, Answer] = {}
        for attempt in range(self._tries_max):
            if attempt:
                await asyncio.sleep(self._pause_s(attempt))
            open_ones = [one for one in submissions if one.key not in known]
            try:
                answers = await self._ask(open_ones)
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
                continue  # It may have decided or not: the same question again, under the same keys.
            known |= {answer.key: answer for answer in answers if answer.status != PENDING}
            if all(one.key in known for one in submissions):
                break
        return known

    async def _ask(self, submissions: Sequence[Submission]) -> Sequence[Answer]:
        question = Submitted(
            tuple(_body_of(one) for one in submissions if isinstance(one, Presentment)),
            tuple(one.key for one in submissions if isinstance(one, CancelPresentment)),
        )
        async with self._http.post(
            f"{self._url}/presentments", data=msgspec.json.encode(question)
        ) as response:
            text = await response.read()
            if response.status == 200:
                return msgspec.json.decode(text, type=Answers).answers
            if 400 <= response.status < 500 and response.status not in (408, 425, 429):
                raise Refused(f"HTTP {response.status}: {text[:200].decode(errors='replace')}")
            return ()

    def _pause_s(self, attempt: int) -> float:
        """Exponential, with full jitter."""
        longest: float = min(PAUSE_S_MAX, PAUSE_S * 2**attempt)
        return longest * self._jitter()


def _body_of(presentment: Presentment) -> Presented:
    return Presented(
        key=presentment.key,
        amount=presentment.amount,
        currency=presentment.currency,
        captured_at=presentment.captured_at,
        card_bin=presentment.card.bin,
        card_last4=presentment.card.last4,
        merchant_id=presentment.merchant.id,
        mcc=presentment.merchant.mcc,
        authorization_code=presentment.authorization_code,
    )
