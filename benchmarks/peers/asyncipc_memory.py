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


def client(path: str) -> None:
    """Connect and measure."""

    async def main() -> None:
        async with (
            asyncipc.Peer(timeout=None) as peer,
            peer.connect(f"unix:{path}") as session,
        ):
            arrays: dict[tuple[str, int], numpy.ndarray] = {}

            def array(kind: str, size: int) -> numpy.ndarray:
                if (kind, size) not in arrays:
                    arrays.clear()
                    make = asyncipc.shared_array if kind == "shared" else numpy.empty
                    arrays[kind, size] = make(size, numpy.uint8)
                    arrays[kind, size][:] = 7
                return arrays[kind, size]

            async def send(data: object, size: int) -> float:
                times = repeats(size)
                begin = perf_counter()
                for _ in range(times):
                    assert await session.request("store", [data]) == size
                return (perf_counter() - begin) / times

            async def copied(size: int) -> float:
                return await send(array("copied", size), size)

            async def shared(size: int) -> float:
                return await send(array("shared", size), size)

            async def descriptors(count: int) -> float:
                """Descriptors per second, one in each call."""
                with tempfile.TemporaryFile() as file:

                    async def caller() -> None:
                        for _ in range(count // IN_FLIGHT):
                            await session.request("take", [file])

                    begin = perf_counter()
                    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
                    return count // IN_FLIGHT * IN_FLIGHT / (perf_counter() - begin)

            await obey_async({"copied": copied, "shared": shared, "descriptors": descriptors})

    asyncipc.run(main())
