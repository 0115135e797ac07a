"""asyncipc over a unix socket, through its public names alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import asyncipc
from benchmarks.peers import asyncipc_core
from benchmarks.worker import bulk_data, obey_async


def make_peer() -> asyncipc.Peer:
    """A peer with every handler the benchmarks ask for."""
    peer = asyncipc_core.make_peer()

    @peer.on_request("count_up")
    async def count_up(count: int) -> AsyncIterator[dict[str, Any]]:
        for n in range(count):
            yield {"n": n, "text": "hello"}

    @peer.on_request("store")
    def store(data: bytes) -> int:
        return len(data)

    return peer


def commands(
    session: asyncipc.Session, method: str = "echo"
) -> Mapping[str, Callable[[int], Awaitable[Any]]]:
    """What a client with a session can be asked to measure."""

    async def stream(count: int) -> float:
        begin = perf_counter()
        came = 0
        async for _ in session.stream("count_up", [count]):
            came += 1
        assert came == count
        return count / (perf_counter() - begin)

    async def bulk(size: int) -> float:
        data = bulk_data(size)
        begin = perf_counter()
        assert await session.request("store", data) == size
        return perf_counter() - begin

    async def ping_during_bulk(size: int) -> float:
        """Milliseconds of the slowest of the pings sent one behind the other."""
        data = bulk_data(size)  # kept: to give this much back to the kernel takes milliseconds
        transfer = asyncio.create_task(session.request("store", data))
        await asyncio.sleep(0)
        slowest = 0.0
        while not transfer.done():
            begin = perf_counter()
            await session.ping()
            slowest = max(slowest, perf_counter() - begin)
        assert await transfer == size
        assert slowest > 0, "the transfer was over before a ping was sent"
        return slowest * 1000

    return {
        **asyncipc_core.commands(session, method),
        "stream": stream,
        "bulk": bulk,
        "ping_during_bulk": ping_during_bulk,
    }


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until killed."""

    async def main() -> None:
        async with make_peer() as peer, peer.serve(f"unix:{path}") as server:
            ready()
            await server.wait_closed()

    asyncipc.run(main())


def client(path: str, method: str = "echo") -> None:
    """Connect and measure."""

    async def main() -> None:
        async with asyncipc.Peer() as peer, peer.connect(f"unix:{path}") as session:
            await obey_async(commands(session, method))

    asyncipc.run(main())
