"""asyncipc over a unix socket: requests and notifications, which every version of it has."""

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import asyncipc
from benchmarks.worker import MESSAGE, obey_async, session_commands


def make_peer() -> asyncipc.Peer:
    """A peer that echoes and counts."""
    peer = asyncipc.Peer()
    counted = 0

    @peer.on_request("echo")
    def echo(n: int, text: str) -> dict[str, Any]:
        return {"n": n, "text": text}

    @peer.on_request("echo_async")
    async def echo_async(n: int, text: str) -> dict[str, Any]:
        return {"n": n, "text": text}

    @peer.on_notification("count")
    def count(n: int, text: str) -> None:
        nonlocal counted
        counted += 1

    @peer.on_request("get_counted")
    def get_counted() -> int:
        return counted

    return peer


def commands(
    session: asyncipc.Session, method: str = "echo"
) -> Mapping[str, Callable[[int], Awaitable[Any]]]:
    """What a client with a session can be asked to measure."""

    async def notify(count: int) -> float:
        before = await session.request("get_counted")
        begin = perf_counter()
        for _ in range(count):
            await session.notify("count", MESSAGE)
        assert await session.request("get_counted") == before + count
        return count / (perf_counter() - begin)

    return {**session_commands(session.request, method), "notify": notify}


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until killed."""

    async def main() -> None:
        async with make_peer() as peer, peer.serve(f"unix:{path}") as server:
            ready()
            await server.wait_closed()

    asyncipc.run(main())


def client(path: str) -> None:
    """Connect and measure."""

    async def main() -> None:
        async with asyncipc.Peer() as peer, peer.connect(f"unix:{path}") as session:
            await obey_async(commands(session))

    asyncipc.run(main())
