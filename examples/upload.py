"""A large file is uploaded to a child process, with a bar that shows how far it is.

The file is an async iterable among the parameters of a request: it is read as fast as the child
stores it, and never all in memory. The child reports what has arrived.
"""

import hashlib
import sys
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

import anyio

import asyncipc

SIZE = 32 * 1024 * 1024
CHUNK = 256 * 1024


async def child() -> None:
    """Store what is uploaded."""
    peer = asyncipc.Peer()

    @peer.on_request
    async def store(
        path: str, size: int, content: AsyncIterable[bytes], call: asyncipc.Call
    ) -> str:
        digest = hashlib.sha256()
        stored = 0
        async with await anyio.open_file(path, "wb") as file:
            async for chunk in content:
                await file.write(chunk)
                digest.update(chunk)
                stored += len(chunk)
                await call.progress(stored, total=size)
        return digest.hexdigest()

    async with peer.stdio() as parent:
        await parent.wait_closed()


async def read(path: Path) -> AsyncIterator[bytes]:
    """The content of a file, piece by piece."""
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(CHUNK):
            yield chunk


def show(progress: asyncipc.Progress) -> None:
    """A line for every quarter."""
    if progress.done % (SIZE // 4) == 0:
        print(f"{progress.fraction:.0%} stored")


async def main() -> None:
    """Make a file, upload it, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        original, copy = Path(folder, "original"), Path(folder, "copy")
        data = bytes(range(256)) * (SIZE // 256)
        await anyio.Path(original).write_bytes(data)
        async with asyncipc.Peer().spawn([sys.executable, __file__, "child"]) as session:
            digest = await session.request(
                "store",
                {"path": str(copy), "size": SIZE, "content": read(original)},
                timeout=60,
                on_progress=show,
            )
        assert digest == hashlib.sha256(data).hexdigest()
        assert await anyio.Path(copy).read_bytes() == data
        print(f"{SIZE:,} bytes, the same on both sides")


if __name__ == "__main__":
    asyncipc.run(child if "child" in sys.argv else main)
