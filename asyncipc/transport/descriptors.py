"""One descriptor of any kind, read or written without blocking and without a trace.

Owns: what a descriptor may be (pipe, FIFO, terminal, socket, file, device), how each is made
non-blocking, and how not to disturb the processes that share it. Above: ``pipes``. Below: the
kernel.

O_NONBLOCK belongs to the open file description, which a shell and all its children may share;
left behind on a terminal it breaks the shell. So a pipe or a terminal is opened again, which gives
a description of our own. Where that is impossible (sockets, named FIFOs, a terminal of another
user) the flags are put back in the end.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from asyncipc.transport.base import Buffer

__all__ = ["FileDescriptor", "PolledDescriptor", "open_descriptor"]

# The unprivileged limit on all pipes of one user is 64 MiB, so each takes a modest part of it.
_PIPE_SIZE: Final = 256 * 1024

# Large enough that handing a chunk from the thread to the loop costs little beside reading it.
_FILE_CHUNK: Final = 256 * 1024

# The device of the controlling end of every pseudo terminal; opening it makes another terminal.
_TERMINAL_CONTROLLER: Final = os.makedev(5, 2)


class PolledDescriptor:
    """A pipe, FIFO, terminal, socket or device that the loop can poll; its reads never block.

    :ivar fd: the descriptor in use; not always the one that was handed over
    """

    __slots__ = ("_flags_found", "fd")

    def __init__(self, fd: int) -> None:
        own = _open_again(fd)
        self._flags_found: int | None = None
        if own is not None:
            os.close(fd)
            self.fd: int = own
        else:
            self._flags_found = fcntl.fcntl(fd, fcntl.F_GETFL)
            os.set_blocking(fd, False)
            self.fd = fd
        _enlarge_pipe(self.fd)

    def read_into(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end of input, BlockingIOError with nothing there."""
        return os.readv(self.fd, (buffer,))

    def send(self, buffer: Buffer) -> int:
        """Write some of the buffer, or raise BlockingIOError."""
        return os.write(self.fd, buffer)

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        """Write some of the buffers, or raise BlockingIOError."""
        return os.writev(self.fd, buffers)

    def close(self) -> None:
        """Close it; a description that could not be our own gets its flags back."""
        if self._flags_found is not None:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, self._flags_found)
        os.close(self.fd)


class FileDescriptor:
    """A regular file or a device that cannot be polled: a thread reads it, writing is direct.

    `poll` and `read_into` together behave like a polled descriptor: the callback comes as long as
    a chunk is there, or the end of input.
    """

    __slots__ = (
        "_callback",
        "_chunk",
        "_closed",
        "_lock",
        "_loop",
        "_next_call",
        "_thread_reads",
        "fd",
    )

    _loop: asyncio.AbstractEventLoop

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self._callback: Callable[[], None] | None = None
        self._next_call: asyncio.Handle | None = None
        self._chunk: memoryview | OSError | None = None
        self._lock = threading.Lock()  # protects the two flags below
        self._thread_reads = False
        self._closed = False

    def poll(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None] | None) -> None:
        """Call it as long as `read_into` has something; None ends that."""
        self._loop = loop
        self._callback = callback
        if self._next_call is not None:
            self._next_call.cancel()
        self._go_on()

    def read_into(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end of input, BlockingIOError with nothing there."""
        chunk = self._chunk
        if chunk is None:
            raise BlockingIOError
        if isinstance(chunk, OSError):
            raise chunk
        count = min(len(chunk), len(buffer))
        buffer[:count] = chunk[:count]
        if count:  # at the end of input it stays empty
            self._chunk = chunk[count:] if count < len(chunk) else None
        return count

    def send(self, buffer: Buffer) -> int:
        """Write all of the buffer; blocks no longer than the file system does."""
        return self.send_many((buffer,))

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        """Write all of the buffers."""
        for buffer in buffers:
            written = 0
            while written < len(buffer):  # a full disk first writes less and fails the next time
                written += os.write(self.fd, memoryview(buffer)[written:])
        return sum(map(len, buffers))

    def close(self) -> None:
        """Close it, or have the thread do it that is reading right now."""
        with self._lock:
            self._closed = True
            close_now = not self._thread_reads
        if close_now:
            os.close(self.fd)

    def _go_on(self) -> None:
        if self._callback is None:
            return
        if self._chunk is not None:
            self._next_call = self._loop.call_soon(self._ready)
        elif not self._thread_reads:
            self._thread_reads = True
            self._loop.run_in_executor(None, self._read).add_done_callback(self._chunk_read)

    def _ready(self) -> None:
        if self._callback is not None:
            self._callback()
            self._go_on()

    def _read(self) -> memoryview | OSError:
        """In a thread: one chunk, or why there is none."""
        result: memoryview | OSError
        try:
            result = memoryview(os.read(self.fd, _FILE_CHUNK))
        except OSError as error:
            result = error
        with self._lock:
            self._thread_reads = False
            close_now = self._closed
        if close_now:
            os.close(self.fd)
        return result

    def _chunk_read(self, future: "asyncio.Future[memoryview | OSError]") -> None:
        self._chunk = future.result()
        self._go_on()


def open_descriptor(fd: int) -> PolledDescriptor | FileDescriptor:
    """Take over ``fd``, whatever it is. Raises OSError, and has closed it then."""
    try:
        return PolledDescriptor(fd) if _is_pollable(fd) else FileDescriptor(fd)
    except OSError:
        with contextlib.suppress(OSError):  # it may not be open: that is the error then
            os.close(fd)
        raise


def _is_pollable(fd: int) -> bool:
    """False for regular files, folders and devices like ``/dev/null``."""
    mode = os.fstat(fd).st_mode
    if sys.platform != "linux":
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    with select.epoll() as epoll:
        try:
            epoll.register(fd, 0)
        except PermissionError:
            return False
    return True


def _open_again(fd: int) -> int | None:
    """The same pipe or terminal, with flags of its own; None where that cannot be had.

    Not for named FIFOs: a reader that opens one after its writers left is never told of the end.
    """
    path = f"/proc/self/fd/{fd}"
    try:
        is_pipe = os.readlink(path).startswith("pipe:[")  # noqa: PTH115 - no path: a name in brackets
        is_terminal = os.isatty(fd) and os.fstat(fd).st_rdev != _TERMINAL_CONTROLLER
        if not (is_pipe or is_terminal):
            return None
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(path, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None


def _enlarge_pipe(fd: int) -> None:
    if sys.platform == "linux":
        try:
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < _PIPE_SIZE:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # no pipe, or the user's pipes are at their limit
