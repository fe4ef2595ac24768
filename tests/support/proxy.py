"""A way to a server that can be made bad: it stalls, resets, delays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Self

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: a socket that is closed sends a reset


class Proxy:
    """Passes TCP connections on to a port of this machine, from ``port``. Use as a context manager."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._open = asyncio.Event()
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what):
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _end(self) -> None:
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)  # so that what was aborted is closed

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        both = {writer}
        pumps: list[asyncio.Future[None]] = []
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            both.add(back)
            for each in both:
                each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self._writers |= both
            pumps += [asyncio.ensure_future(self._pump(*pair)) for pair in ((reader, back), (there, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # there is nobody
        finally:
            for pump in pumps:
                pump.cancel()
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()

    def stall(self) -> None:
        """Pass nothing on, but keep the connections."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def resume(self) -> None:
        """Pass things on again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def delay(self, seconds: float) -> None:
        """Take longer from now on."""
        self._delay_s = seconds

    def reset(self) -> None:
        """Break all connections at once."""

        async def now() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._do(now())
