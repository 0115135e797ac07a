"""What a process at the other end of a session looks like to who waits for it and ends it.

Owns the exit (how it is told, and what it was) and the ladder that makes it sure. How the exit is
noticed, and how a signal gets there, differs: ``child`` for processes that this one started and
reaps, ``forked`` for those that another one does.

Layer 1, beside wire and transport. Above it in this package are ``child`` and ``forked``.
"""

import abc
import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any, Final

from asyncipc.callbacks import call_back, check_callback

__all__ = ["KILL_WAIT", "UNKNOWN_STATUS", "ProcessHandle"]

UNKNOWN_STATUS: Final = 255
"""The `ProcessHandle.returncode` of a process whose exit status nobody can tell: something else
has taken it (SIGCHLD is ignored, or somebody called ``waitpid(-1)``), or who was to tell it is dead
too. asyncio uses the same number."""

# Seconds that a process gets to vanish after SIGKILL. Milliseconds are normal; one that takes
# longer hangs in the kernel (a dead network file system), and nothing can be done about it.
KILL_WAIT: Final = 2.0

_logger = logging.getLogger(__name__)


class ProcessHandle(abc.ABC):
    """A running or ended process. For the thread of its loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._returncode: int | None = None
        self._is_status_unknown = False
        self._was_asked_to_end = False
        self._exited: asyncio.Future[int] = loop.create_future()
        self._callbacks: list[Callable[[Any], object]] = []

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """The process id, also the number of its process group and session."""

    @abc.abstractmethod
    def terminate(self) -> None:
        """Ask it to end: SIGTERM. Nothing happens after its exit.

        :raises PermissionError: it runs as another user
        """

    @abc.abstractmethod
    def kill(self) -> None:
        """Kill the whole process group: SIGKILL. Nothing happens after the exit.

        :raises PermissionError: all of it runs as another user
        """

    @property
    def returncode(self) -> int | None:
        """None while it runs, then how it ended.

        The exit code, or the negative number of the signal that killed it, or `UNKNOWN_STATUS`.
        """
        return self._returncode

    @property
    def exit_code(self) -> int | None:
        """What it passed to ``exit``; None if it runs, was killed, or nobody knows."""
        if self._returncode is None or self._returncode < 0 or self._is_status_unknown:
            return None
        return self._returncode

    @property
    def signal(self) -> int | None:
        """The number of the signal that killed it, if one did."""
        return -self._returncode if self._returncode is not None and self._returncode < 0 else None

    def on_exit(self, callback: Callable[[Any], object]) -> None:
        """Call ``callback(process)`` once, when the exit was noticed and its status is known.

        Whatever the process has written before it died can be read by then. Callbacks run in the
        order they were added, all before any task in `wait` or `end` goes on. After the exit: in
        the next turn of the loop. What they raise is logged.

        :param callback: a plain function; one that has to wait starts a task
        :raises TypeError: it is no function, or an ``async def``
        """
        check_callback("on_exit", callback)
        if self._returncode is None:
            self._callbacks.append(callback)
        else:
            self._loop.call_soon(self._call_back, callback)

    async def wait(self) -> int:
        """Wait until the process has exited; returns `returncode`. Never kills.

        Does not wait for the ends of its streams, which a grandchild may hold open.
        """
        return await asyncio.shield(self._exited)

    async def end(self, grace: float) -> int | None:
        """Wait for the exit, and make it happen: SIGTERM after ``grace``, SIGKILL after another.

        Call it when the process was told to go, by a goodbye or the end of its input. May be called
        from several tasks and repeatedly: the most impatient one decides, SIGTERM is sent once.
        When cancelled it kills at once, and the exit is normally seen before CancelledError leaves
        (if not, as on a second cancellation, the loop sees it later).

        :param grace: seconds for each of the two steps (``Timeouts.terminate``)
        :return: `returncode`; None if even SIGKILL did not end it within `KILL_WAIT` seconds,
            which is logged
        """
        try:
            for step in (self.terminate_once, self.kill):
                if await self._exits_within(grace):
                    return self._returncode
                with contextlib.suppress(PermissionError):
                    step()
            if not await self._exits_within(KILL_WAIT):
                _logger.error("%r is still there %g s after SIGKILL", self, KILL_WAIT)
        except asyncio.CancelledError:
            with contextlib.suppress(PermissionError):
                self.kill()
            await self._exits_within(KILL_WAIT)
            raise
        return self._returncode

    def terminate_once(self) -> None:
        """`terminate`, unless it was done: to many a second one means to stop cleaning up."""
        if not self._was_asked_to_end:
            self._was_asked_to_end = True
            self.terminate()

    async def _exits_within(self, seconds: float) -> bool:
        if not self._exited.done():
            await asyncio.wait([self._exited], timeout=None if math.isinf(seconds) else seconds)
        return self._exited.done()

    def _tell_exit(self) -> None:
        """The exit is known and `returncode` is set."""
        assert self._returncode is not None
        self._exited.set_result(self._returncode)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call_back(callback)

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        call_back(callback, self, source=repr(self))

    def _how_it_stands(self) -> str:
        if self._returncode is None:
            return "running"
        if self._is_status_unknown:
            return "exited, status unknown"
        return f"exited, returncode {self._returncode}"
