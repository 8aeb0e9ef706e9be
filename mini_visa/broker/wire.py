"""One Kafka request by hand: is there a Kafka at this address, and how many brokers does it know?"""

from __future__ import annotations

import socket
import struct

_METADATA = 3
_VERSION = 1
_CLIENT = b"mini-visa-probe"
_ANSWER_BYTES_MAX = 1 << 20


def brokers_known(host: str, port: int, timeout_s: float = 1.0) -> int:
    """Number of live brokers that the one at HOST:PORT knows of; 0 when it does not answer as a Kafka.

    Asks for the metadata of no topic (Metadata v1: correlation id, then the array of brokers)."""
    header = struct.pack(">hhih", _METADATA, _VERSION, 1, len(_CLIENT)) + _CLIENT
    request = header + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _exactly(connection, 4))
            if not 8 <= size <= _ANSWER_BYTES_MAX:
                return 0
            correlation, brokers = struct.unpack(">ii", _exactly(connection, size)[:8])
    except (OSError, EOFError, struct.error):
        return 0
    return max(0, brokers) if correlation == 1 else 0


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
