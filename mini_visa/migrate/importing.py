"""Accounts and open holds of another system become accounts and holds here, by ordinary commands.

A row's command has a request id made from the row's id, so it takes effect once, however often the file is
imported: what the log already has is not sent again, what is under way is known by its request id. Nothing
else is remembered anywhere: a run that ends early is run again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mini_visa import topics
from mini_visa.domain.cards import Tokenizer, bin_of, card_of, last4_of
from mini_visa.domain.commands import MIGRATION_CLIENT, Authorize, Command, OpenAccount
from mini_visa.domain.events import AccountOpened, PaymentAuthorized
from mini_visa.domain.payment import Merchant
from mini_visa.gateway.token_keys import load_tokenizer, token_keys_file
from mini_visa.kafka import committed_records, end_offsets
from mini_visa.migrate.rows import Row, read
from mini_visa.migrate.sending import Sender, each, fingerprint, sender
from mini_visa.settings import Settings

KINDS: Final = ("account", "hold")
REFUSALS_MAX: Final = 100
"""Listed; the rest is counted."""

Show = Callable[[str, int, int], None]
"""Takes what is being done, how many are done, and of how many (0: not known)."""


class Imported(msgspec.Struct, kw_only=True):
    """What an import did."""

    rows: dict[str, int]
    """kind -> rows of the file."""
    imported: int = 0
    """By this run."""
    before: int = 0
    """By an earlier one."""
    expired: int = 0
    """Holds whose time was over already: not sent."""
    refused: int = 0
    refusals: list[str] = []
    """A sentence each, with the line."""


async def import_file(
    settings: Settings, path: Path, *, dry_run: bool = False, show: Show = lambda *_: None
) -> Imported:
    """Check all of `path`, then import it. Raises `BadFile` before anything is sent."""
    rows: Counter[str] = Counter()
    for row in read(path, KINDS):
        rows[row.kind] += 1
        if not sum(rows.values()) % 1_000:
            show("checking the file", sum(rows.values()), 0)
    done = Imported(rows={kind: rows[kind] for kind in KINDS})
    if dry_run:
        return done
    tokenizer = load_tokenizer(token_keys_file(settings))
    before = await _imported_before(settings, show)
    async with sender(settings) as sending:
        for kind in KINDS:  # an account is there before its holds
            run = _Run(kind, rows[kind], tokenizer, before, sending, done, show)
            await each((row for row in read(path, KINDS) if row.kind == kind), run.one)
    return done


class _Run:
    """One kind's rows, each on its own."""

    def __init__(
        self,
        kind: str,
        total: int,
        tokenizer: Tokenizer,
        before: set[str],
        sending: Sender,
        done: Imported,
        show: Show,
    ) -> None:
        self._what = f"importing {kind}s"
        self._total = total
        self._tokenizer = tokenizer
        self._before = before
        self._sending = sending
        self._done = done
        self._show = show
        self._rows = 0

    async def one(self, row: Row) -> None:
        done = self._done
        command = command_of(row, self._tokenizer)
        if command.request_id in self._before:
            done.before += 1
        elif isinstance(command, Authorize) and command.advice_until <= time.time() * 1000:
            done.expired += 1
        else:
            answer = await self._sending.ask(topics.ACCOUNT_COMMANDS, command)
            outcome = answer.outcome
            if outcome.status == 200 and outcome.response_code in ("", "00"):
                done.before += answer.replayed
                done.imported += not answer.replayed
            else:
                done.refused += 1
                if len(done.refusals) < REFUSALS_MAX:
                    reason = outcome.refusal.reason if outcome.refusal else f"code {outcome.response_code}"
                    done.refusals.append(f"line {row.line}: {row.kind}: {reason}")
        self._rows += 1
        self._show(self._what, self._rows, self._total)


def command_of(row: Row, tokenizer: Tokenizer) -> Command:
    """The card number of `row` ends here: the command has its token, made as the gateway makes it."""
    values: dict[str, Any] = dict(row.values)
    number = values.pop("pan")
    token = tokenizer.tokens(number)[-1]
    request_id = f"{row.kind}:{values['id']}"
    command: Command
    if row.kind == "account":
        command = OpenAccount(
            account=token,
            request_id=request_id,
            client=MIGRATION_CLIENT,
            bin=bin_of(number),
            last4=last4_of(number),
            currency=values["currency"],
            limit=values["limit"],
            posted=values["balance"],
            status=values["status"],
            expiry=values["expiry"],
        )
    else:
        command = Authorize(
            account=token,
            request_id=request_id,
            client=MIGRATION_CLIENT,
            amount=values["amount"],
            currency=values["currency"],
            currency_given=True,
            card=card_of(number, token),
            merchant=merchant_of(values),
            advice_until=values["expires_at"],
            metadata={"migrated_from": values["id"]},
        )
    return replace(command, fingerprint=fingerprint(command))


def merchant_of(values: dict[str, Any]) -> Merchant:
    return Merchant(
        id=values["merchant_id"],
        mcc=values["mcc"],
        terminal_id=values["terminal_id"],
        country=values["country"],
    )


async def _imported_before(settings: Settings, show: Show) -> set[str]:
    """Request ids of imports that took effect, from the log: it remembers them longer than authorization."""
    name = topics.PAYMENT_EVENTS.name
    ends = await end_offsets(settings, [name])
    total, count = sum(ends.values()), 0
    found: set[str] = set()
    marks = f'"client":"{MIGRATION_CLIENT}"'.encode()
    async with aclosing(committed_records(settings, [name], {}, ends)) as records:
        async for record in records:
            count += 1
            if not count % 10_000:
                show("reading the log", count, total)
            if marks not in (record.value or b""):
                continue
            fact = topics.PAYMENT_EVENTS.decode(record.value)
            if isinstance(fact, AccountOpened | PaymentAuthorized) and fact.client == MIGRATION_CLIENT:
                found.add(fact.request_id)
    return found
