"""Shoppers that send payments, look at what they did, never give up on an answer, and write down all that
happened.

Cheap: connections are bare protocols, and nothing is checked here. The history is what the auditor checks.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from aiokafka.partitioner import murmur2

from mini_visa.demo.cards import card_numbers
from tests.bench.httpload import Connection

ATTEMPT_TIMEOUT_S: Final = 15.0
"""Above the gateway's deadline, and its time-out reversal's."""
PATIENCE_S: Final = 240.0
"""A request that has no outcome after this stays unknown."""
READ_PATIENCE_S: Final = 12.0
"""Who only looks gives up after this: what was written is there, and is looked at again later."""
BLIND_S: Final = 5.0
"""Nobody looks for so long after somebody did in vain: the read model is far behind, as after its loss."""
PAUSE_S: Final = 0.05
BUSY_S: Final = (0.3, 1.0)
"""Before a request that was refused for there being too many is sent again."""
BURST: Final = 13
READS: Final = 0.9
"""How many of a shopper's writes are looked at afterwards: then 45 % of all requests are reads."""
AGAIN: Final = 0.03
"""How many of the writes that have been answered are sent once more, as by a client that has lost the
answer: it must be the same, byte by byte."""
REMEMBERED: Final = 4_000
"""Payments that any shopper may look at again, the newest ones."""
FLUSH_LINES: Final = 2_000
AUTHORIZE: Final = "/payments/authorize"
DECIMALS: Final = {"USD": 2, "JPY": 0, "KWD": 3}
MERCHANTS: Final = tuple(
    {"merchant_id": f"shop-{number}", "mcc": mcc}
    for number in range(40)
    for mcc in ("5411", "5812", "7011", "5542", "5999")
)
TOLD: Final = frozenset({200, 409})
"""Statuses that tell the outcome of a decision."""
FINAL: Final = TOLD | {400, 404, 422}
TOKEN: Final = b"\r\nConsistency-Token:"
_SHOWN_OF_ACCOUNT: Final = ("status", "limit", "held", "posted", "available")


def text_of(minor: int, currency: str) -> str:
    digits = str(minor).zfill(DECIMALS[currency] + 1)
    cut = len(digits) - DECIMALS[currency]
    return digits[:cut] + (f".{digits[cut:]}" if DECIMALS[currency] else "")


class Card:
    """A card and the account that was opened for it. `choose`: its shopper's dice."""

    def __init__(self, pan: str, currency: str, limit: int, choose: random.Random) -> None:
        self.choose = choose
        self.pan = pan
        self.currency = currency
        self.limit = limit
        self.account = ""
        self.token = b""
        """Consistency-Token of the newest answer about the account: what a reader may expect to see."""
        self.token_position = -1
        self.payment = ""
        """The last payment that was approved."""

    def learn(self, head: bytes) -> None:
        """Take the token from an answer's headers."""
        start = head.find(TOKEN)
        if start < 0:
            return
        end = head.find(b"\r\n", start + 2)
        token = head[start + len(TOKEN) : end if end >= 0 else None].strip()
        position = int(token.partition(b":")[2])
        if position > self.token_position:
            self.token, self.token_position = token, position


class Recovery(NamedTuple):
    """Seconds from a fault until something was decided on a payment that was first sent after it."""

    first: asyncio.Future[float]
    everywhere: asyncio.Future[float]
    """Until that was so on every partition."""


class Request(NamedTuple):
    """One request, the same bytes for each attempt at it."""

    path: str
    wire: bytes
    card: Card
    body: dict[str, Any] | None
    """None: a read."""
    wants: str = ""
    """The token that a read comes with."""
    since: float = 0.0
    """When it was sent first: monotonic seconds."""
    sent: asyncio.Event | None = None
    """Set when an attempt has been sent."""


