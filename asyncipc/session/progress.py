"""Progress on its way to the caller's ``on_progress``.

Layer 2, inside the session.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final, Protocol

from asyncipc.session.context import Progress

__all__ = ["OnProgress", "ProgressRelay"]

OnProgress = Callable[[Progress], Awaitable[None] | None]

# Bytes of updates kept for an ``async def`` on_progress that is slower than they come, and what one
# costs beside its message: some 4,000 that say little.
KEPT_SIZE: Final = 1024 * 1024
UPDATE_COST: Final = 256


class Counter(Protocol):
    """Whose updates they are: the calls of a session."""

    progress_dropped: int


class ProgressRelay:
    """Brings updates to ``on_progress``, in order and before the answer.

    A plain function is called at once. What an ``async def`` returns is awaited in a task beside
    the caller's, one update after the other; while that is slower than they come, the oldest
    `KEPT_SIZE` bytes of them and the latest are kept. Both see the caller's context variables. What
    ``on_progress`` raises is raised to the caller.

    :param counter: counts the updates that are dropped for later ones; None: nobody asks for that
    """

    __slots__ = (
        "_answer",
        "_context",
        "_counter",
        "_delivery",
        "_kept",
        "_kept_size",
        "_on_progress",
    )

    def __init__(
        self,
        answer: asyncio.Future[Any],
        on_progress: OnProgress,
        counter: Counter | None = None,
    ) -> None:
        self._answer = answer
        self._counter = counter
        self._kept_size = 0
        self._on_progress = on_progress
        self._context = copy_context()
        self._kept: deque[Progress] = deque()
        self._delivery: asyncio.Task[None] | None = None

    def update(self, update: Progress) -> None:
        """An update came."""
        if self._answer.done():
            return
        if self._delivery is not None and not self._delivery.done():
            if self._kept_size > KEPT_SIZE:
                self._kept_size -= _cost(self._kept.pop())
                if self._counter is not None:
                    self._counter.progress_dropped += 1
            self._kept.append(update)
            self._kept_size += _cost(update)
            return
        try:
            waiting = self._context.run(self._on_progress, update)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the caller gets it
            self._fail(error)
            return
        if inspect.isawaitable(waiting):
            self._delivery = self._answer.get_loop().create_task(
                self._deliver(waiting), context=self._context
            )

    def _fail(self, error: BaseException) -> None:
        """Hand an error to the caller, whose function raised it."""
        if isinstance(error, asyncio.CancelledError | StopIteration):
            # A future cannot carry the one, and the other would seem to come from the caller.
            failure = RuntimeError(f"on_progress raised {type(error).__name__}")
            failure.__cause__ = error
            error = failure
        if not self._answer.done():  # on_progress may have cancelled who waits
            self._answer.set_exception(error)

    async def run(self) -> Any:
        """Wait for the answer, and for what has to be told before it.

        An answer that is an error is told at once. `stop` follows on every way out but the good.
        """
        answer = await self._answer
        if self._delivery is not None:
            await self._delivery
        return answer

    async def stop(self) -> None:
        """Tell nothing more."""
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.gather(self._delivery, return_exceptions=True)

    async def _deliver(self, waiting: Awaitable[None] | None) -> None:
        try:
            while True:
                if waiting is not None:
                    await waiting
                if not self._kept:
                    return
                update = self._kept.popleft()
                self._kept_size -= _cost(update)
                waiting = self._on_progress(update)
        except (Exception, asyncio.CancelledError) as error:
            if self._answer.done():
                raise  # `stop` cancelled it, or `run` waits for it
            self._fail(error)


def _cost(update: Progress) -> int:
    return UPDATE_COST + len(update.message or "")
