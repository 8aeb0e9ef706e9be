"""Input that is hardly HTTP, sent byte by byte: always a problem, never a 500, never a PAN repeated."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import pytest

from .conftest import Client, GatewayRunner, until_it_can_be_read_from

PAN = "4111111111111111"
_HEAD = "POST /payments/authorize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def post(headers: str, body: bytes = b"") -> bytes:
    return f"{_HEAD}{headers}\r\n\r\n".encode() + body


ODD = {
    "a request line that is none": (f"{PAN}\r\n\r\n".encode(), 400),
    "a version that is none": (f"GET /payments/{PAN} HTTP/{PAN}\r\n\r\n".encode(), 400),
    "a header without a colon": (f"GET /healthz HTTP/1.1\r\nHost: x\r\n{PAN}\r\n\r\n".encode(), 400),
    "a header's name with a space": (f"GET /healthz HTTP/1.1\r\n{PAN} : 1\r\n\r\n".encode(), 400),
    "a header of 20 kB": (f"GET /healthz HTTP/1.1\r\nX: {PAN * 1_250}\r\n\r\n".encode(), 400),
    "a path of 20 kB": (f"GET /{PAN * 1_250} HTTP/1.1\r\n\r\n".encode(), 400),
    "a NUL in a header": (f"GET /healthz HTTP/1.1\r\nX: {PAN}\0\r\n\r\n".encode(), 400),
    "a length that is no number": (post(f"Content-Length: {PAN}x", b"{}"), 400),
    "two lengths": (post("Content-Length: 2\r\nContent-Length: 3", b"{}"), 400),
    "a length of 16 digits": (post(f"Content-Length: {PAN}", b"{}"), 413),
    "a chunk's size that is none": (post("Transfer-Encoding: chunked", f"{PAN}z\r\n{{}}".encode()), 400),
    "not the gzip that it says": (post("Content-Encoding: gzip\r\nContent-Length: 16", PAN.encode()), 400),
    "half of a gzip": (
        post("Content-Encoding: gzip\r\nContent-Length: 30", gzip.compress(b"{" + b" " * 999)[:15] * 2), 400,
    ),
    "an unknown encoding": (post("Content-Encoding: zip\r\nContent-Length: 16", PAN.encode()), 400),
    "gzip that unpacks to 10 MB": (
        post(f"Content-Encoding: gzip\r\nContent-Length: {len(gzip.compress(b' ' * (10 << 20)))}",
             gzip.compress(b" " * (10 << 20))), 413,
    ),
    "another expectation": (post(f"Expect: {PAN}\r\nContent-Length: 2", b"{}"), 417),
    "an Idempotency-Key of a PAN": (post(f"Idempotency-Key: {PAN}\r\nContent-Length: 2", b"{}"), 400),
    "an Authorization of a PAN": (post(f"Authorization: Bearer {PAN}\r\nContent-Length: 2", b"{}"), 400),
    "a Consistency-Token of a PAN": (
        f"GET /alerts HTTP/1.1\r\nHost: x\r\nConsistency-Token: {PAN}\r\n\r\n".encode(), 400,
    ),
    "a media type of a PAN": (
        post("Content-Length: 2", b"{}").replace(b"application/json", PAN.encode()), 415,
    ),
    "a method of its own": (b"FETCH /payments HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a path of bad escapes": (f"GET /payments/%ff%{PAN} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 404),
    "a path of raw bytes": (b"GET /payments/pay_\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a query of bad escapes": (f"GET /payments?account=%ff%{PAN} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
}  # fmt: skip


async def exchange(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """What comes back for `data`: status, headers (names in lower case) and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    return int(lines[0].split()[1]), headers, body


async def test_input_that_is_hardly_http_is_a_problem_that_repeats_nothing_of_it(
    client: Client, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    await until_it_can_be_read_from(client)
    caplog.set_level(logging.DEBUG)
    for name, (data, expected) in ODD.items():
        with subtests.test(name):
            status, headers, body = await exchange(client.port, data)
            assert status == expected, body
            assert headers["content-type"].startswith("application/problem+json"), body
            problem = json.loads(body)
            assert problem["status"] == status and problem["type"].startswith("urn:mini-visa:problem:")
            assert PAN not in body.decode() and PAN not in str(headers)
    assert PAN not in caplog.text


async def test_a_client_that_hangs_up_in_its_body_is_no_error(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(post("Content-Length: 100", f'{{"pan": "{PAN}"'.encode()))
    await writer.drain()
    writer.close()
    await asyncio.sleep(0.1)
    assert (await client.get("/healthz")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_body_may_come_after_100_continue_and_gzipped(client: Client) -> None:
    body = gzip.compress(b'{"amount": "1.00"}')
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(post(f"Expect: 100-continue\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"))
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"100"
        writer.write(body)
        assert (await reader.readline()).split()[1] == b"400"  # read, and request_id and pan are missing
    writer.close()


async def test_a_token_of_any_partition_that_the_cluster_has_is_taken(gateway_for: GatewayRunner) -> None:
    """Whatever the setting says: it has no say in what is there."""
    async with gateway_for(partitions=1, gateway_deadline_s=0.5) as client:
        await until_it_can_be_read_from(client)
        for token, status in (("1:999999999", 504), ("2:0", 400)):
            async with client.get("/alerts", headers={"Consistency-Token": token}) as response:
                assert response.status == status