def _post(path: str, body: dict[str, Any], method: str = "POST") -> bytes:
    data = orjson.dumps(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    """What the history keeps of the answer to a read: the state, and which events it is said to come from."""
    if "amounts" not in answer:
        return {name: answer.get(name) for name in _SHOWN_OF_ACCOUNT}
    return {
        "status": answer["status"],
        "code": answer["response_code"],
        "amounts": answer["amounts"],
        "events": [[event["log"]["partition"], event["log"]["offset"]] for event in answer["events"]],
    }


class Client:
    """`history`: where each attempt is written, a line of JSON. `gateways`: (host, port); they may come and
    go."""

    def __init__(
        self, gateway: tuple[str, int], history: Path, *, seed: int, shoppers: int, partitions: int
    ) -> None:
        self.gateways = [gateway]
        self.attempts = 0
        self.requests = 0
        """Reads included."""
        self.reads = 0
        self.acknowledged = 0
        self.refused = 0
        """Writes that can never succeed, as the answer said: nothing sent here is meant to be such."""
        self.unknown = 0
        """Writes whose outcome was never told."""
        self.reads_given_up = 0
        self.statuses: Counter[int] = Counter()
        self.doubled = False
        """Every request is sent twice at once."""
        self.doubles = 0
        """Requests of which two attempts at once were both answered."""
        self.reordered = False
        """Reversals by request id come before what they reverse."""
        self.reversals_first = 0
        """Those of them that were answered, as was what they reverse."""
        self._payments: deque[tuple[str, Card]] = deque(maxlen=REMEMBERED)
        self._seed = seed
        self._pans = card_numbers(random.Random(seed))
        self._shoppers = shoppers
        self._partitions = partitions
        self._numbers = iter(range(1, 1 << 60))
        self._history = history.open("ab", buffering=1 << 20)
        self._stop = asyncio.Event()
        self._lines: list[bytes] = []
        self._idle: dict[tuple[str, int], list[Connection]] = {}
        self._blind_until = 0.0
        self._mark: tuple[float, set[int], Recovery] | None = None

    # -- life

    async def run(self) -> None:
        """Until `stop`; what is under way is then seen to its end."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._shoppers):
                group.create_task(self._shop(random.Random(f"{self._seed}/{number}")))
        self.flush()

    def stop(self) -> None:
        self._stop.set()

    def flush(self) -> None:
        self._history.write(b"".join(self._lines))
        self._lines.clear()
        self._history.flush()

    def note(self, **facts: Any) -> None:
        """A line of the history that is no attempt."""
        self._lines.append(orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE))

    def expect(self) -> Recovery:
        """What is decided on authorizations that nobody has sent before now."""
        loop = asyncio.get_running_loop()
        recovery = Recovery(loop.create_future(), loop.create_future())
        self._mark = time.monotonic(), set(), recovery
        return recovery

    # -- what shoppers do

    async def _shop(self, choose: random.Random) -> None:
        while not self._stop.is_set():
            currency = choose.choices(("USD", "JPY", "KWD"), (18, 1, 1))[0]
            card = Card(
                next(self._pans),
                currency,
                choose.choice((300, 1_000, 8_000, 20_000)) * 10 ** DECIMALS[currency],
                choose,
            )
            if not await self._open(card):
                continue
            number = choose.random()
            if number < 0.2:
                for _ in range(BURST):
                    await self._authorize(card, choose.randint(1, 9) * 10 ** DECIMALS[currency])
            elif number < 0.25:
                await self._odd(card)
            else:
                for _ in range(choose.randint(4, 9)):
                    if self._stop.is_set():
                        break
                    await self._purchase(card)

    async def _open(self, card: Card) -> bool:
        body = {
            "request_id": self._id(), "pan": card.pan, "currency": card.currency,
            "limit": text_of(card.limit, card.currency),
        }  # fmt: skip
        answer = await self.send("/accounts", body, card)
        card.account = (answer or {}).get("account_id", "")
        return bool(card.account)

    def _can_look(self) -> bool:
        return time.monotonic() > self._blind_until

    async def _look(self, card: Card) -> None:
        """What a shopper does between two payments: looks at the last one, at the account, at an old one."""
        number = card.choose.random()
        if number < 0.5 and card.payment:
            await self.read(f"/payments/{card.payment}", card)
        elif number < 0.8 or not self._payments:
            await self.read(f"/accounts/{card.account}", card)
        else:
            payment, of = card.choose.choice(self._payments)
            await self.read(f"/payments/{payment}", of)

    async def _authorize(self, card: Card, amount: int, **more: Any) -> dict[str, Any] | None:
        body = {
            "request_id": more.pop("request_id", None) or self._id(), "pan": card.pan,
            "amount": text_of(amount, card.currency), **card.choose.choice(MERCHANTS), **more,
        }  # fmt: skip
        if card.choose.random() < 0.5:
            body["currency"] = card.currency
        payment = await self.send(AUTHORIZE, body, card)
        if payment is not None and payment.get("operation", {}).get("response_code") == "00":
            card.payment = payment["payment_id"]
            self._payments.append((card.payment, card))
        return payment

    async def _purchase(self, card: Card) -> None:
        choose = card.choose
        amount = int(choose.lognormvariate(3.2, 1.0) * 10 ** DECIMALS[card.currency]) + 1
        if self.reordered or choose.random() < 0.02:
            original, sent = self._id(), asyncio.Event()
            undo = {"request_id": self._id(), "original_request_id": original, "pan": card.pan}

            async def authorize() -> dict[str, Any] | None:
                await sent.wait()
                return await self._authorize(card, amount, request_id=original)

            answers = await asyncio.gather(
                self.send("/payments/reversals", undo, card, sent=sent), authorize()
            )
            self.reversals_first += None not in answers
            return
        way = choose.random()
        payment = await self._authorize(card, amount, capture=way < 0.1, partial_approval=way > 0.9)
        if payment is None or payment.get("operation", {}).get("response_code") not in ("00", "10"):
            return
        path = f"/payments/{payment['payment_id']}"
        if way < 0.1:
            if choose.random() < 0.3:
                await self._on(f"{path}/refunds", card)
        elif way < 0.2:
            await self._on(
                f"{path}/increments", card, amount=text_of(choose.randint(1, amount), card.currency)
            )
        elif way < 0.35:
            await self._on(f"{path}/reversals", card)
        elif way < 0.4:
            part = text_of(choose.randint(1, amount), card.currency)
            await self._on(f"{path}/captures", card, amount=part, final=False)
            await self._on(f"{path}/captures", card)
            await self._on(f"{path}/refunds", card, amount=part)
        elif way < 0.75:
            await self._on(f"{path}/captures", card)
            if choose.random() < 0.1:
                await self._on(f"{path}/chargebacks", card, reason_code="4853")
            elif choose.random() < 0.1:
                await self._on(f"{path}/refunds", card)
        if choose.random() < 0.03:
            pays = text_of(choose.randint(1, amount), card.currency)
            await self._on(f"/accounts/{card.account}/payments", card, amount=pays)

    async def _odd(self, card: Card) -> None:
        """A card that is blocked, ids that are used twice, requests that nobody asks about again."""
        choose = card.choose
        amount = choose.randint(1, 9) * 10 ** DECIMALS[card.currency]
        once = self._id()
        await self._authorize(card, amount, request_id=once)
        await self._on(f"/accounts/{card.account}", card, method="PATCH", status="blocked")
        await self._authorize(card, amount)
        await self._on(f"/accounts/{card.account}", card, method="PATCH", status="active")
        body = {"request_id": self._id(), "pan": card.pan, "amount": text_of(amount, card.currency)}
        gone = asyncio.get_running_loop().time() + 0.002
        request = Request(AUTHORIZE, _post(AUTHORIZE, body), card, body)
        status, _ = await self._attempt(request, gone)
        self.requests += 1
        self._count(status)

    async def _on(self, path: str, card: Card, method: str = "POST", **body: Any) -> dict[str, Any] | None:
        return await self.send(path, {"request_id": self._id(), **body}, card, method)

    def _id(self) -> str:
        return f"c{next(self._numbers)}"

    # -- how requests are sent

    async def send(
        self,
        path: str,
        body: dict[str, Any],
        card: Card,
        method: str = "POST",
        sent: asyncio.Event | None = None,
    ) -> dict[str, Any] | None:
        """Send it, the same each time, until there is an outcome; None: there was none, or it was refused.
        Then, as a rule, look at what it did. `sent` is set when it has been sent, or never will be."""
        self.requests += 1
        request = Request(path, _post(path, body, method), card, body, since=time.monotonic(), sent=sent)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if self.doubled:
                first, second = await asyncio.gather(self._attempt(request), self._attempt(request))
                self.doubles += first[0] != 0 and second[0] != 0
                status, answer = first if first[0] in FINAL else second
            else:
                status, answer = await self._attempt(request)
            if status in FINAL:
                self._count(status)
                if card.choose.random() < AGAIN:
                    await self._attempt(request)
                if card.account and card.choose.random() < READS and self._can_look():
                    await self._look(card)
                return answer if status == 200 else None
            if time.monotonic() > deadline:
                self._count(status)
                if sent is not None:
                    sent.set()
                return None
            await self._rest(answer, card)

    def _count(self, status: int) -> None:
        """What became of a write, in the end."""
        told = status in TOLD
        self.acknowledged += told
        self.refused += status in FINAL and not told
        self.unknown += status not in FINAL

    async def read(self, path: str, card: Card) -> None:
        """GET it until there is an answer. With the newest token of its account, as a rule: then the answer
        must have all that the client was told."""
        self.requests += 1
        self.reads += 1
        wants = card.token if card.choose.random() < 0.9 else b""
        header = b"Consistency-Token: %b\r\n" % wants if wants else b""
        wire = b"GET %b HTTP/1.1\r\nHost: gateway\r\n%b\r\n" % (path.encode(), header)
        request = Request(path, wire, card, None, wants.decode())
        deadline = time.monotonic() + READ_PATIENCE_S
        while True:
            status, answer = await self._attempt(request)
            if status in FINAL:
                return
            if status == 504:
                self._blind_until = time.monotonic() + BLIND_S
            if time.monotonic() > deadline:
                self.reads_given_up += 1
                return
            await self._rest(answer, card)

    async def _rest(self, answer: dict[str, Any], card: Card) -> None:
        busy = answer.get("type", "").endswith(":busy")
        await asyncio.sleep(card.choose.uniform(*BUSY_S) if busy else PAUSE_S)

    async def _attempt(self, request: Request, deadline: float | None = None) -> tuple[int, dict[str, Any]]:
        """One attempt, written down. Status 0: no answer. `deadline`: when to close the connection on it."""
        loop, card = asyncio.get_running_loop(), request.card
        gateway = self.gateways[0] if len(self.gateways) == 1 else card.choose.choice(self.gateways)
        try:
            connection = await self._connection(gateway)
        except OSError:
            await asyncio.sleep(PAUSE_S)  # Nothing was sent.
            return 0, {}
        done: asyncio.Future[tuple[int, bytes]] = loop.create_future()

        def answered(status: int, answer: bytes) -> None:
            if not done.done():
                done.set_result((status, answer))

        self.attempts += 1
        sent, sent_at = time.time(), time.monotonic()
        connection.send(request.wire, answered)
        if request.sent is not None:
            request.sent.set()
        timer = loop.call_at(deadline or loop.time() + ATTEMPT_TIMEOUT_S, connection.abort)
        over = False
        try:
            status, raw = await done
        except asyncio.CancelledError:  # the run is over: it was sent all the same
            status, raw, over = 0, b"", True
            connection.abort()
        timer.cancel()
        ended_at = time.monotonic()
        if connection.is_open:
            self._idle[gateway].append(connection)
        answer: dict[str, Any] = {}
        if status:
            try:
                answer = orjson.loads(raw)
            except ValueError:
                status = 0
        self.statuses[status] += 1
        line: dict[str, Any] = {
            "sent": sent, "ended": sent + ended_at - sent_at, "path": request.path,
            "account": card.account or answer.get("account_id", ""), "status": status,
        }  # fmt: skip
        if request.body is None:
            line["wants"] = request.wants
            if status == 200:
                line["shows"] = _shown(answer)
        else:
            line["body"] = request.body
            if status == 200:
                card.learn(connection.head)
                line["code"] = answer["operation"]["response_code"] if "operation" in answer else "00"
                line["payment_id"] = answer.get("payment_id") or ""
                line["digest"] = blake2b(raw, digest_size=8).hexdigest()
                if request.path == AUTHORIZE:
                    self._decided(request.since, line["account"])
        if status != 200 and status:
            line["problem"] = answer.get("type", "").rpartition(":")[2]
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) > FLUSH_LINES:
            self.flush()
        if over:
            raise asyncio.CancelledError
        return status, answer

    async def _connection(self, gateway: tuple[str, int]) -> Connection:
        idle = self._idle.setdefault(gateway, [])
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(Connection, *gateway)
        return made

    def _decided(self, sent_at: float, account: str) -> None:
        if self._mark is None or sent_at < self._mark[0]:
            return
        since, seen, recovery = self._mark
        seen.add((murmur2(account.encode()) & 0x7FFFFFFF) % self._partitions)
        after_s = time.monotonic() - since
        if not recovery.first.done():
            recovery.first.set_result(after_s)
        if len(seen) == self._partitions:
            recovery.everywhere.set_result(after_s)
            self._mark = None
