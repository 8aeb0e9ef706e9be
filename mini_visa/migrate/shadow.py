"""Another system's decisions, asked again here, and compared code by code, before any traffic moves.

The log of its authorizations goes through risk and authorization of a system that has its accounts, at the
pace at which it happened (velocity rules count in time). What is decided here has no effect outside of that
system.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mini_visa import topics
from mini_visa.domain.cards import Tokenizer, card_of
from mini_visa.domain.commands import SHADOW_CLIENT, Authorize, Command, ReversePayment
from mini_visa.gateway.token_keys import load_tokenizer, token_keys_file
from mini_visa.migrate.importing import Show, merchant_of
from mini_visa.migrate.rows import BadFile, Row, read
from mini_visa.migrate.sending import TOGETHER, Sender, fingerprint, sender
from mini_visa.settings import Settings

KINDS: Final = ("authorization", "reversal")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One authorization that was decided otherwise."""

    line: int
    id: str
    theirs: str
    ours: str
    """A response code each; an HTTP status where ours was refused."""
    rules: list[str]
    """Risk rules that declined it here."""


class Compared(msgspec.Struct, kw_only=True):
    compared: int = 0
    agreed: int = 0
    codes: dict[str, dict[str, int]] = {}
    """Their code -> our code -> how many."""
    differences: list[Difference] = []
    """The first of them."""

    @property
    def agreement(self) -> float:
        """Percent."""
        return 100.0 * self.agreed / self.compared if self.compared else 100.0


async def shadow(
    settings: Settings,
    path: Path,
    *,
    run: str,
    speed: float = 1.0,
    differences_max: int = 100,
    show: Show = lambda *_: None,
) -> Compared:
    """Replay `path` at `speed` times its own pace (0: as fast as it goes) and compare. `run` names this run:
    another one asks anew. Raises `BadFile` before anything is sent."""
    rows, last = 0, 0
    for row in read(path, KINDS):
        rows += 1
        if row.values["at"] < last:
            raise BadFile(f"{path}: line {row.line}: at is before the row above: put them in its order")
        last = row.values["at"]
    tokenizer = load_tokenizer(token_keys_file(settings))
    async with sender(settings) as sending:
        replayed = _Replayed(tokenizer, sending, run, differences_max)
        await replayed.all(path, rows, speed, show)
    return replayed.result()


class _Replayed:
    def __init__(self, tokenizer: Tokenizer, sending: Sender, run: str, differences_max: int) -> None:
        self._tokenizer = tokenizer
        self._sending = sending
        self._run = run
        self._differences_max = differences_max
        self._codes: Counter[tuple[str, str]] = Counter()
        self._differences: list[Difference] = []
        self._room = asyncio.Semaphore(TOGETHER)
        self._last: dict[str, asyncio.Task[None]] = {}
        """Of each account: its rows go one after the other, as they did there."""

    async def all(self, path: Path, rows: int, speed: float, show: Show) -> None:
        loop = asyncio.get_running_loop()
        began, first, done = loop.time(), None, 0
        async with asyncio.TaskGroup() as group:
            for row in read(path, KINDS):
                at = row.values["at"]
                first = at if first is None else first
                if speed:
                    await asyncio.sleep(began + (at - first) / 1000 / speed - loop.time())
                await self._room.acquire()
                account = self._tokenizer.tokens(row.values["pan"])[-1]
                task = group.create_task(self._one(row, account, self._last.get(account)))
                self._last[account] = task
                done += 1
                show("replaying", done, rows)

    async def _one(self, row: Row, account: str, former: asyncio.Task[None] | None) -> None:
        try:
            if former is not None:
                await former
            await self._compare(row, account)
        finally:
            self._room.release()

    async def _compare(self, row: Row, account: str) -> None:
        values = row.values
        command = self._command(row, account)
        if isinstance(command, ReversePayment):
            await self._sending.ask(topics.ACCOUNT_COMMANDS, command)
            return
        outcome = (await self._sending.ask(topics.CARD_REQUESTS, command)).outcome
        theirs, ours = values["response_code"], outcome.response_code or str(outcome.status)
        self._codes[theirs, ours] += 1
        if theirs != ours:
            hits = outcome.payment.verdict.hits if outcome.payment else ()
            rules = [f"{hit.rule}/{hit.version}" for hit in hits if hit.outcome == "decline"]
            self._differences.append(
                Difference(line=row.line, id=values["id"], theirs=theirs, ours=ours, rules=rules)
            )
            self._differences.sort(key=lambda one: one.line)
            del self._differences[self._differences_max :]

    def _command(self, row: Row, account: str) -> Command:
        values: dict[str, Any] = row.values
        request_id = f"{self._run}:{values['id']}"
        command: Command
        if row.kind == "reversal":
            command = ReversePayment(
                account=account,
                request_id=f"{self._run}:reversal:{values['id']}",
                client=SHADOW_CLIENT,
                original_request_id=f"{self._run}:{values['original_id']}",
            )
        else:
            command = Authorize(
                account=account,
                request_id=request_id,
                client=SHADOW_CLIENT,
                amount=values["amount"],
                currency=values["currency"],
                currency_given=True,
                card=card_of(values["pan"], account),
                merchant=merchant_of(values),
                expiry=values["expiry"],
            )
        return replace(command, fingerprint=fingerprint(command))

    def result(self) -> Compared:
        codes: dict[str, dict[str, int]] = {}
        for (theirs, ours), count in sorted(self._codes.items()):
            codes.setdefault(theirs, {})[ours] = count
        return Compared(
            compared=self._codes.total(),
            agreed=sum(count for (theirs, ours), count in self._codes.items() if theirs == ours),
            codes=codes,
            differences=self._differences,
        )
