"""Runs a command that must not outlive its parent: `python -I launcher.py COMMAND...`.

Standard input is a pipe whose other end only the parent holds. When it closes while the command runs, the
parent was killed, and the command is killed too: an orderly shutdown of Kafka in the middle of other
processes' transactions can lose their markers (see `EmbeddedBroker.stop`), a crash cannot. Should this
process itself be killed, Linux kills the command. Prints the command's pid on standard output, once.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_launcher() -> None:
    """In the child, before the command: ask Linux for SIGKILL when the launcher dies."""
    if sys.platform != "linux":
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died between fork and prctl
        os._exit(1)


def main(command: list[str]) -> int:
    """Exit status: the command's."""
    # Ctrl-C at a terminal goes to the whole group; the parent decides when the command ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread only, so running code between fork and exec is safe here.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=_die_with_launcher,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    print(child.pid, flush=True)
    while child.poll() is None:
        if select.select([sys.stdin], [], [], 0.2)[0] and not os.read(sys.stdin.fileno(), 1):
            child.kill()
            break
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
