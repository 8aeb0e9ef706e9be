"""Kafka requests by hand: is there a Kafka at this address, how many brokers does it know, is it at rest?"""

from __future__ import annotations

import socket
import struct
import time

_METADATA, _METADATA_VERSION = 3, 1
_LIST_TRANSACTIONS, _LIST_TRANSACTIONS_VERSION = 66, 0
_UNFINISHED = (b"Ongoing", b"PrepareCommit", b"PrepareAbort")
_LOOK_EVERY_S = 0.02
_CLIENT = b"mini-visa-probe"
_ANSWER_BYTES_MAX = 1 << 20


def brokers_known(host: str, port: int, timeout_s: float = 1.0) -> int:
    """Number of live brokers that the one at HOST:PORT knows of; 0 when it does not answer as a Kafka.

    Asks for the metadata of no topic (Metadata v1: correlation id, then the array of brokers)."""
    header = struct.pack(">hhih", _METADATA, _METADATA_VERSION, 1, len(_CLIENT)) + _CLIENT
    try:
        answer = _ask(host, port, header + struct.pack(">i", 0), timeout_s)
        (brokers,) = struct.unpack_from(">i", answer)
    except (OSError, EOFError, struct.error):
        return 0
    return max(0, int(brokers))


def at_rest(host: str, port: int, quiet_s: float, timeout_s: float) -> bool:
    """Whether no transaction was open on the broker for `quiet_s`; waits for that up to `timeout_s`. One that
    does not answer is not at rest."""
    deadline = time.monotonic() + timeout_s
    quiet_since = time.monotonic()
    while True:
        open_ = _transactions_open(host, port)
        now = time.monotonic()
        if open_ != 0:
            quiet_since = now
        elif now - quiet_since >= quiet_s:
            return True
        if now > deadline:
            return False
        time.sleep(_LOOK_EVERY_S)


def _transactions_open(host: str, port: int, timeout_s: float = 1.0) -> int | None:
    """Number of transactions that are not finished, markers included; None when it does not tell.

    ListTransactions v0, in the flexible form: lengths are varints, one more than they say."""
    filters = b"".join(bytes([len(state) + 1]) + state for state in _UNFINISHED)
    header = struct.pack(">hhih", _LIST_TRANSACTIONS, _LIST_TRANSACTIONS_VERSION, 1, len(_CLIENT)) + _CLIENT
    body = b"\x00" + bytes([len(_UNFINISHED) + 1]) + filters + b"\x01" + b"\x00"
    try:
        answer = _ask(host, port, header + body, timeout_s)
        tags, _, error, unknown_filters = struct.unpack_from(">bihb", answer)
        if (tags, error, unknown_filters) != (0, 0, 1):
            return None
        count, shift = 0, 0
        for byte in answer[8:]:
            count |= (byte & 0x7F) << shift
            if byte < 0x80:
                return count - 1
            shift += 7
    except (OSError, EOFError, struct.error):
        pass
    return None


def _ask(host: str, port: int, request: bytes, timeout_s: float) -> bytes:
    """What follows the correlation id of the answer. Raises OSError, EOFError or struct.error."""
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _exactly(connection, 4))
        if not 8 <= size <= _ANSWER_BYTES_MAX:
            raise EOFError
        answer = _exactly(connection, size)
    if struct.unpack_from(">i", answer) != (1,):
        raise EOFError
    return answer[4:]


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError:
            return False
    return True
