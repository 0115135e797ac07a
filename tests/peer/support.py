"""What the tests of peers share."""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from asyncipc import Peer
from asyncipc.wire.framing import HEADER_SIZE, MAGIC
from tests.raw_client import frame, hello

__all__ = [
    "GOODBYE",
    "HELLO",
    "REPLY",
    "SAYS_WHY",
    "SESSION",
    "Hold",
    "Outcome",
    "StrangeServer",
    "echoing",
    "holding",
    "run",
    "socket_path",
    "strange_server",
]

HELLO, REPLY, GOODBYE = 0, 3, 12

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


class Hold:
    """A handler that has begun, and waits."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self) -> str:
        self.started.set()
        await self.released.wait()
        return "released"


def holding() -> tuple[Peer, Hold]:
    """A peer that answers ``hold`` when it is told to."""
    peer, hold = Peer(), Hold()
    peer.on_request("hold")(hold)
    return peer, hold


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


# Programs that speak over their standard streams, run to their end

# All that is asked of a program such as ``tests.child``, to be its input.
SESSION = frame(hello()) + frame([2, 2, "echo", ["first"]]) + frame([2, 4, "echo", ["second"]])

# A program that says why it gets no session over its standard streams.
SAYS_WHY = """
import asyncio, sys, asyncipc
async def main():
    try:
        await asyncipc.Peer().stdio()
    except asyncipc.IPCError as error:
        sys.exit(f"{type(error).__name__}: {error}")
asyncipc.run(main())
"""


class Outcome(NamedTuple):
    messages: list[Any]
    stderr: str
    status: int


def run(argv: list[str], **options: Any) -> Outcome:
    """Run a program to its end; what it wrote must be frames and nothing else."""
    if "stdin" not in options:
        options.setdefault("input", b"")
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False, **options)
    messages: list[Any] = []
    rest = done.stdout
    while rest:
        assert rest.startswith(MAGIC), rest
        size = int.from_bytes(rest[4:8])
        message = msgpack.unpackb(rest[HEADER_SIZE : HEADER_SIZE + size])
        messages += message if isinstance(message[0], list) else [message]
        rest = rest[HEADER_SIZE + size :]
    return Outcome(messages, done.stderr.decode(), done.returncode)
