"""Rows that versions of the program have written: what is on a disk must stay readable."""

from __future__ import annotations

import pytest

from mini_visa.domain.clearing import Presentment
from mini_visa.domain.journal import ChainHead
from mini_visa.domain.payment import Card, Merchant
from mini_visa.domain.saga import Saga
from mini_visa.domain.settlement import OpenPosition
from mini_visa.streams.table import UnknownRowVersion
from tables.clearing import (
    CYCLE,
    POSITIONS,
    PRESENTMENTS,
    PRESENTMENTS_DUE,
    NumberedCycle,
    OpenCycle,
    OpenPresentment,
)
from tables.ledger import BALANCES, CHAIN, SETTLEMENT_CHAIN, Balance
from tables.sagas import DEADLINES, SAGAS

AT = 1_767_225_600_000

RECORDED = [
    (CHAIN, "019207d940" + "6162" * 32, ChainHead(7, "ab" * 32)),
    (SETTLEMENT_CHAIN, "019207d940" + "6162" * 32, ChainHead(7, "ab" * 32)),
    (
        BALANCES,
        "0197cd7530ccc803aa736574746c656d656e740109cf0000019b76daa800",
        Balance(300_00, 200, 3, "settlement", 1, 9, AT),
    ),
    (
        PRESENTMENTS,
        "0183ab70726573656e746d656e748ba474797065ad70726573656e746d656e742f31a36b6579a97061795f315f662d32aa70"
        "61796d656e745f6964a77061795f315f66a16e02a6616d6f756e74cd0fa0a863757272656e6379a3555344ab636170747572"
        "65645f6174cf0000019b76daa800a46361726483a5746f6b656ea5746f6b5f31a362696ea6343131313131a56c61737434a4"
        "31313131a86d65726368616e7482a26964a26d31a36d6363a435343131b2617574686f72697a6174696f6e5f636f6465a641"
        "3142324333a6666f72636564c3a3647565cf0000019b76db9260a574696d657302",
        OpenPresentment(
            Presentment(
                key="pay_1_f-2",
                payment_id="pay_1_f",
                n=2,
                amount=40_00,
                currency="USD",
                captured_at=AT,
                card=Card(token="tok_1", bin="411111", last4="1111"),
                merchant=Merchant(id="m1", mcc="5411"),
                authorization_code="A1B2C3",
                forced=True,
            ),
            AT + 60_000,
            2,
        ),
    ),
    (PRESENTMENTS_DUE, "01cf0000019b76daa800", AT),
    (DEADLINES, "01cf0000019b76daa800", AT),
    (POSITIONS, "019503cd2710cd01f4cca00d", OpenPosition(3, 100_00, 5_00, 160, 13)),
    (
        CYCLE,
        "0197cd4fe611cd4fe50311cd1388cf0000019b76daa800",
        NumberedCycle(20_454, 17, 20_453, 3, 17, 5_000, AT),
    ),
    (
        CYCLE,
        "0197cf0000019b76daa80011cf0000019b71b44c000311cd1388cf0000019b76daa800",
        OpenCycle(AT, 17, AT - 86_400_000, 3, 17, 5_000, AT),
    ),
    (
        CYCLE,
        "0297cf0000019b76daa80011cf0000019b71b44c000311cd1388cf0000019b76daa800",
        OpenCycle(AT, 17, AT - 86_400_000, 3, 17, 5_000, AT),
    ),
    (
        SAGAS,
        "0196cf0000019b76daa800cf0000019b7c010400a8636c656172696e6792010203c3",
        Saga(AT, AT + 86_400_000, "clearing", (1, 2), 3, True),
    ),
    (
        SAGAS,
        "0196cf0000019b76daa800cf0000019b7c010400a972656c656173696e679000c2",
        Saga(AT, AT + 86_400_000, "releasing"),
    ),
]


@pytest.mark.parametrize(("table", "recorded", "row"), RECORDED)
def test_a_row_that_was_written_once_is_read(table, recorded, row):
    found = table.decode(bytes.fromhex(recorded))
    assert (found, type(found)) == (row, type(row))


def test_a_cycle_that_was_known_by_its_number_is_written_by_its_time():
    assert CYCLE.encode(OpenCycle(AT, 17)).hex().startswith("0297cf0000019b76daa80011ff")


@pytest.mark.parametrize(("table", "recorded", "row"), RECORDED)
def test_a_row_of_an_unknown_version_is_refused_by_name(table, recorded, row):
    with pytest.raises(UnknownRowVersion, match=table.name):
        table.decode(b"\xfa" + bytes.fromhex(recorded)[1:])
