"""Streams of other libraries: pairs of asyncio streams, and any byte stream of anyio.

Owns: the two tasks that carry bytes between such a stream and a receiver. Above: the peer layer.
Below: the library that made the stream.

Such streams are slower than the transports on descriptors and tell less: where no descriptor can
be seen through them, a hang-up is noticed by the end of input and by a failing write alone.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

import anyio
import anyio.abc

from asyncipc.errors import LocalProtocolError
from asyncipc.transport.base import Buffer, Credentials, Receiver
from asyncipc.transport.readiness import hung_up, unwatch_hangup, watch_hangup
from asyncipc.transport.sockets import is_tcp, peer_credentials

__all__ = ["StreamTransport"]

# What one read of a stream asks for; anyio's own default.
_READ_SIZE: Final = 64 * 1024

# Seconds that a stream gets, after a write has failed, to deliver what came before: it cannot be
# asked how much there is.
_LAST_READS: Final = 1.0

# Seconds for each step of closing: a TLS stream says goodbye to a peer that may not answer, and a
# library may swallow a cancellation.
_CLOSE_TIMEOUT: Final = 1.0


class _Streams(Protocol):
    """What the two kinds of streams look like from here."""

    def sock(self) -> socket.socket | None:
        """The socket behind them, if there is one."""
        ...

    def fileno(self) -> int | None:
        """The descriptor written to, if it can be seen."""
        ...

    def is_closing(self) -> bool:
        """Whether the other direction is known to be over, at the end of input."""
        ...

    async def receive(self) -> bytes:
        """Empty at the end."""
        ...

    async def send(self, data: bytes) -> None:
        """Returns when all has left."""
        ...

    async def send_eof(self) -> bool:
        """False where that cannot be told without closing both directions."""
        ...

    async def aclose(self, *, flushed: bool) -> None:
        """Close both directions at once, dropping what was not sent."""
        ...


class StreamTransport:
    """Carries bytes between streams of another library and a receiver, by two tasks.

    Made by `from_asyncio` and `from_anyio` (`asyncipc.transport.base.Transport`). The streams are
    its own from then on. An asyncio reader that does not belong to the writer's transport (the
    output of a subprocess) has no public way to be closed; it ends with the subprocess.
    """

    def __init__(
        self, streams: _Streams, *, description: str, tolerates_noise: bool | None
    ) -> None:
        sock = streams.sock()
        self.description = description
        if tolerates_noise is None:
            tolerates_noise = _may_be_stdio(sock)
        self.tolerates_noise: bool = tolerates_noise
        self.can_carry_descriptors = False
        self.drops_on_close: bool = sock is not None and is_tcp(sock)
        self.credentials: Credentials | None = None if sock is None else peer_credentials(sock)
        self._streams = streams
        self._tasks: list[asyncio.Task[None]] = []
        self._closer: asyncio.Task[None] | None = None
        self._kept: Sequence[Buffer] = ()
        self._work = asyncio.Event()  # something to write, or write_eof
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._input_ended = False
        self._output_ended = False
        self._write_error: Exception | None = None
        self._watched_fd: int | None = None
        self._receiver: Receiver | None = None

    @classmethod
    def from_asyncio(
        cls,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        description: str = "asyncio streams",
        tolerates_noise: bool | None = None,
    ) -> "StreamTransport":
        """Wrap what ``asyncio.open_connection`` and its kin return.

        :param tolerates_noise: by default False where a socket with a name is behind the streams
        """
        streams = _AsyncioStreams(reader, writer)
        return cls(streams, description=description, tolerates_noise=tolerates_noise)

    @classmethod
    def from_anyio(
        cls,
        receive: anyio.abc.ByteReceiveStream,
        send: anyio.abc.ByteSendStream,
        *,
        description: str = "anyio streams",
        tolerates_noise: bool | None = None,
    ) -> "StreamTransport":
        """Wrap a pair of anyio streams, or one ``ByteStream`` given twice.

        :param tolerates_noise: by default False where a socket with a name is behind the streams
        """
        streams = _AnyioStreams(receive, send)
        return cls(streams, description=description, tolerates_noise=tolerates_noise)

    def start(self, receiver: Receiver) -> None:
        loop = asyncio.get_running_loop()
        if self._closer is not None:
            loop.call_soon(receiver.connection_lost, None)
            return
        self._receiver = receiver
        self._tasks = [
            asyncio.Task(self._read(receiver), loop=loop),
            asyncio.Task(self._write(receiver), loop=loop),
        ]

    def close(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._closer is None:
            self._output_ended = True
            self._unwatch_hangup()
            self._closer = asyncio.Task(self._close(error), loop=asyncio.get_running_loop())

    async def _close(self, error: Exception | None) -> None:
        try:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT)
            # Why closing failed tells nothing that the end itself did not tell.
            with contextlib.suppress(Exception):
                await self._streams.aclose(flushed=not self._kept)
        finally:
            self._kept = ()
            self._tasks = []
            if self._receiver is not None:
                self._receiver.connection_lost(error)
                self._receiver = None

    # Reading

    def read_available(self) -> None:
        """Streams cannot be asked what they hold: it comes through the loop."""

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    async def _read(self, receiver: Receiver) -> None:
        try:
            while True:
                await self._may_read.wait()
                data = await self._streams.receive()
                if not data:
                    break
                self._deliver(receiver, memoryview(data))
                if self._closer is not None:
                    return
            self._end_of_input(receiver)
        except Exception as error:  # noqa: BLE001 - whatever the library raises, it ends this
            self._end(self._write_error or error)

    def _deliver(self, receiver: Receiver, data: memoryview) -> None:
        while data and self._closer is None:
            buffer = receiver.get_buffer()
            count = min(len(data), len(buffer))
            buffer[:count] = data[:count]
            receiver.buffer_updated(count)
            data = data[count:]

    def _end_of_input(self, receiver: Receiver) -> None:
        fd = self._streams.fileno()
        gone = self._streams.is_closing() or (fd is not None and hung_up(fd))
        if gone or self._output_ended:
            self._end(self._write_error)
            return
        self._input_ended = True
        if fd is not None:
            self._watch_hangup(fd)
        receiver.end_of_input()

    def _watch_hangup(self, fd: int) -> None:
        """Nothing is read any more, so the end of the other direction would not be noticed."""
        with contextlib.suppress(OSError):  # no descriptor left: the next write tells
            # A copy: the library closes its own when it wants, and the number goes to others.
            self._watched_fd = os.dup(fd)
            watch_hangup(asyncio.get_running_loop(), self._watched_fd, self.close)

    def _unwatch_hangup(self) -> None:
        if self._watched_fd is not None:
            unwatch_hangup(asyncio.get_running_loop(), self._watched_fd)
            os.close(self._watched_fd)
            self._watched_fd = None

    # Writing

    def write(self, buffers: Sequence[Buffer]) -> bool:
        if self._output_ended:
            return False
        if self._kept:
            raise LocalProtocolError("write() was called before the last one was finished")
        self._kept = tuple(filter(len, buffers))
        self._work.set()
        return not self._kept

    def copy_kept(self) -> None:
        self._kept = tuple(map(bytes, self._kept))

    def write_eof(self) -> None:
        if self._output_ended:
            return
        if self._kept:
            raise LocalProtocolError("write_eof() was called before the last write was finished")
        self._output_ended = True
        self._work.set()

    async def _write(self, receiver: Receiver) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                if self._kept:
                    await self._streams.send(b"".join(self._kept))
                    self._kept = ()
                    receiver.writable()
                elif self._output_ended:
                    break
            if not await self._streams.send_eof() or self._input_ended:
                self._end(None)
        except Exception as error:  # noqa: BLE001 - likewise
            await self._write_failed(error)

    async def _write_failed(self, error: Exception) -> None:
        # What the other side sent before it went may still be there to read, a reply above all.
        self._output_ended = True
        self._write_error = error
        self._may_read.set()
        await asyncio.wait(self._tasks[:1], timeout=_LAST_READS)
        self._end(error)


class _AsyncioStreams:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Have drain() wait until all has left, as the contract wants it. (With 0, TLS transports
        # pause for nothing; with 1, others let one byte pass.)
        secure = writer.get_extra_info("sslcontext") is not None
        writer.transport.set_write_buffer_limits(high=1 if secure else 0, low=0)

    def sock(self) -> socket.socket | None:
        return cast("socket.socket | None", self._writer.get_extra_info("socket"))

    def fileno(self) -> int | None:
        return _fileno(self.sock() or self._writer.get_extra_info("pipe"))

    def is_closing(self) -> bool:
        return self._writer.is_closing()

    async def receive(self) -> bytes:
        return await self._reader.read(_READ_SIZE)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_eof(self) -> bool:
        if not self._writer.can_write_eof():
            return False
        self._writer.write_eof()
        return True

    async def aclose(self, *, flushed: bool) -> None:
        # TLS may hold bytes that left the stream but not the process, and flushes on close().
        if flushed:
            self._writer.close()
        else:
            self._writer.transport.abort()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()


class _AnyioStreams:
    def __init__(
        self, receive: anyio.abc.ByteReceiveStream, send: anyio.abc.ByteSendStream
    ) -> None:
        self._receive = receive
        self._send = send

    def sock(self) -> socket.socket | None:
        return self._send.extra(anyio.abc.SocketAttribute.raw_socket, None)

    def fileno(self) -> int | None:
        return _fileno(self.sock())

    def is_closing(self) -> bool:
        return False

    async def receive(self) -> bytes:
        try:
            while True:
                data = await self._receive.receive(_READ_SIZE)
                if data:  # an empty one is not the end, and not quite allowed
                    return data
        except anyio.EndOfStream:
            return b""
        except anyio.BrokenResourceError as error:
            raise _cause(error) from None

    async def send(self, data: bytes) -> None:
        try:
            await self._send.send(data)
        except anyio.BrokenResourceError as error:
            raise _cause(error) from None

    async def send_eof(self) -> bool:
        if not isinstance(self._send, anyio.abc.ByteStream):
            await self._send.aclose()
            return True
        try:
            await self._send.send_eof()
        except NotImplementedError:
            return False
        return True

    async def aclose(self, *, flushed: bool) -> None:  # noqa: ARG002 - these keep nothing back
        # Not anyio.aclose_forcefully: it leaves the second half of a stapled stream open.
        halves: list[anyio.abc.AsyncResource] = [self._send, self._receive]
        for half in halves[1:] if halves[0] is halves[1] else halves:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await half.aclose()


def _may_be_stdio(sock: socket.socket | None) -> bool:
    """True for pipes, and for socketpairs: uvloop gives its subprocesses such instead of pipes."""
    return sock is None or not (sock.getsockname() or sock.getpeername())


def _fileno(behind: Any) -> int | None:
    try:
        fd = int(behind.fileno())
    except (AttributeError, OSError, ValueError):
        return None
    return fd if fd >= 0 else None


def _cause(error: anyio.BrokenResourceError) -> Exception:
    """The system's error, which says more."""
    return error.__cause__ if isinstance(error.__cause__, OSError) else error
