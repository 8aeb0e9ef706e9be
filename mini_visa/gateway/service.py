"""The gateway as one object: everything an endpoint needs, wired in `app.create`."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from functools import partial
from secrets import token_hex
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from mini_visa import topics
from mini_visa.domain.answers import Answer
from mini_visa.domain.cards import Tokenizer, card_of, luhn_valid
from mini_visa.domain.commands import Authorize, Command, TimeOutReversal
from mini_visa.domain.ids import InvalidId, account_of, check_account_id
from mini_visa.domain.money import exponent_of
from mini_visa.domain.payment import Card
from mini_visa.gateway.access import Access
from mini_visa.gateway.exchange import Exchange, NoAnswer, NotSent
from mini_visa.gateway.fields import has_decimals
from mini_visa.gateway.limits import InFlight, RateLimit
from mini_visa.gateway.metrics import Metrics
from mini_visa.gateway.problems import Problem, busy, not_found
from mini_visa.gateway.recent import Recent
from mini_visa.gateway.vigil import GROUPS, Vigil
from mini_visa.readmodel import DatabaseUnusable, ReadModel, SchemaNewer, SchemaOlder
from mini_visa.settings import Settings
from mini_visa.streams.topic import Topic

log = logging.getLogger(__name__)

READ_MODEL_RETRY_S: Final = 2.0
LOOKUP_TIMEOUT_S: Final = 0.5
"""The read model may take this long to tell an account's currency; then the default is assumed."""

WITH_DECIMALS: Final = ("USD", "JPY", "KWD", "CLF")
"""One currency for each number of decimals that there is."""

_LONG_NUMBER: Final = re.compile(r"[0-9]{13,}")


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
        openapi: bytes = b"",
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.exchange = exchange
        self.vigil = Vigil(settings)
        self.access = access
        self.metrics = metrics
        self.openapi = openapi
        self.read_model: ReadModel | None = None
        """None while it cannot be opened: payments can be made, not looked up."""
        self.recent = Recent()
        self.rate_limit = RateLimit(settings.gateway_rate_per_s, settings.gateway_burst)
        self.limit = InFlight(settings.gateway_in_flight_max, settings.gateway_answer_target_s)
        self.reads = InFlight(settings.gateway_in_flight_max, 0)
        """Of their own: reads that wait for what a client has seen elsewhere must not keep out payments."""
        self.in_flight = 0
        self.idle = asyncio.Event()
        """Set while no request is in flight."""
        self.idle.set()
        self.draining = False
        self.streams: Counter[str] = Counter()
        """Of alerts, that clients follow now, by client."""
        self.back_test = asyncio.Lock()
        """Held while one runs."""
        metrics.in_flight_max.set_function(lambda: self.limit.bound)
        metrics.in_flight.set_function(lambda: self.in_flight)
        for group in GROUPS:
            silent = metrics.silent_partitions.labels(group.partition(".")[0])
            silent.set_function(partial(self.vigil.silent_of, group))

    def enter(self, limit: InFlight) -> None:
        """A request begins that counts for `limit`. Every `enter` has its `leave`."""
        self.in_flight += 1
        limit.in_flight += 1
        self.idle.clear()

    def leave(self, limit: InFlight) -> None:
        self.in_flight -= 1
        limit.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def card(self, pan: str) -> Card:
        """The PAN ends here: from now on there is a token. It is also the account's id, so it is made
        with the oldest key and stays the same when newer keys are added."""
        return card_of(pan, self.tokenizer.tokens(pan)[-1])

    def account_id(self, text: str) -> str:
        """`text` if it can be an account's id. Raises `Problem` 404."""
        try:
            check_account_id(text)
        except InvalidId:
            raise not_found("account") from None
        if holds_a_pan(text):
            raise not_found("account")
        return text

    def account_of(self, payment_id: str) -> str:
        """The account that a payment id carries. Raises `Problem` 404."""
        try:
            account = account_of(payment_id)
        except InvalidId:
            raise not_found("payment") from None
        if holds_a_pan(account):
            raise not_found("payment")
        return account

    async def open_read_model(self) -> None:
        """Opens the read model, for as long as it takes."""
        while self.read_model is None:
            try:
                self.read_model = await ReadModel.open(self.settings)
            except (DatabaseUnusable, SchemaNewer, SchemaOlder) as error:
                log.error("no read model yet: %s", error)
                await asyncio.sleep(READ_MODEL_RETRY_S)

    def new_attempt(self) -> str:
        """One HTTP attempt: never used twice, also not by another gateway."""
        return token_hex(16)

    def assumed_currency(self, account: str) -> str:
        """The account's currency as far as this gateway has seen it, else the default. Costs nothing,
        and is enough where the decision on the account checks the assumption."""
        return self.recent.currency(account) or self.settings.default_currency

    async def currency_of(self, account: str, amount: str | None = None) -> str:
        """The account's currency if this gateway or the read model knows it, else the default. With an
        `amount` that has other decimals than the default: a currency that has as many. Just opened, or
        through another gateway, the account may not be in the read model yet; the decision on the account
        checks what was assumed, so nothing is refused here that may be right there."""
        known = self.recent.currency(account)
        if known is None and self.read_model is not None:
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    row = await self.read_model.account(account)
            except (SQLAlchemyError, DatabaseUnusable, OSError) as error:  # a TimeoutError is an OSError
                log.warning("the read model did not tell an account's currency: %s", type(error).__name__)
                row = None
            if row is not None:
                known = row.currency
                self.recent.learn_currency(account, known)
        if known is not None:
            return known
        default = self.settings.default_currency
        if amount is None or has_decimals(amount, exponent_of(default)):
            return default
        return next((name for name in WITH_DECIMALS if has_decimals(amount, exponent_of(name))), default)

    async def exponent_of(self, account: str, amount: str | None = None) -> int:
        """Decimals of the account's currency, as far as `currency_of` knows it."""
        return exponent_of(await self.currency_of(account, amount))

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
            await self.exchange.tell(
                topics.ACCOUNT_COMMANDS, reversal, key=reversal.account.encode(), deadline=deadline
            )
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
        account, payment = answer.outcome.account, answer.outcome.payment
        if account is not None:
            self.recent.learn_currency(account.account_id, account.currency)
        elif payment is not None and payment.authorized:  # approved: so it was the account's currency
            self.recent.learn_currency(payment.account, payment.currency)


def holds_a_pan(identifier: str) -> bool:
    """A client's mistake must not carry a card number into a topic as somebody's id."""
    return any(luhn_valid(digits) for digits in _LONG_NUMBER.findall(identifier))
