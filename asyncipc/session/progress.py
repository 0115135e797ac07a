"""Progress on its way to the caller's ``on_progress``.

Layer 2, inside the session.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from asyncipc.session.context import Progress

__all__ = ["OnProgress", "ProgressRelay"]

OnProgress = Callable[[Progress], Awaitable[None] | None]

# Updates kept for an ``async def`` on_progress that is slower than they come.
MAX_KEPT: Final = 256


class ProgressRelay:
    """Brings updates to ``on_progress``, in order and before the answer.

    A plain function is called at once. An ``async def`` is awaited in the caller's own task; while
    it is slower than the updates come, the oldest `MAX_KEPT` and the latest are kept. What
    ``on_progress`` raises is raised to the caller.
    """

    __slots__ = ("_answer", "_is_async", "_kept", "_news", "_on_progress")

    def __init__(self, answer: asyncio.Future[Any], on_progress: OnProgress) -> None:
        self._answer = answer
        self._on_progress = on_progress
        self._kept: deque[Progress] = deque()
        self._news = asyncio.Event()
        self._is_async = inspect.iscoroutinefunction(on_progress) or inspect.iscoroutinefunction(
            type(on_progress).__call__
        )

    def update(self, update: Progress) -> None:
        """An update came."""
        if self._answer.done():
            return
        if self._is_async:
            if len(self._kept) > MAX_KEPT:
                self._kept.pop()
            self._kept.append(update)
            self._news.set()
            return
        try:
            self._on_progress(update)
        except Exception as error:  # noqa: BLE001 - handed to the caller, whose function it is
            self._answer.set_exception(error)

    async def run(self) -> Any:
        """Wait for the answer."""
        if not self._is_async:
            return await self._answer
        on_progress = cast(Callable[[Progress], Awaitable[None]], self._on_progress)
        self._answer.add_done_callback(lambda _: self._news.set())
        while not (self._answer.done() and not self._kept):
            while self._kept:
                await on_progress(self._kept.popleft())
            if not self._answer.done():
                self._news.clear()
                await self._news.wait()
        return self._answer.result()
