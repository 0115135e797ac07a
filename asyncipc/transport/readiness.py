"""Questions about descriptors that the loop's own readers and writers cannot answer.

Owns: noticing that the other side hung up without reading from the descriptor, polling a
descriptor without changing the flags that other processes share, and the rest of a short write.
Above: the transports over descriptors. Below: the kernel.

Where there is no epoll (macOS) a hang-up is noticed by the next read or write instead.
"""

import asyncio
import fcntl
import os
import select
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Final

from asyncipc.transport.base import Buffer

__all__ = ["IOV_MAX", "Watch", "hung_up", "unread", "unsent"]

# The most buffers one sendmsg or writev takes; 1024 on Linux and macOS.
IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

_HAS_EPOLL: Final = sys.platform == "linux"


class Watch:
    """Calls ``callback`` in the loop as long as a descriptor is ready, through an epoll of its own.

    The loop polls the epoll, not the descriptor. That allows what ``add_reader`` does not: waiting
    for a hang-up alone, and leaving the descriptor's flags as they are (uvloop's ``add_reader``
    makes it, and so everybody who shares it, non-blocking).

    :param events: an epoll mask; hang-up and error are always in it, so 0 waits for these alone
    """

    __slots__ = ("_epoll", "_loop")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        callback: Callable[[], None],
        events: int = 0,
    ) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        try:
            self._epoll.register(fd, events)
            loop.add_reader(self._epoll.fileno(), callback)
        except BaseException:
            self._epoll.close()
            raise

    @classmethod
    def for_hangup(
        cls, loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], None]
    ) -> "Watch | None":
        """Wait for a hang-up or an error alone; None where that cannot be had."""
        if not _HAS_EPOLL:
            return None
        try:
            return cls(loop, fd, callback)
        except OSError:
            # No descriptor left, or one that cannot be polled: the next read or write tells.
            return None

    def close(self) -> None:
        """Stop calling back. Before the watched descriptor is closed, because numbers are reused."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


def hung_up(fd: int) -> bool:
    """True when the other side is gone altogether, not only done with sending."""
    if not _HAS_EPOLL:
        return False  # macOS reports a hang-up for a half close as well
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def unread(fd: int) -> int:
    """How many bytes the kernel holds for the next reads."""
    try:
        count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    except OSError:
        return 0
    return count


def unsent(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of ``buffers`` once their first ``sent`` bytes have gone, uncopied."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
