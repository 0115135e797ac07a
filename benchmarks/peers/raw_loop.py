"""An event loop's floor: two uvloop processes, raw bytes between two protocols, no future."""

import asyncio
import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import cast

from benchmarks.peers.frame_sizes import REPLY_SIZE, REQUEST_SIZE
from benchmarks.worker import obey_async, run


class Answering(asyncio.Protocol):
    """Writes a reply for each request's worth of bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = 0
        self._reply = bytes(REPLY_SIZE)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        while self._received >= REQUEST_SIZE:
            self._received -= REQUEST_SIZE
            self._transport.write(self._reply)


class Asking(asyncio.Protocol):
    """Writes the next request as soon as the reply is there, and notes how long each took."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._request = bytes(REQUEST_SIZE)
        self._received = 0

    async def sequential(self, count: int) -> float:
        self._count = count
        self._times: list[int] = []
        self._finished = asyncio.get_running_loop().create_future()
        self._begin = perf_counter_ns()
        self._transport.write(self._request)
        await self._finished
        return statistics.median(self._times) / 1000

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received < REPLY_SIZE:
            return
        now = perf_counter_ns()
        self._received -= REPLY_SIZE
        self._times.append(now - self._begin)
        if len(self._times) == self._count:
            self._finished.set_result(None)
            return
        self._begin = perf_counter_ns()
        self._transport.write(self._request)


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve the bytes."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Answering, path)
        ready()
        await server.serve_forever()

    run(main())


def client(path: str) -> None:
    """Ask for bytes."""

    async def main() -> None:
        _, asking = await asyncio.get_running_loop().create_unix_connection(Asking, path)
        await obey_async({"sequential": asking.sequential})

    run(main())
