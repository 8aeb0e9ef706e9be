"""Python programs as processes that begin at once: forked from one that has imported the libraries already.

A worker imports for some two seconds of CPU, and the tests start hundreds. `start` is as good as a fresh
interpreter: who forks has one thread, no event loop, and nothing open; only the seed of hashes is
the same in all of its children. (The supervisor starts its services in the same way, see
mini_visa/supervisor/nursery.py.) Where the kernel is not Linux, it is a fresh interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_visa.supervisor.nursery import WARM_MODULES

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01

_mother: subprocess.Popen[bytes] | None = None


class Warm:
    """A child of this process, with the names that `Popen` has."""

    def __init__(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        """Standard output and error are appended to `log`."""
        self.returncode: int | None = None
        self.pid = _fork(
            {
                "module": module,
                "arguments": list(arguments),
                "environment": dict(environment),
                "log": str(log),
            }
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str], log: Path
) -> Warm | subprocess.Popen[bytes]:
    """`python -m MODULE ARGUMENTS` in the repository, its output appended to `log`."""
    if sys.platform == "linux":
        return Warm(module, arguments, environment=environment, log=log)
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=output, stderr=output)


# -- in the tests' process ---------------------------------------------------------------------------


def _fork(request: dict[str, Any]) -> int:
    """Have the mother fork; its grandchild becomes a child of ours, because we ask for orphans meanwhile."""
    mother = _begin()
    assert mother.stdin is not None and mother.stdout is not None
    _adopt(True)
    try:
        mother.stdin.write(json.dumps(request).encode() + b"\n")
        mother.stdin.flush()
        return int(mother.stdout.readline())
    finally:
        _adopt(False)


def _begin() -> subprocess.Popen[bytes]:
    global _mother
    if _mother is None or _mother.poll() is not None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINI_VISA_")}
        _mother = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(_end, _mother)
    return _mother


def _end(mother: subprocess.Popen[bytes]) -> None:
    assert mother.stdin is not None
    with contextlib.suppress(OSError):
        mother.stdin.close()
    mother.wait()


def _adopt(on: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


# -- the mother --------------------------------------------------------------------------------------


def serve() -> None:
    """Fork what is asked for, a JSON object a line, until there is nobody to ask."""
    for name in WARM_MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in requests:
        told, tells = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child:
                os.write(tells, b"%d\n" % child)
                os._exit(0)
            requests.close()
            for descriptor in (replies, told, tells):
                os.close(descriptor)
            _become(json.loads(line))
        os.close(tells)
        os.waitpid(between, 0)  # from now on the child is an orphan, and adopted
        os.write(replies, os.read(told, 32))
        os.close(told)


def _become(request: dict[str, Any]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        _exit(code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        _exit(1)
    _exit(0)


def _exit(code: int) -> None:
    """As an interpreter ends: what was registered runs, what was printed is written."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
