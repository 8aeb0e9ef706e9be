"""The supervisor's side of the nursery: fork a service, signal it, learn of its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

from mini_visa.supervisor import nursery

FORK_TIMEOUT_S: Final = 60.0
"""A nursery answers at once when it is warm; on a loaded machine its imports take a while."""
CLOSE_TIMEOUT_S: Final = 5.0


class NurseryLost(RuntimeError):
    """The nursery ended unasked, and its services with it; or it does not answer."""


class Child:
    """A forked service. `code` is set when it has ended (negative: the signal that ended it)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self.ended = asyncio.Event()

    def end(self, code: int) -> None:
        self.code = code
        self.ended.set()


class WarmNursery:
    """Starts a nursery when one is needed, a new one when it was lost."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._opening = asyncio.Lock()
        """When a nursery is lost, every service asks for the next one at the same moment."""
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._children: dict[int, Child] = {}
        self._starting: dict[str, asyncio.Future[Child]] = {}
        self.pids: list[int] = []
        """Every process ever started here, nurseries included: after a stop none of them is left."""

    async def open(self) -> None:
        """Start a nursery unless there is one. Returns at once: it warms up beside the caller's work."""
        async with self._opening:
            if self._process is not None:
                return
            ours, theirs = socket.socketpair()
            with self._log.open("ab") as log:
                # From the main thread: on Linux the nursery lives as long as the thread that starts it.
                self._process = subprocess.Popen(  # noqa: ASYNC220 - it must be this thread
                    nursery.command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            theirs.close()
            self.pids.append(self._process.pid)
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self._reading = asyncio.create_task(self._read(reader))

    async def fork(
        self, name: str, arguments: tuple[str, ...], environment: dict[str, str], log: Path
    ) -> Child:
        """A process of its own that runs `mini-visa ARGUMENTS`, its output in `log`. Raises
        `NurseryLost` when the nursery ended meanwhile, or does not answer: try again."""
        await self.open()
        assert self._writer is not None
        assert name not in self._starting, f"{name} is being started already"
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._starting[name] = future
        try:
            self._send(start=name, arguments=arguments, environment=environment, log=str(log))
            return await asyncio.wait_for(future, FORK_TIMEOUT_S)
        except TimeoutError:
            raise NurseryLost(f"no answer for {FORK_TIMEOUT_S:.0f} s; see {self._log}") from None
        finally:
            self._starting.pop(name, None)

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Nothing happens when it has ended: the nursery, which reaps it, is the one that signals."""
        if child.code is None and self._writer is not None:
            self._send(signal=child.pid, number=int(number))

    async def close(self) -> None:
        """End the nursery. Services that still run are killed with it."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.to_thread(process.wait, CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._lost()

    def _send(self, **request: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                report = json.loads(line)
                if "started" in report:
                    child = Child(report["pid"])
                    self.pids.append(child.pid)
                    self._children[child.pid] = child
                    future = self._starting.get(report["started"])
                    if future is not None and not future.done():
                        future.set_result(child)
                    else:  # asked for again meanwhile, or not wanted any more: a service runs once
                        self.signal(child, signal.SIGKILL)
                elif "ended" in report:
                    self._children.pop(report["ended"]).end(report["code"])
        process = self._process
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)  # its services have ended then, too
            self._process = None
            self._lost()

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for child in self._children.values():
            child.end(-signal.SIGKILL)
        self._children.clear()
        for future in self._starting.values():
            if not future.done():
                future.set_exception(NurseryLost(f"the nursery ended; see {self._log}"))
