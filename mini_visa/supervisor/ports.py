"""TCP ports of this machine: a free one, and who holds a taken one."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
from pathlib import Path
from typing import Final

from mini_visa.broker.embedded import PORTS
from mini_visa.errors import UserError

LISTEN: Final = "0A"
TRIES: Final = 200
NAMED: Final = "mv-"
"""How the nursery names a service's process."""


class PortTaken(UserError):
    """The gateway's port is in use."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now, and that no outgoing connection takes before it is listened on."""
    for _ in range(TRIES):
        port = random.choice(PORTS)  # noqa: S311 - no secret
        if is_free(host, port):
            return port
    raise PortTaken(f"no free port of {host} between {PORTS.start} and {PORTS.stop} was found")


def is_free(host: str, port: int) -> bool:
    """Whether this process may listen on it. Connections that a former listener left behind do not
    count (SO_REUSEADDR), as they will not for the gateway."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def require_free(host: str, port: int, *, setting: str) -> None:
    """Raises `PortTaken` with who holds the port and how to choose another."""
    if not is_free(host, port):
        holder = holder_of(port)
        raise PortTaken(
            f"port {port} of {host} is taken{f' by {holder}' if holder else ''}. "
            f"Stop that, or choose another: {setting}={port + 1} (0: any free one)"
        )


def holder_of(port: int) -> str:
    """ "process PID (COMMAND)" of whoever listens on `port`; "" when that cannot be told (another
    user's process, another system than Linux)."""
    if sys.platform != "linux":
        return ""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    if (name := (process / "comm").read_text().strip()).startswith(NAMED):
                        return f"process {process.name} (the {name.removeprefix(NAMED)} of another mini-visa)"
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    return f"process {process.name} ({command.strip()[:80]})"
    return ""
