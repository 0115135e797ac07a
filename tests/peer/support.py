"""What the tests of peers share."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from asyncipc import Peer

__all__ = ["StrangeServer", "echoing", "socket_path", "strange_server"]

StrangeServer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def socket_path() -> Iterator[Path]:
    """Where a socket can be made: pytest's own folders may have names too long for one."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "app.sock")


def echoing(**options: Any) -> Peer:
    """A peer that answers ``echo``."""
    peer = Peer(**options)

    @peer.on_request
    def echo(value: Any) -> Any:
        return value

    return peer


@contextlib.asynccontextmanager
async def strange_server(behave: StrangeServer, path: Path) -> AsyncIterator[str]:
    """A server that is no peer; hangs up when ``behave`` is done."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        # The library may hang up first.
        with contextlib.suppress(OSError):
            await behave(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix:{path}"
    finally:
        server.close()
        await asyncio.gather(*tasks)
        path.unlink(missing_ok=True)
