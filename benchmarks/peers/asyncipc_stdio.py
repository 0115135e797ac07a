"""asyncipc over pipes: a child on its stdin and stdout. Run as a program it is the child."""

import sys

import asyncipc
from benchmarks.peers.asyncipc_unix import commands, make_peer
from benchmarks.worker import obey_async


def client(path: str) -> None:
    """Spawn the child and measure; the path is not used."""

    async def main() -> None:
        child = [sys.executable, "-m", "benchmarks.peers.asyncipc_stdio"]
        async with asyncipc.Peer() as peer, peer.spawn(child) as session:
            await obey_async(commands(session))

    asyncipc.run(main())


async def _child() -> None:
    async with make_peer() as peer, peer.stdio() as session:
        await session.wait_closed()


if __name__ == "__main__":
    asyncipc.run(_child())
