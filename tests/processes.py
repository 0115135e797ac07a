"""Waiting for the end of processes that need not be children of the test."""

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

__all__ = ["Watched", "parent_of", "watched"]


class Watched:
    """A process; its end is noticed also where somebody else has to reap it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @property
    def is_running(self) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    async def ended(self, seconds: float = 5) -> Self:
        """Wait until it has ended.

        :raises TimeoutError: it still runs after so many seconds
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)
        return self

    def close(self) -> None:
        """Whatever the test has come to, the process goes."""
        if self.is_running:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Watched]:
    """Watch a process that runs; it is killed at the end if it still does."""
    process = Watched(pid)
    try:
        yield process
    finally:
        process.close()


def parent_of(pid: int) -> int:
    """The process id of a process's parent, as it is now."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
