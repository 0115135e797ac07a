"""A pair of transports in one process, for tests and for embedding.

Owns: a bounded queue of bytes in each direction that behaves like a socket's. Above: the peer
layer's memory pair. Below: the loop's ``call_soon`` alone.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from asyncipc.errors import LocalProtocolError
from asyncipc.transport.base import Buffer, Credentials, Receiver

__all__ = ["MemoryTransport", "memory_transports"]

# What one side may be ahead of the other before its writes are kept; Linux gives a unix socket
# about as much.
_CAPACITY: Final = 208 * 1024


class MemoryTransport:
    """One end of an in-process pair (`asyncipc.transport.base.Transport`); see `memory_transports`.

    Both ends belong to one event loop.
    """

    __slots__ = (
        "__weakref__",
        "_delivering",
        "_ended",
        "_incoming",
        "_incoming_size",
        "_input_finished",
        "_input_told",
        "_keeps_write",
        "_loop",
        "_other",
        "_output_ended",
        "_paused",
        "_receiver",
        "credentials",
        "description",
        "tolerates_noise",
    )

    drops_on_close = False
    can_carry_descriptors = False

    _loop: asyncio.AbstractEventLoop
    _other: "MemoryTransport"
    _receiver: Receiver

    def __init__(self, description: str) -> None:
        self.description: str = description
        self.tolerates_noise: bool = False
        self.credentials: Credentials | None = None
        self._incoming: deque[memoryview] = deque()
        self._incoming_size = 0
        self._input_finished = False  # the other side has finished sending
        self._input_told = False  # ... and the receiver knows
        self._output_ended = False
        self._keeps_write = False  # our last write is not all delivered yet
        self._paused = False
        self._ended = False
        self._delivering = False  # a delivery is scheduled

    def start(self, receiver: Receiver) -> None:
        self._loop = asyncio.get_running_loop()
        if self._ended:
            self._loop.call_soon(receiver.connection_lost, None)
            return
        self._receiver = receiver
        self._schedule()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._schedule()

    def write(self, buffers: Sequence[Buffer]) -> bool:
        other = self._other
        if self._output_ended or other._ended:
            return False
        if self._keeps_write:
            raise LocalProtocolError("write() was called before the last one was finished")
        size = sum(map(len, buffers))
        if size == 0:
            return True
        fits = other._incoming_size + size <= _CAPACITY
        # What "has left" may be changed by its owner, so it is copied; what is kept may not.
        chunks = (b"".join(buffers),) if fits else filter(len, buffers)
        other._incoming.extend(map(memoryview, chunks))
        other._incoming_size += size
        self._keeps_write = not fits
        other._schedule()
        return fits

    def copy_kept(self) -> None:
        if self._keeps_write:
            self._other._copy_incoming()

    def write_eof(self) -> None:
        if self._output_ended:
            return
        if self._keeps_write:
            raise LocalProtocolError("write_eof() was called before the last write was finished")
        self._output_ended = True
        self._other._input_finished = True
        self._other._schedule()
        if self._input_told:
            self._end()

    def close(self) -> None:
        if not self._ended:
            self._end()

    def _end(self) -> None:
        if self._keeps_write:
            self._other._drop_kept()
        self._ended = self._output_ended = True
        self._keeps_write = False
        self._incoming.clear()
        self._incoming_size = 0
        self._other._input_finished = True
        self._other._schedule()
        if hasattr(self, "_receiver"):
            self._loop.call_soon(self._receiver.connection_lost, None)
            del self._receiver

    def _drop_kept(self) -> None:
        """The other side closed before its last write fit: what did not fit never left."""
        while self._incoming_size > _CAPACITY:
            chunk = self._incoming.pop()
            self._incoming_size -= len(chunk)
        self._copy_incoming()

    def _copy_incoming(self) -> None:
        """Its owner is free to change it from now on."""
        self._incoming = deque(memoryview(bytes(chunk)) for chunk in self._incoming)

    def _schedule(self) -> None:
        if not self._delivering and hasattr(self, "_receiver"):
            self._delivering = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """One read, as a socket would do it, or the news that the other side is done."""
        self._delivering = False
        if self._ended:
            return
        hung_up = self._other._ended
        if self._incoming:
            if self._paused and not hung_up:
                return
            self._read()
            self._schedule()
        elif hung_up or (self._input_finished and self._output_ended):
            self._end()
        elif self._input_finished and not self._input_told and not self._paused:
            self._input_told = True
            self._receiver.end_of_input()

    def read_available(self) -> None:
        while self._incoming:
            self._read()

    def _read(self) -> None:
        count = self._fill(self._receiver.get_buffer())
        if not self._incoming and self._other._keeps_write:
            self._loop.call_soon(self._other._written)
        self._receiver.buffer_updated(count)

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while self._incoming and filled < len(buffer):
            chunk = self._incoming[0]
            count = min(len(chunk), len(buffer) - filled)
            buffer[filled : filled + count] = chunk[:count]
            filled += count
            if count == len(chunk):
                self._incoming.popleft()
            else:
                self._incoming[0] = chunk[count:]
        self._incoming_size -= filled
        return filled

    def _written(self) -> None:
        if self._keeps_write:  # not closed in the meantime
            self._keeps_write = False
            self._receiver.writable()


def memory_transports(
    description: str = "memory",
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two transports joined to each other; what one writes the other delivers."""
    first, second = MemoryTransport(description), MemoryTransport(description)
    first._other, second._other = second, first
    return first, second
