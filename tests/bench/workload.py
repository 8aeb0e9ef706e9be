"""The payments that the services are measured with: the real messages, in the real proportions.

Every `DECLINED_EVERY`-th account is blocked, so 96 % of the authorizations are approved. All of it
follows from the seed, and so does which of them are to be approved.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from mini_visa import topics
from mini_visa.domain.cards import luhn_valid
from mini_visa.domain.commands import Authorize, CapturePayment, OpenAccount, ReversePayment
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
REPLY_PARTITIONS = range(3)
CAPTURE_REPLY_PARTITION = 3
"""One of its own, so that who captures need not read the answers to it."""

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


class Mix(NamedTuple):
    """What is among the authorizations, and was before them."""

    reversed_share: float = 0.0
    """Of a share of them every other one is a reversal instead; with a history before them all."""
    hot: bool = False
    """All of that on one account."""


PLAIN = Mix()
SPREAD = Mix(HOT_SHARE)
HOT = Mix(HOT_SHARE, hot=True)


class Frequency:
    """Risk's rule on a card's requests, written for reading: more than ten in the second of this one and the
    59 before it are too many; those that were declined count. No other rule fires on these amounts."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, deque[int]] = defaultdict(deque)

    def allows(self, number: int, at_ms: int) -> bool:
        """Count a request on card `number`; requests come in the order of time."""
        second, seen = at_ms // 1_000, self._seconds[number]
        while seen and seen[0] <= second - 60:
            seen.popleft()
        seen.append(second)
        return len(seen) <= 10


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
        self.approved = 0
        """How many of the messages made so far are to be approved, by the service that they are for."""
        self.blocked = 0
        """How many of the authorizations made so far are on blocked accounts."""
        self._requests = 0
        self._deck: list[int] = []
        self._frequency = Frequency()

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

    def history(self, mix: Mix) -> Iterator[Entry]:
        """What leaves account 0 with `HOT_REQUESTS` recent request ids and `HOT_HOLDS` open holds; if the mix
        is not hot, the same spread over all accounts that are not blocked; if it is plain, nothing."""
        holds = HOT_HOLDS + (HOT_REQUESTS - HOT_HOLDS) // 2 if mix.reversed_share else 0
        spread = [0] if mix.hot else [i for i in range(len(self.accounts)) if not is_blocked(i)]
        for i in range(holds):
            self.now += 1
            yield self._authorize(spread[i % len(spread)], request_id=f"history-{i}")
        for i in range(holds - HOT_HOLDS):
            yield self._reverse(spread[i % len(spread)], f"history-{i}")

    def authorizations(
        self,
        count: int,
        *,
        step_ms: int,
        mix: Mix = PLAIN,
        evenly: bool = False,
        assessed: bool = True,
        capture: bool = False,
    ) -> Iterator[Entry]:
        """`count` authorizations, one each `step_ms` of event time, uniform over the accounts. With
        `assessed` as risk passes them on (account.commands), without as the gateway sends them
        (card.requests). With `capture` each is captured at once. `evenly`: an account has its next one when
        all others have had theirs, so that no rule on a card's requests fires.

        Of `mix.reversed_share` of them, every other one is a reversal instead, of the one before it: all
        on account 0 if it is hot, whose open holds so stay as many, else on any that is not blocked.
        """
        draw, size = self._draw, len(self.accounts)
        held: tuple[int, str] | None = None
        for _ in range(count):
            self.now += step_ms
            if draw.random() >= mix.reversed_share:
                number = self._next_in_deck() if evenly else draw.randrange(1 if mix.hot else 0, size)
                yield self._authorize(
                    number, request_id=self._next_request_id(), assessed=assessed, capture=capture
                )
            elif held is None:
                held = (0 if mix.hot else self._draw_active(), self._next_request_id())
                yield self._authorize(held[0], request_id=held[1], assessed=assessed)
            else:
                yield self._reverse(*held)
                held = None

    def capture(self, account: str, payment_id: str) -> bytes:
        """A command on account.commands: all of what an authorization holds."""
        command = CapturePayment(
            account=account,
            request_id=f"capture-{self._requests}",
            attempt=f"{self._requests:032x}",
            reply_partition=CAPTURE_REPLY_PARTITION,
            payment_id=payment_id,
        )
        self._requests += 1
        return topics.ACCOUNT_COMMANDS.encode(command)

    def _next_in_deck(self) -> int:
        if not self._deck:
            self._deck = list(range(len(self.accounts)))
            self._draw.shuffle(self._deck)
        return self._deck.pop()

    def _draw_active(self) -> int:
        while is_blocked(number := self._draw.randrange(len(self.accounts))):
            pass
        return number

    def _reverse(self, number: int, original: str) -> Entry:
        command = ReversePayment(
            account=self.accounts[number],
            request_id=f"undo-{original}",
            fingerprint=_digest(f"undo-{original}"),
            attempt=f"{self._requests:032x}",
            reply_partition=REPLY_PARTITIONS[self._requests % len(REPLY_PARTITIONS)],
            original_request_id=original,
        )
        self._requests += 1
        self.approved += 1
        return self._keys[number], topics.ACCOUNT_COMMANDS.encode(command), self.now

    def _next_request_id(self) -> str:
        return f"{self.series}-{self._requests:09d}"

    def _authorize(
        self, number: int, *, request_id: str, assessed: bool = True, capture: bool = False
    ) -> Entry:
        draw = self._draw
        command = Authorize(
            account=self.accounts[number],
            request_id=request_id,
            fingerprint=_digest(request_id),
            attempt=f"{self._requests:032x}",
            reply_partition=REPLY_PARTITIONS[self._requests % len(REPLY_PARTITIONS)],
            amount=draw.randrange(100, 20_000),
            currency=CURRENCY,
            currency_given=True,
            card=self._cards[number],
            merchant=self._merchants[draw.randrange(len(self._merchants))],
            capture=capture,
            verdict=VERDICT if assessed else None,
        )
        self._requests += 1
        self.blocked += is_blocked(number)
        self.approved += not is_blocked(number) if assessed else self._frequency.allows(number, self.now)
        topic = topics.ACCOUNT_COMMANDS if assessed else topics.CARD_REQUESTS
        return self._keys[number], topic.encode(command), self.now


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
