"""Rows written by the first version of the program: what is on a disk must stay readable."""

from __future__ import annotations

import pytest

from mini_visa.domain.payment import RuleHit
from mini_visa.domain.risk import Rule, RuleSet, Velocity
from mini_visa.streams.table import UnknownRowVersion
from tables.rules import RULES
from tables.velocity import FORGOTTEN, REQUESTS, VELOCITY, Assessed, Bookmark

RECORDED = [
    (
        VELOCITY,
        "0193cf0000019b797724d0a355534483a8636f756e742f363094ce695661c002ce695661c101ab616d6f756e742f36302f"
        "3294ce695661c0cd0bb8ce695661c105ac6465636c696e65732f36303092ce0a88a36003",
        Velocity(
            1_767_269_410_000,
            "USD",
            {
                "count/60": (1_767_268_800, 2, 1_767_268_801, 1),
                "amount/60/2": (1_767_268_800, 30_00, 1_767_268_801, 5),
                "declines/600": (176_726_880, 3),
            },
        ),
    ),
    (REQUESTS, "0195cf0000019b796dd6000000a090", Assessed(1_767_268_800_000, 0)),
    (
        REQUESTS,
        "0195cf0000019b796dd600023ca236359188a472756c65b276656c6f636974792d636f756e742d363073a776657273696f6e"
        "01a76f7574636f6d65a76465636c696e65a66d6574726963a5636f756e74a576616c75650ba97468726573686f6c640aa8"
        "77696e646f775f733cad726573706f6e73655f636f6465a23635",
        Assessed(
            1_767_268_800_000,
            2,
            60,
            "65",
            (
                RuleHit(
                    rule="velocity-count-60s",
                    version=1,
                    outcome="decline",
                    metric="count",
                    value=11,
                    threshold=10,
                    window_s=60,
                    response_code="65",
                ),
            ),
        ),
    ),
    (
        FORGOTTEN,
        "0191b730303032303435342f6163632d312f6c6f63616c2f7231",
        Bookmark("00020454/acc-1/local/r1"),
    ),
    (
        RULES,
        "0192039289a26964b376656c6f636974792d616d6f756e742d363073a776657273696f6e02a66d6574726963a6616d6f756e"
        "74a877696e646f775f733ca97468726573686f6c64ce0007a120a76f7574636f6d65a76465636c696e65ad726573706f6e73"
        "655f636f6465a23631a573636f72653caa7468726573686f6c647381a34a5059ce000b71b087a26964a36f6c64a776657273"
        "696f6e04a66d6574726963a86465636c696e6573a877696e646f775f73cd0258a97468726573686f6c6404a76f7574636f6d"
        "65a5616c657274a772657469726564c3",
        RuleSet(
            3,
            (
                Rule(
                    id="velocity-amount-60s",
                    version=2,
                    metric="amount",
                    window_s=60,
                    threshold=500_000,
                    outcome="decline",
                    response_code="61",
                    score=60,
                    thresholds={"JPY": 750_000},
                ),
                Rule(
                    id="old",
                    version=4,
                    metric="declines",
                    window_s=600,
                    threshold=4,
                    outcome="alert",
                    retired=True,
                ),
            ),
        ),
    ),
]


@pytest.mark.parametrize(("table", "recorded", "row"), RECORDED)
def test_a_row_of_the_first_version_is_read(table, recorded, row):
    assert table.decode(bytes.fromhex(recorded)) == row


@pytest.mark.parametrize(("table", "recorded", "row"), RECORDED)
def test_a_row_of_an_unknown_version_is_refused_by_name(table, recorded, row):
    with pytest.raises(UnknownRowVersion, match=table.name):
        table.decode(b"\xfa" + bytes.fromhex(recorded)[1:])
