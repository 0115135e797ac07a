"""Two programs over a unix socket, the client: two sessions, one of which hears of the other's.

Start socket_server.py first, or within ten seconds after.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import asyncipc

ADDRESS = f"unix:{Path(tempfile.gettempdir(), 'asyncipc-example.sock')}"


async def main() -> None:
    """Put up a notice, and see it arrive elsewhere."""
    address = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    peer = asyncipc.Peer()
    async with (
        peer.connect(address, retry_for=10) as session,
        peer.connect(address) as listener,
    ):
        heard: asyncio.Queue[str] = asyncio.Queue()
        listener.on_notification("posted")(heard.put_nowait)
        notice = f"process {os.getpid()} was here"
        count = await session.request("post", [notice])
        async with asyncio.timeout(5):
            while (text := await heard.get()) != notice:
                print("from somebody else:", text)
        print(f"on the board, {count} in all:")
        board = await session.request("read")
        print(*board, sep="\n")
        assert board[count - 1] == notice


if __name__ == "__main__":
    asyncipc.run(main)
