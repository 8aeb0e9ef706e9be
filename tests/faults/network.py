"""A TCP proxy that can be cut and slowed: the network between a service and the broker.

A cut is a silent one, as by a pulled cable: connections stay, nothing gets through, and what was sent arrives
when the cable is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

CHUNK_BYTES: Final = 256 << 10


class Proxy:
    """Listens on `port` and forwards to `target`, both on this machine."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.delay_s = 0.0
        """Each way, for each piece of data."""
        self.open = 0
        """Connections through it now."""
        self._target = target
        self._through = asyncio.Event()
        self._through.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._through.clear()

    def heal(self) -> None:
        self._through.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._through.wait()
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self.open += 1
        both = [
            asyncio.create_task(self._pump(reader, their_writer)),
            asyncio.create_task(self._pump(their_reader, writer)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.open -= 1
            for one in both:
                one.cancel()
            for end in (writer, their_writer):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._through.wait()
                writer.write(data)
                await writer.drain()
