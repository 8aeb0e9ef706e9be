"""The payments that the services are measured with: the real messages, in the real proportions.

Every `DECLINED_EVERY`-th account is blocked, so 96 % of the authorizations are approved. All of it
follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256

from mini_visa import topics
from mini_visa.domain.cards import luhn_valid
from mini_visa.domain.commands import Authorize, OpenAccount, ReversePayment
from mini_visa.domain.payment import AccountStatus, Card, Merchant, Verdict
from tests.bench.topiclog import Entry

ACCOUNTS = 5_000
DECLINED_EVERY = 25
BIN = "411111"
CURRENCY = "USD"
LIMIT = 100_000_000_00
"""Minor units: no measured account runs out."""
HOT_SHARE = 0.2
HOT_REQUESTS = 10_000
HOT_HOLDS = 1_000
REPLY_PARTITIONS = 4

VERDICT = Verdict(score=0, evaluated=("velocity-count/1", "velocity-amount/1"))


def pan_of(number: int) -> str:
    """The PAN of account `number`: 16 digits of BIN 411111 with a right check digit."""
    stem = f"{BIN}{number:09d}"
    return next(stem + check for check in "0123456789" if luhn_valid(stem + check))


def token_of(number: int, series: str = "") -> str:
    """An account id of the form the gateway makes, without its key."""
    digest = sha256(f"{series}/{number}".encode()).hexdigest()
    return f"tok_k1{digest[:24]}"


def is_blocked(number: int) -> bool:
    return number % DECLINED_EVERY == DECLINED_EVERY - 1


class Workload:
    """Messages about `accounts` accounts of one `series` (another series: other accounts)."""

    def __init__(self, *, series: str, accounts: int = ACCOUNTS, start_ms: int, seed: int = 7) -> None:
        """`start_ms`: event time of the first record."""
        self.series = series
        self.accounts = [token_of(number, series) for number in range(accounts)]
        self._cards = [
            Card(token=token, bin=BIN, last4=pan_of(number)[-4:])
            for number, token in enumerate(self.accounts)
        ]
        self._keys = [token.encode() for token in self.accounts]
        self._draw = random.Random(f"{seed}/{series}")
        self._merchants = [
            Merchant(
                id=f"merchant-{i:04d}",
                mcc=("5411", "5812", "5732")[i % 3],
                terminal_id=f"T{i:07d}",
                country="US",
            )
            for i in range(1_000)
        ]
        self.now = start_ms
        self._requests = 0

    def open_accounts(self) -> Iterator[Entry]:
        """One command on account.commands for each account."""
        for number, token in enumerate(self.accounts):
            command = OpenAccount(
                account=token,
                request_id=f"open-{number}",
                bin=BIN,
                last4=self._cards[number].last4,
                currency=CURRENCY,
                limit=LIMIT,
                expiry="2099-12",
                status=AccountStatus.BLOCKED if is_blocked(number) else AccountStatus.ACTIVE,
            )
            yield self._keys[number], topics.ACCOUNT_COMMANDS.encode(command), self.now

    def hot_history(self) -> Iterator[Entry]:
        """What leaves account 0 with `HOT_REQUESTS` recent request ids and `HOT_HOLDS` open holds."""
        holds = HOT_HOLDS + (HOT_REQUESTS - HOT_HOLDS) // 2
        for i in range(holds):
            yield self._authorize(0, request_id=f"history-{i}", step_ms=1)
        for i in range(holds - HOT_HOLDS):
            yield self.reverse(0, f"history-{i}")

    def authorizations(
        self,
        count: int,
        *,
        step_ms: int,
        hot_share: float = 0.0,
        assessed: bool = True,
        capture: bool = False,
    ) -> Iterator[Entry]:
        """`count` authorizations, one each `step_ms` of event time, uniform over the accounts but for
        `hot_share` of them on account 0. With `assessed` as risk passes them on (account.commands),
        without as the gateway sends them (card.requests). With `capture` each is captured at once.

        On the hot account every other one is reversed by the next, so that its open holds stay as many.
        """
        draw, size = self._draw, len(self.accounts)
        open_hot: str | None = None
        for _ in range(count):
            if hot_share and draw.random() < hot_share:
                self.now += step_ms
                if open_hot is not None:
                    yield self.reverse(0, open_hot)
                    open_hot = None
                else:
                    open_hot = self._next_request_id()
                    yield self._authorize(0, request_id=open_hot, step_ms=0, assessed=assessed)
            else:
                number = draw.randrange(1, size) if hot_share else draw.randrange(size)
                yield self._authorize(
                    number,
                    request_id=self._next_request_id(),
                    step_ms=step_ms,
                    assessed=assessed,
                    capture=capture,
                )

    def reverse(self, number: int, original: str) -> Entry:
        command = ReversePayment(
            account=self.accounts[number],
            request_id=f"undo-{original}",
            fingerprint=_digest(f"undo-{original}"),
            attempt=f"{self._requests:032x}",
            reply_partition=self._requests % REPLY_PARTITIONS,
            original_request_id=original,
        )
        self._requests += 1
        return self._keys[number], topics.ACCOUNT_COMMANDS.encode(command), self.now

    def _next_request_id(self) -> str:
        return f"{self.series}-{self._requests:09d}"

    def _authorize(
        self, number: int, *, request_id: str, step_ms: int, assessed: bool = True, capture: bool = False
    ) -> Entry:
        draw = self._draw
        self.now += step_ms
        command = Authorize(
            account=self.accounts[number],
            request_id=request_id,
            fingerprint=_digest(request_id),
            attempt=f"{self._requests:032x}",
            reply_partition=self._requests % REPLY_PARTITIONS,
            amount=draw.randrange(100, 20_000),
            currency=CURRENCY,
            currency_given=True,
            card=self._cards[number],
            merchant=self._merchants[draw.randrange(len(self._merchants))],
            capture=capture,
            verdict=VERDICT if assessed else None,
        )
        self._requests += 1
        topic = topics.ACCOUNT_COMMANDS if assessed else topics.CARD_REQUESTS
        return self._keys[number], topic.encode(command), self.now


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
