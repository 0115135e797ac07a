"""asyncipc over a unix socket: numpy arrays through shared memory, and file descriptors."""

import asyncio
import tempfile
from collections.abc import Callable
from time import perf_counter

import numpy

import asyncipc
from benchmarks.peers.multiprocessing_arrays import repeats
from benchmarks.worker import obey_async

# Calls with a descriptor that are under way at once.
IN_FLIGHT = 64


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until killed."""
    peer = asyncipc.Peer(timeout=None)

    @peer.on_request("store")
    def store(array: numpy.ndarray) -> int:
        return array.nbytes

    @peer.on_request("take")
    def take(fd: asyncipc.Fd) -> None:
        fd.close()

    async def main() -> None:
        async with peer.serve(f"unix:{path}") as server:
            ready()
            await server.wait_closed()

    asyncipc.run(main())


class Measures:
    """The commands of a client."""

    def __init__(self, session: asyncipc.Session) -> None:
        self._request = session.request
        self._arrays: dict[tuple[str, int], numpy.ndarray] = {}

    async def copied(self, size: int) -> float:
        """Seconds for an array, which is copied into the arena, and the acknowledgement."""
        return await self._send(self._array("copied", size), size)

    async def shared(self, size: int) -> float:
        """Seconds for an array that lies in shared memory, and the acknowledgement."""
        return await self._send(self._array("shared", size), size)

    async def descriptors(self, count: int) -> float:
        """Descriptors per second, one in each call."""
        with tempfile.TemporaryFile() as file:

            async def caller() -> None:
                for _ in range(count // IN_FLIGHT):
                    await self._request("take", [file])

            begin = perf_counter()
            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
            return count // IN_FLIGHT * IN_FLIGHT / (perf_counter() - begin)

    async def _send(self, data: object, size: int) -> float:
        times = repeats(size)
        begin = perf_counter()
        for _ in range(times):
            assert await self._request("store", [data]) == size
        return (perf_counter() - begin) / times

    def _array(self, kind: str, size: int) -> numpy.ndarray:
        if (kind, size) not in self._arrays:
            self._arrays.clear()
            make = asyncipc.shared_array if kind == "shared" else numpy.empty
            self._arrays[kind, size] = make(size, numpy.uint8)
            self._arrays[kind, size][:] = 7
        return self._arrays[kind, size]


def client(path: str) -> None:
    """Connect and measure."""

    async def main() -> None:
        async with (
            asyncipc.Peer(timeout=None) as peer,
            peer.connect(f"unix:{path}") as session,
        ):
            measures = Measures(session)
            await obey_async(
                {
                    "copied": measures.copied,
                    "shared": measures.shared,
                    "descriptors": measures.descriptors,
                }
            )

    asyncipc.run(main())
