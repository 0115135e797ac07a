"""Questions about descriptors that the loop's own readers and writers cannot answer.

Owns: noticing that the other side hung up without reading from the descriptor, and the rest of a
short write. Above: the transports over descriptors. Below: the kernel.

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
from weakref import WeakKeyDictionary

from asyncipc.transport.base import Buffer

__all__ = ["IOV_MAX", "hung_up", "unread", "unsent", "unwatch_hangup", "watch_hangup"]

# The most buffers one sendmsg or writev takes; 1024 on Linux and macOS.
IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

_HAS_EPOLL: Final = sys.platform == "linux"

# Told in one go before others get their turn; the loop comes back for the rest.
_HANGUPS_PER_EVENT: Final = 64


class _HangupWatch:
    """One epoll of a loop, in which descriptors wait for a hang-up or an error and nothing else.

    The loop polls the epoll. That allows what ``add_reader`` does not: to hear of a hang-up while
    nothing is read.
    """

    __slots__ = ("callbacks", "epoll")

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[], object]] = {}

    def tell(self) -> None:
        for _ in range(_HANGUPS_PER_EVENT):
            # One at a time: a callback may close other descriptors and open new ones.
            ready = self.epoll.poll(0, 1)
            if not ready:
                return
            self.callbacks[ready[0][0]]()
            if self.epoll.closed:  # that was the last of them
                return


_watches: "WeakKeyDictionary[asyncio.AbstractEventLoop, _HangupWatch]" = WeakKeyDictionary()


def watch_hangup(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], object]) -> bool:
    """Have the callback called, until `unwatch_hangup`, once the other side hangs up or resets.

    :param fd: a descriptor of the caller's own, to be unwatched before it is closed
    :returns: False where that cannot be had: without epoll, with no descriptor left, and for
        files that cannot be polled. The next read or write tells then.
    """
    if not _HAS_EPOLL:
        return False
    watch = _watches.get(loop)
    try:
        if watch is None:
            _drop_closed_loops()
            watch = _HangupWatch()
            loop.add_reader(watch.epoll.fileno(), watch.tell)
            _watches[loop] = watch
        watch.callbacks[fd] = callback
        watch.epoll.register(fd, 0)  # hang-up and error are always included
    except OSError:
        if watch is not None:
            _forget(loop, watch, fd)
        return False
    return True


def unwatch_hangup(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """End what `watch_hangup` began, if it did."""
    watch = _watches.get(loop)
    if watch is not None and fd in watch.callbacks:
        watch.epoll.unregister(fd)
        _forget(loop, watch, fd)


def _forget(loop: asyncio.AbstractEventLoop, watch: _HangupWatch, fd: int) -> None:
    watch.callbacks.pop(fd, None)
    if not watch.callbacks:
        del _watches[loop]
        loop.remove_reader(watch.epoll.fileno())
        watch.epoll.close()


def _drop_closed_loops() -> None:
    """What was open when its loop was closed keeps the loop, and so itself, alive in here."""
    for loop in tuple(_watches):
        if loop.is_closed() and (watch := _watches.pop(loop, None)) is not None:
            watch.epoll.close()


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
