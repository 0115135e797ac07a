"""What the tests of sessions share: ways to join two peers, handlers that wait, a peer by hand."""

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgpack

from asyncipc import Call, Peer, Session, memory_pair
from asyncipc.wire.framing import HEADER_SIZE, MAGIC
from tests.raw_client import frame, hello

KIB = 1024
MIB = 1024 * KIB

# What a peer by hand announces.
LIMITS = {
    "max_frame": MIB,
    "max_message": 1024 * MIB,
    "max_requests": 1024,
    "notification_credit": MIB,
    "stream_credit": 256 * KIB,
}

TRANSPORTS = ("memory", "socketpair", "unix", "pipes")


# -- joining two peers -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def joined(
    first: Peer, second: Peer, over: str = "socketpair"
) -> AsyncIterator[tuple[Session, Session]]:
    """Two sessions, joined over something real; both are closed at the end."""
    if over == "memory":
        async with memory_pair(first, second) as pair:
            yield pair
        return
    async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
        if over == "unix":
            opening = await _over_unix(first, second, stack)
        elif over == "streams":
            ours, theirs = socket.socketpair()
            opening = (
                first.wrap(*await asyncio.open_unix_connection(sock=ours)),
                second.wrap(*await asyncio.open_unix_connection(sock=theirs)),
            )
        elif over == "pipes":
            (our_input, their_output), (their_input, our_output) = os.pipe(), os.pipe()
            opening = first.wrap(our_input, our_output), second.wrap(their_input, their_output)
        else:
            ours, theirs = socket.socketpair()
            opening = first.wrap(ours), second.wrap(theirs)
        tasks = [group.create_task(_opened(one)) for one in opening]
        session, other = [await task for task in tasks]
        async with session, other:
            yield session, other


async def _over_unix(first: Peer, second: Peer, stack: contextlib.AsyncExitStack) -> Any:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    address = f"unix:{Path(folder, 'test.sock')}"
    accepted: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
    await stack.enter_async_context(second.serve(address, on_session=accepted.set_result))
    return first.connect(address), accepted


async def _opened(opening: Any) -> Session:
    session = await opening
    assert isinstance(session, Session)
    return session


@contextlib.asynccontextmanager
async def talking(
    other: Peer, over: str = "socketpair", *, first: Peer | None = None
) -> AsyncIterator[Session]:
    """A session with ``other``, for tests in which one side does the asking."""
    async with joined(first or Peer(), other, over) as (session, _):
        yield session


# -- waiting for what happens ------------------------------------------------------------------


class Journal(list[Any]):
    """A list to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def append(self, entry: Any) -> None:
        super().append(entry)
        self._news.set()

    async def reaches(self, length: int) -> Self:
        while len(self) < length:
            self._news.clear()
            await self._news.wait()
        return self


class Hold:
    """An ``async def`` handler that waits to be released, and tells what becomes of it."""

    def __init__(self, result: Any = "done") -> None:
        self.result = result
        self.calls = Journal()
        self.ended = Journal()
        self.cancelled = Journal()
        self.released = asyncio.Event()
        self.running = 0
        self.peak = 0

    async def __call__(self, *_: Any, call: Call) -> Any:
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.calls.append(call)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call)
            raise
        finally:
            self.running -= 1
            self.ended.append(call)
        return self.result

    def release(self) -> None:
        self.released.set()


def holding(method: str = "hold", peer: Peer | None = None) -> tuple[Peer, Hold]:
    """A peer with a handler that waits to be released."""
    peer, hold = peer or Peer(), Hold()
    peer.on_request(method)(hold)
    return peer, hold


async def settled(*sessions: Session) -> None:
    """What the sessions sent before this has been received and looked at by the other sides."""
    for session in sessions:
        await session.ping(timeout=None)


async def until(condition: Callable[[], object], *sessions: Session) -> None:
    """Wait for what must come about while messages go back and forth, or turns of the loop."""
    while not condition():
        await (settled(*sessions) if sessions else asyncio.sleep(0))


async def failure(awaitable: Any) -> BaseException:
    """What the awaitable raised."""
    try:
        result = await awaitable
    except BaseException as error:  # noqa: BLE001 - whatever it is, a test looks at it
        return error
    raise AssertionError(f"nothing was raised, but {result!r:.60} returned")


@contextlib.contextmanager
def loop_errors() -> Iterator[list[dict[str, Any]]]:
    """What reaches the loop's exception handler, which nothing should."""
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        yield errors
    finally:
        loop.set_exception_handler(None)


# -- a peer by hand ----------------------------------------------------------------------------


class RawPeer:
    """The other side of a session, spoken by hand over a socketpair.

    It does only what a test tells it to, right or wrong; it does not even read by itself.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._messages: list[list[Any]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def facing(cls, peer: Peer, **limits: int) -> AsyncIterator[tuple[Self, Session]]:
        """Open a session of ``peer`` with a raw peer that announces these limits."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        raw = cls(reader, writer)
        try:
            announced = {**LIMITS, **limits}
            features = ["descriptors", "shared memory"] if "max_descriptors" in limits else []
            raw.send(hello(limits=announced, features=features))
            async with peer.wrap(theirs) as session:
                assert (await raw.receive())[0] == 0
                yield raw, session
                raw.close()
        finally:
            raw.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, *messages: list[Any], attached: bytes = b"") -> None:
        """Send each message in a frame of its own, all in one piece."""
        self.writer.write(b"".join(frame(each, attached) for each in messages))

    async def receive(self) -> list[Any]:
        """The next message; attached bytes stand at its end."""
        if not self._messages:
            header = await self.reader.readexactly(HEADER_SIZE)
            magic, size, attached = struct.unpack(">4sII", header)
            assert magic == MAGIC
            message = msgpack.unpackb(await self.reader.readexactly(size), strict_map_key=False)
            if attached:
                message.append(await self.reader.readexactly(attached))
            self._messages = message if isinstance(message[0], list) else [message]
        return self._messages.pop(0)

    async def receive_kind(self, kind: int) -> list[Any]:
        """The next message of a kind; others are passed over."""
        while True:
            message = await self.receive()
            if message[0] == kind:
                return message

    async def settle(self, session: Session) -> None:
        """What was sent before this has been looked at by the session."""
        ping = asyncio.create_task(session.ping())
        _, token = await self.receive_kind(65)
        self.send([66, token])
        await ping

    def pause(self) -> None:
        """Take nothing from the kernel any more."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """The reverse of `pause`."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def close(self) -> None:
        self.writer.close()
