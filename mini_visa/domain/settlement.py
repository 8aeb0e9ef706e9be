"""Settlement: per cycle, merchant and currency one net position, and the files that show them.

Cycles are stretches of event time of one length. A cycle is open on a partition until a tick of a later
one comes; what arrives before that tick belongs to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from mini_visa.domain.clearing import ClearingItem
from mini_visa.domain.ledger import BANK, Posting, payable_of
from mini_visa.domain.messages import Message
from mini_visa.domain.money import exponent_of, format_amount


class OpenPosition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a merchant's items of one currency add up to so far."""

    items: int = 0
    sales: int = 0
    """Minor units for the merchant, before fees: cleared captures, won disputes."""
    returns: int = 0
    """Minor units against it: refunds, chargebacks."""
    interchange: int = 0
    scheme_fees: int = 0

    def plus(self, item: ClearingItem) -> OpenPosition:
        return OpenPosition(
            self.items + 1,
            self.sales + item.sale,
            self.returns + item.returned,
            self.interchange + item.interchange,
            self.scheme_fees + item.scheme_fee,
        )


class SettlementPosition(Message, frozen=True, kw_only=True, omit_defaults=True, tag="settlement_position/1"):
    """A merchant's position in a closed cycle."""

    cycle: str
    merchant_id: str
    currency: str
    items: int
    sales: int
    returns: int
    interchange: int
    scheme_fees: int
    closed_at: int

    @property
    def net(self) -> int:
        """Minor units that the merchant gets; negative: that it owes."""
        return self.sales - self.returns - self.interchange - self.scheme_fees


class CycleClosed(Message, frozen=True, kw_only=True, omit_defaults=True, tag="cycle_closed/1"):
    """All positions of `cycle` on one partition are before this. The cycle is closed when this has come
    from each partition that had items in it."""

    cycle: str
    partition: int
    positions: int
    first_item: int
    """Its items on this partition of clearing.items are those at offsets first_item <= o < end_item."""
    end_item: int
    closed_at: int


def cycle_name(begins: int) -> str:
    """When the cycle begins (ms), UTC: "2026-01-01T00:00:00Z". Cycles are a second long at least."""
    return datetime.fromtimestamp(begins // 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def settle(position: SettlementPosition) -> tuple[Posting, ...]:
    """The bank pays the merchant its net position, or gets it from the merchant. Nothing for a net of 0."""
    if not position.net:
        return ()
    return (
        Posting(payable_of(position.merchant_id), position.currency, position.net),
        Posting(BANK, position.currency, -position.net),
    )


# -- the files -------------------------------------------------------------------------------------

COLUMNS: Final = (
    "cycle", "merchant_id", "currency", "items", "sales", "returns", "interchange", "scheme_fees", "net",
)  # fmt: skip


def rows_of(positions: Iterable[SettlementPosition]) -> list[dict[str, Any]]:
    """By merchant and currency; amounts as decimal strings."""
    rows = []
    for position in sorted(positions, key=lambda one: (one.cycle, one.merchant_id, one.currency)):
        exponent = exponent_of(position.currency)
        money = {
            name: format_amount(getattr(position, name), exponent)
            for name in ("sales", "returns", "interchange", "scheme_fees", "net")
        }
        rows.append(
            {
                "cycle": position.cycle,
                "merchant_id": position.merchant_id,
                "currency": position.currency,
                "items": position.items,
                **money,
            }
        )
    return rows


class CsvFile:
    """RFC 4180, with a header line: a page of positions after the other."""

    def __init__(self) -> None:
        self._header = ",".join(COLUMNS) + "\r\n"

    def page(self, positions: Iterable[SettlementPosition]) -> bytes:
        header, self._header = self._header, ""
        lines = (",".join(_cell(str(row[column])) for column in COLUMNS) for row in rows_of(positions))
        return (header + "".join(f"{line}\r\n" for line in lines)).encode()

    def end(self) -> bytes:
        return b""


class JsonFile:
    """One document: the positions, a line each, and the totals: currency -> sum of the net positions, what
    the bank pays, as the ledger's settlement:bank has it."""

    def __init__(self) -> None:
        self._before = b'{"positions": [\n'
        self._sums: Counter[str] = Counter()

    def page(self, positions: Iterable[SettlementPosition]) -> bytes:
        positions = list(positions)
        for position in positions:
            self._sums[position.currency] += position.net
        parts = []
        for row in rows_of(positions):
            parts += [self._before, msgspec.json.encode(row)]
            self._before = b",\n"
        return b"".join(parts)

    def end(self) -> bytes:
        totals = {
            currency: format_amount(net, exponent_of(currency))
            for currency, net in sorted(self._sums.items())
        }
        before = b"" if self._sums else self._before
        return before + b'\n], "totals": ' + msgspec.json.encode(totals) + b"}\n"


def _cell(text: str) -> str:
    """Quoted where it must be. A spreadsheet must not take a merchant's name for a formula; a negative
    amount is none."""
    if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and not text[1:2].isdigit()):
        text = f"'{text}"
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
