"""What the ledger remembers.

ledger-chain: one row, `HEAD` -> the last entry of this partition's journal.
settlement-chain: the same for the settlement journal.
balances: "ledger account/currency" -> its debits and credits as posted on this partition. A hot account has
such a row on every partition; its balance is their sum.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mini_visa.domain.journal import ChainHead, Journal
from mini_visa.streams import Table, versioned


class Balance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    debits: int = 0
    """Minor units, as the credits: the balance is debits less credits."""
    credits: int = 0
    postings: int = 0
    journal: Journal = "payments"
    """With the next two: the last entry that posted here."""
    partition: int = 0
    number: int = 0
    at: int = 0

    @property
    def amount(self) -> int:
        return self.debits - self.credits


CHAIN: Table[ChainHead] = versioned("ledger-chain", ChainHead)
SETTLEMENT_CHAIN: Table[ChainHead] = versioned("settlement-chain", ChainHead)
BALANCES: Table[Balance] = versioned("balances", Balance)

HEAD: Final = b"head"
NOT_POSTED: Final = Balance()
