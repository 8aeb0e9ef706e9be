"""What the shoppers do in the phases of a fault, against a gateway that only answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import kinds
from tests.faults.client import Card, Client


class Gateway:
    """Approves what it is asked. Keeps the requests in the order in which they came."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                answer = json.dumps({"payment_id": "pay_1", "operation": {"response_code": "00"}}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[Gateway, tuple[str, int]]]:
    made = Gateway()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    yield made, server.sockets[0].getsockname()
    server.close()


def client_of(address: tuple[str, int], home: Path) -> tuple[Client, Card]:
    client = Client(address, home / "history", seed=1, shoppers=1, partitions=1)
    return client, Card("4000000000000002", "USD", 100_00, random.Random(1))


async def test_a_reversal_is_sent_before_what_it_reverses(
    gateway: tuple[Gateway, tuple[str, int]], tmp_path: Path
):
    client, card = client_of(gateway[1], tmp_path)
    client.reordered = True
    for _ in range(20):
        await client._purchase(card)
    ids = [body["request_id"] for body in gateway[0].bodies]
    reversals = {
        body["original_request_id"]: body["request_id"] for body in gateway[0].bodies if len(body) == 3
    }
    assert len(reversals) == client.reversals_first == 20
    assert all(ids.index(reversal) < ids.index(original) for original, reversal in reversals.items())


async def test_what_is_never_sent_does_not_count_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.faults.client.PATIENCE_S", 0.1)
    client, card = client_of(("127.0.0.1", 1), tmp_path)
    client.reordered = client.doubled = True
    await client._purchase(card)
    assert (client.unknown, client.reversals_first, client.doubles) == (2, 0, 0)


async def test_a_request_counts_as_doubled_when_it_is_answered_twice(
    gateway: tuple[Gateway, tuple[str, int]], tmp_path: Path
):
    client, card = client_of(gateway[1], tmp_path)
    await client._authorize(card, 1_00)
    assert client.doubles == 0
    client.doubled = True
    await client._authorize(card, 1_00)
    assert client.doubles == 1 and client.acknowledged == 2


@pytest.mark.parametrize(
    ("kind", "flag", "counts", "says"),
    [
        ("duplicates", "doubled", "doubles", "no request was sent twice"),
        ("reordered", "reordered", "reversals_first", "no reversal was answered"),
    ],
)
async def test_a_phase_in_which_nothing_came_of_it_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, kind: str, flag: str, counts: str, says: str
):
    monkeypatch.setattr(kinds, "PHASE_S", 0.05)
    monkeypatch.setattr(kinds, "PHASE_MAX_S", 0.2)
    client = SimpleNamespace(doubled=False, reordered=False, doubles=7, reversals_first=7)
    scene: Any = SimpleNamespace(client=client)
    (harm,) = (one.harm for one in kinds.KINDS if one.name == kind)
    with pytest.raises(AssertionError, match=says):
        await harm(scene, "client")
    assert not getattr(client, flag)

    async def happens() -> None:
        await asyncio.sleep(0.1)
        assert getattr(client, flag)
        setattr(client, counts, 8)

    await asyncio.gather(harm(scene, "client"), happens())
    assert not getattr(client, flag)
