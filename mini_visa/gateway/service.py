"""The gateway as one object: everything an endpoint needs, wired in `app.create`."""

from __future__ import annotations

import asyncio
import logging
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from mini_visa import topics
from mini_visa.domain.answers import Answer
from mini_visa.domain.cards import Tokenizer, card_of
from mini_visa.domain.commands import Authorize, Command, TimeOutReversal
from mini_visa.domain.money import exponent_of
from mini_visa.domain.payment import Card
from mini_visa.gateway.access import Access
from mini_visa.gateway.exchange import Exchange, NoAnswer, NotSent
from mini_visa.gateway.limits import RateLimit
from mini_visa.gateway.metrics import Metrics
from mini_visa.gateway.problems import Problem, busy
from mini_visa.gateway.recent import Recent
from mini_visa.settings import Settings
from mini_visa.streams.topic import Topic

if TYPE_CHECKING:
    from mini_visa.readmodel import ReadModel

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT_S: Final = 0.5
"""The read model may take this long to tell an account's currency; then the default is assumed."""


class Gateway:
    """State of one gateway process: connections, bounds, and what it remembers of its answers."""

    def __init__(
        self,
        settings: Settings,
        *,
        tokenizer: Tokenizer,
        exchange: Exchange,
        access: Access,
        metrics: Metrics,
        read_model: ReadModel | None,
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.exchange = exchange
        self.access = access
        self.metrics = metrics
        self.read_model = read_model
        self.recent = Recent()
        self.rate_limit = RateLimit(settings.gateway_rate_per_s, settings.gateway_burst)
        self.in_flight = 0
        self.idle = asyncio.Event()
        """Set while no request is in flight."""
        self.idle.set()
        self.draining = False
        metrics.in_flight_max.set(settings.gateway_in_flight_max)
        metrics.in_flight.set_function(lambda: self.in_flight)

    def enter(self) -> None:
        """A request begins. Every `enter` has its `leave`."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def card(self, pan: str) -> Card:
        """The PAN ends here: from now on there is a token. It is also the account's id, so it is made
        with the oldest key and stays the same when newer keys are added."""
        return card_of(pan, self.tokenizer.tokens(pan)[-1])

    def new_attempt(self) -> str:
        """One HTTP attempt: never used twice, also not by another gateway."""
        return token_hex(16)

    async def currency_of(self, account: str) -> str:
        """The account's currency if this gateway or the read model knows it, else the default."""
        known = self.recent.currency(account)
        if known is None and self.read_model is not None:
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    row = await self.read_model.account(account)
            except TimeoutError:
                log.warning("the read model did not tell an account's currency within %s s", LOOKUP_TIMEOUT_S)
                row = None
            if row is not None:
                known = row.currency
                self.recent.learn_currency(account, known)
        return known or self.settings.default_currency

    async def exponent_of(self, account: str) -> int:
        """Decimals of the account's currency."""
        return exponent_of(await self.currency_of(account))

    async def ask(self, topic: Topic[Any], command: Command, *, route: str, started: float) -> Answer:
        """Sends the command and returns its answer, within the deadline. Raises `Problem` 503 or 504,
        whose text says what is certain."""
        deadline = started + self.settings.gateway_deadline_s
        try:
            answer = await self.exchange.ask(topic, command, deadline=deadline)
        except NotSent:
            self.metrics.refused.labels("broker").inc()
            raise busy(
                "not-recorded",
                "The log did not take the request in time. Nothing was recorded: send it again.",
            ) from None
        except NoAnswer:
            if isinstance(command, Authorize):
                raise await self._reverse(command, route) from None
            self.metrics.timeouts.labels(route, "none").inc()
            raise Problem(
                504,
                "outcome-unknown",
                "No answer in time. The command stands and may still take effect: "
                "send it again with the same request_id to learn its one outcome.",
            ) from None
        self._learn(command, answer)
        return answer

    async def _reverse(self, command: Authorize, route: str) -> Problem:
        """Gives up on an authorization: 504 once the log holds the order to leave no hold."""
        reversal = TimeOutReversal(
            account=command.account,
            request_id=command.request_id,
            client=command.client,
            fingerprint=command.fingerprint,
            attempt=command.attempt,
        )
        deadline = asyncio.get_running_loop().time() + self.settings.gateway_deadline_s
        try:
            await self.exchange.tell(topics.ACCOUNT_COMMANDS, reversal, deadline=deadline)
        except (NotSent, NoAnswer):
            # Not a 504: that would promise that no hold remains.
            self.metrics.timeouts.labels(route, "not_durable").inc()
            return busy(
                "outcome-unknown",
                "No answer in time, and its reversal could not be recorded yet. The authorization may have "
                "been made: send it again with the same request_id to learn its one outcome, or reverse it "
                "with POST /payments/reversals. A hold that nobody reverses ends when it expires.",
            )
        self.metrics.timeouts.labels(route, "durable").inc()
        return Problem(
            504,
            "timed-out",
            "No answer in time. The authorization is reversed: no hold remains, unless another attempt of "
            "this request_id was answered. Sending it again with the same request_id tells its outcome.",
        )

    def _learn(self, command: Command, answer: Answer) -> None:
        self.recent.answered(command.account, answer.partition, answer.position)
        account = answer.outcome.account
        if account is not None:
            self.recent.learn_currency(account.account_id, account.currency)
