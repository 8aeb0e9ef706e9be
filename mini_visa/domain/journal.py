"""The journal: entries that are never changed, each sealed with the hash of the one before it.

A chain belongs to one partition of one journal and has one writer. Whoever has the entries can check them:
`verify` finds a changed, missing, doubled or reordered one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias

import msgspec

from mini_visa.domain.ledger import BANK, CLEARING_SUSPENSE, HOLDS_CONTRA, INTERCHANGE, SCHEME_FEES, Posting
from mini_visa.domain.messages import Message

Journal: TypeAlias = Literal["payments", "settlement"]

AMOUNT_MAX: Final = 10**15
"""Of one posting, minor units. Above every amount a payment can have; sums stay far within 64 bits."""

HOT_ACCOUNTS: Final = frozenset({HOLDS_CONTRA, CLEARING_SUSPENSE, INTERCHANGE, SCHEME_FEES, BANK})
"""Posted on by nearly every entry. Each partition keeps a balance of its own; the account's is their sum."""


class Unbalanced(ValueError):
    """Postings that do not sum to zero in each currency, or that are out of range: never written."""


class BrokenChain(ValueError):
    """A journal is not what was written. The text says where."""


class ChainHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last entry of a chain; number 0 before the first."""

    number: int = 0
    hash: str = ""


class JournalEntry(Message, frozen=True, kw_only=True, omit_defaults=True, tag="journal_entry/1"):
    """One event's postings, all of them."""

    journal: Journal
    partition: int
    number: int
    """1, 2, 3 ... in its chain."""
    at: int
    """Event time, ms."""
    source: int
    """Offset of the event on the same partition of the journal's source topic."""
    kind: str
    """What happened: the event's name."""
    postings: tuple[Posting, ...]
    account: str = ""
    """Card account; "" in settlement."""
    payment_id: str = ""
    merchant_id: str = ""
    reference: str = ""
    """The request that caused it; in settlement, the cycle."""
    previous: str
    hash: str
    """SHA-256, hex, of `previous` and all the fields above it."""


class LedgerPostings(Message, frozen=True, kw_only=True, omit_defaults=True, tag="ledger_postings/1"):
    """Those postings of an entry whose balances are kept on one partition."""

    journal: Journal
    partition: int
    number: int
    """With `journal` and `partition`: the entry."""
    at: int
    postings: tuple[Posting, ...]


def check_balanced(postings: Iterable[Posting]) -> None:
    """Raises `Unbalanced`."""
    sums: dict[str, int] = {}
    for _, currency, amount in postings:
        if not -AMOUNT_MAX <= amount <= AMOUNT_MAX or amount == 0:
            raise Unbalanced("a posting is nothing or out of range")
        sums[currency] = sums.get(currency, 0) + amount
    if not sums or any(sums.values()):
        raise Unbalanced("debits and credits differ")


def seal(
    head: ChainHead,
    *,
    journal: Journal,
    partition: int,
    at: int,
    source: int,
    kind: str,
    postings: tuple[Posting, ...],
    account: str = "",
    payment_id: str = "",
    merchant_id: str = "",
    reference: str = "",
) -> JournalEntry:
    """The entry after `head`. Raises `Unbalanced`."""
    check_balanced(postings)
    number, previous = head.number + 1, head.hash
    return JournalEntry(
        journal=journal,
        partition=partition,
        number=number,
        at=at,
        source=source,
        kind=kind,
        postings=postings,
        account=account,
        payment_id=payment_id,
        merchant_id=merchant_id,
        reference=reference,
        previous=previous,
        hash=_hash(
            (
                previous, journal, partition, number, at, source, kind,
                account, payment_id, merchant_id, reference, postings,
            )
        ),
    )  # fmt: skip


def hash_of(entry: JournalEntry) -> str:
    """What `entry.hash` must be."""
    return _hash(
        (
            entry.previous, entry.journal, entry.partition, entry.number, entry.at, entry.source, entry.kind,
            entry.account, entry.payment_id, entry.merchant_id, entry.reference, entry.postings,
        )
    )  # fmt: skip


_canonical: Final = msgspec.json.Encoder()


def _hash(facts: tuple[Any, ...]) -> str:
    """Over a list of values in a fixed order, so that a field that is added to the message one day does
    not change the hashes of what was written before."""
    return sha256(_canonical.encode(facts)).hexdigest()


def verify(entries: Iterable[JournalEntry], head: ChainHead = ChainHead()) -> ChainHead:  # noqa: B008 (frozen)
    """Check the entries of one chain that follow `head`, in order; returns the new head.

    Raises `BrokenChain` at the first that does not follow, and `Unbalanced`.
    """
    for entry in entries:
        where = f"{entry.journal} {entry.partition}, entry {entry.number}"
        if entry.number != head.number + 1:
            raise BrokenChain(f"{where}: it follows entry {head.number}")
        if entry.previous != head.hash:
            raise BrokenChain(f"{where}: it was not written after the entry before it")
        if entry.hash != hash_of(entry):
            raise BrokenChain(f"{where}: it was changed after it was written")
        check_balanced(entry.postings)
        head = ChainHead(entry.number, entry.hash)
    return head


class TrialBalance:
    """Debits and credits of every ledger account, folded from the journals, and what they are true for."""

    def __init__(self) -> None:
        self.debits: Counter[tuple[str, str]] = Counter()
        """(ledger account, currency) -> minor units."""
        self.credits: Counter[tuple[str, str]] = Counter()
        self.heads: dict[tuple[Journal, int], ChainHead] = {}
        """(journal, partition) -> the last entry that is in the sums."""

    def add(self, entry: JournalEntry) -> None:
        """Raises `BrokenChain` and `Unbalanced`, and then adds nothing."""
        chain = (entry.journal, entry.partition)
        self.heads[chain] = verify([entry], self.heads.get(chain, ChainHead()))
        for account, currency, amount in entry.postings:
            side = self.debits if amount > 0 else self.credits
            side[account, currency] += abs(amount)

    def balance(self, account: str, currency: str) -> int:
        """Debits less credits."""
        return self.debits[account, currency] - self.credits[account, currency]

    @property
    def balances(self) -> dict[tuple[str, str], int]:
        """Of every account that was ever posted on, zeros too."""
        return {key: self.balance(*key) for key in self.debits.keys() | self.credits.keys()}

    def difference(self, currency: str) -> int:
        """Debits less credits of all accounts: zero, or something is very wrong."""
        return sum(balance for (_, known), balance in self.balances.items() if known == currency)
