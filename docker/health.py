"""Is the service of this container ready? Exit code 0 when it is: the image's HEALTHCHECK.

A container has one of the three kinds of processes, and each listens on a port of its own: whichever answers
is it. Only the standard library, and none of its packages with a long start.
"""

import os
import socket
import sys

TIMEOUT_S = 3.0
ASKED = (
    ("MINI_VISA_GATEWAY_PORT", 8080, "/readyz"),
    ("MINI_VISA_WEB_PORT", 8081, "/readyz"),
    ("MINI_VISA_CLEARING_HOUSE_PORT", 8090, "/healthz"),
)


def ask(port: int, path: str) -> tuple[int, str] | None:
    """(status, body) of a GET; None when nothing listens there."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    except ConnectionRefusedError:
        return None
    with connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b""
        while len(answer) < 65_536 and (read := connection.recv(8_192)):
            answer += read
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body.decode(errors="replace")


def main() -> int:
    for variable, default, path in ASKED:
        found = ask(int(os.environ.get(variable) or default), path)
        if found is not None:
            status, body = found
            print(body[:500])
            return 0 if status == 200 else 1
    print("nothing listens on the ports of the gateway, a worker's probes or the clearing house")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as failure:
        print(failure)
        sys.exit(1)
