"""The warm parent of all service processes: it imports everything once and forks a process a service.

Importing Faust, SQLAlchemy and the rest takes two seconds of CPU. Done once, beside the broker's start,
it makes the whole system start in a few seconds on two cores, and a service that died is running
again at once. The nursery itself stays as simple as can be: one thread, no event loop, nothing
opened but its channel to the supervisor, so that a fork of it is as good as a fresh interpreter.

The channel is a socket that carries a JSON object a line:

    supervisor -> nursery   {"start": NAME, "arguments": [...], "environment": {...}, "log": PATH}
                            {"signal": PID, "number": N}
    nursery -> supervisor   {"warm": true}
                            {"started": NAME, "pid": PID}
                            {"ended": PID, "code": N}        negative: killed by that signal

No orphans: a service dies with the nursery and the nursery with the supervisor, at once and whatever
kills them (PR_SET_PDEATHSIG where there is one, end of the channel elsewhere).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any, Final

WARM_MODULES: Final = (
    "faust.app.base",
    "faust.worker",
    "faust.transport.drivers.aiokafka",
    "aiokafka",
    "aiohttp.web",
    "alembic.command",
    "orjson",
    "prometheus_client",
    "rocksdict",
    "sqlalchemy",
    "typer",
    "uvloop",
    "mini_visa.cli",
    "mini_visa.gateway.app",
    "mini_visa.readmodel.projector",
)
"""Libraries, and of this program what opens nothing and reads no setting when it is imported. What is left to
import for a service that starts takes 0.1 s of CPU then; without the last three, 0.6 s for some."""

LINE_BYTES_MAX: Final = 1 << 20
PR_SET_NAME: Final = 15
PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that made it ends. `parent` is that process's
    id: if it ended before this call, end now. Without effect where the kernel is not Linux."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _prctl(option: int, argument: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class Nursery:
    """The nursery's side of the channel, and its children."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._received = b""

    def serve(self) -> dict[str, Any] | None:
        """Fork what is asked for until the channel ends. Returns None then; and in each child, with
        the request that it is the answer to."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._channel, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        self._report(warm=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj == wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                    continue
                requests = self._requests()
                if requests is None:
                    self._kill_all()
                    return None
                for request in requests:
                    if "start" in request:
                        if self._fork(request):
                            signal.set_wakeup_fd(-1)
                            selector.close()
                            os.close(wake_read)
                            os.close(wake_write)
                            return request
                    elif request["signal"] in self._children:
                        os.kill(request["signal"], request["number"])
            self._reap()

    def _requests(self) -> list[dict[str, Any]] | None:
        data = self._channel.recv(65_536)
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        assert len(self._received) <= LINE_BYTES_MAX, "a request without an end"
        return [json.loads(line) for line in lines]

    def _fork(self, request: dict[str, Any]) -> bool:
        """True in the child."""
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent(nursery)
            self._channel.close()
            return True
        self._children.add(pid)
        self._report(started=request["start"], pid=pid)
        return False

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._report(ended=pid, code=os.waitstatus_to_exitcode(status))

    def _kill_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _report(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone: the channel's end says so
            self._channel.sendall(json.dumps(report).encode() + b"\n")


def run_service(request: dict[str, Any]) -> None:
    """In the child: become the service, as if `mini-visa ARGUMENTS` had been started for it."""
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if sys.platform == "linux":
        _prctl(PR_SET_NAME, f"mv-{request['start']}"[:15].encode())
    os.environ.update(request["environment"])
    sys.argv = ["mini-visa", *request["arguments"]]
    importlib.import_module("mini_visa.cli").main()


def main() -> None:
    """`python -m mini_visa.supervisor.nursery CHANNEL_FD SUPERVISOR_PID`"""
    descriptor, supervisor = map(int, sys.argv[1:])
    die_with_parent(supervisor)
    # Ctrl-C and a group's SIGTERM are the supervisor's to handle: it stops services in their order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in WARM_MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # keeps the pages that all children share untouched by their collectors
    request = Nursery(socket.socket(fileno=descriptor)).serve()
    if request is not None:
        run_service(request)


def command(descriptor: int) -> list[str]:
    """The command line of a nursery on `descriptor`, its end of the channel."""
    return [sys.executable, "-m", "mini_visa.supervisor.nursery", str(descriptor), str(os.getpid())]


if __name__ == "__main__":
    main()
