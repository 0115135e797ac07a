"""What produces items, run until it has no more: generators of handlers, and what is uploaded.

An item is asked for only when there is credit for it, so a slow reader stops its producer.

Layer 2, inside the session. Below: the sending end of a stream.
"""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterable, Callable, Iterable
from concurrent.futures import Executor
from contextvars import copy_context
from time import monotonic
from typing import Any, Final

from asyncipc.session.item_sender import MESSAGE_SIZE, SIZED, ItemSender
from asyncipc.session.lending import HARMLESS, holds_lent

__all__ = ["send_all", "send_all_from_thread", "send_all_in_turns"]

# Seconds after which a producer that never waits gives the loop a turn.
TURN: Final = 0.001

# Items that a thread may be ahead of the loop, where they are small.
MAX_FROM_THREAD: Final = 256


async def send_all(items: AsyncIterable[Any], sender: ItemSender) -> None:
    """Send what an async iterable gives; an async generator is closed in any case.

    :raises Exception: it failed; an item cannot be sent; nothing more can be sent
    """
    try:
        await sender.ready()
        began = monotonic()
        async for item in items:
            if sender.gather(item) or monotonic() - began > TURN:
                await sender.pause()
                began = monotonic()
        await sender.drain()
    finally:
        if inspect.isasyncgen(items):
            await items.aclose()


async def send_all_in_turns(items: Iterable[Any], sender: ItemSender) -> None:
    """`send_all` for a plain generator, which is stepped on the loop."""
    try:
        await sender.ready()
        began = monotonic()
        for item in items:
            if sender.gather(item) or monotonic() - began > TURN:
                await sender.pause()
                began = monotonic()
        await sender.drain()
    finally:
        _close(items)


async def send_all_from_thread(
    start: Callable[[], Iterable[Any]], sender: ItemSender, threads: Executor
) -> None:
    """`send_all` for a plain generator that runs in a thread.

    A thread cannot be interrupted: one that is cancelled is left alone until it gives its next
    item, and the generator is closed then.
    """
    loop = asyncio.get_running_loop()
    handover = _Handover(loop)
    running = loop.run_in_executor(threads, copy_context().run, handover.run, start)
    try:
        finished, most = False, 1
        while not finished:
            await sender.ready()
            items, finished = await handover.take(most)
            most = min(2 * most, sender.batch, MAX_FROM_THREAD)
            for item in items:
                if sender.gather(item):
                    await sender.pause()
        await sender.drain()
    finally:
        handover.stop()
        await _outlast(running)


async def _outlast(running: asyncio.Future[None]) -> None:
    """Wait for a thread to end, also while being cancelled; raise what it raised."""
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()
        raise cancelled
    running.result()


class _Handover:
    """Items on their way from a thread to the loop.

    While some are sent the thread makes others, but not more than go into one message. So it is
    ahead of the credit by little, whatever the size of an item. What holds something lent is on its
    way before the thread goes on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._news = asyncio.Event()
        # Guarded by the condition:
        self._items: list[Any] = []
        self._held = 0  # their bytes, roughly
        self._most = 1  # how many may gather
        self._is_lent = False  # the last of them is
        self._finished = False  # nothing more comes
        self._stopped = False  # nobody wants any more

    def run(self, start: Callable[[], Iterable[Any]]) -> None:
        """In the thread: run the generator."""
        items: Iterable[Any] = ()
        try:
            items = start()
            for item in items:
                if not self._put(item):
                    return
        finally:
            try:
                _close(items)
            finally:
                with self._changed:
                    self._finished = True
                self._tell()

    def _put(self, item: Any) -> bool:
        """Hand an item over; False where nobody wants any more."""
        is_lent = type(item) not in HARMLESS and holds_lent(item)
        size = _rough_size(item)
        with self._changed:
            self._items.append(item)
            self._held += size
            self._is_lent = is_lent
            if len(self._items) == 1:
                self._tell()
            self._changed.wait_for(self._may_go_on)
            return not self._stopped

    def _may_go_on(self) -> bool:
        has_room = len(self._items) < self._most and self._held < MESSAGE_SIZE
        return self._stopped or (has_room and not self._is_lent)

    def _tell(self) -> None:
        # RuntimeError: the loop is closed, and with it the session.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    async def take(self, most: int) -> tuple[list[Any], bool]:
        """On the loop, when what was taken before is on its way: wait for items.

        :param most: how many may gather from now on
        :returns: items, and whether they are the last
        """
        with self._changed:
            self._most = most
            if self._is_lent and not self._items:
                self._is_lent = False
                self._changed.notify()
        await self._news.wait()
        self._news.clear()
        with self._changed:
            items, self._items, self._held = self._items, [], 0
            self._changed.notify()
            return items, self._finished

    def stop(self) -> None:
        """On the loop: nobody wants any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()


def _rough_size(item: Any) -> int:
    """The bytes of text and of bytes, and of those that stand right in a container."""
    kind = type(item)
    if kind in SIZED:
        return len(item)
    if kind is dict:
        item = item.values()
    elif kind is not list and kind is not tuple:
        return 0
    return sum(len(each) for each in item if type(each) in SIZED)


def _close(items: Iterable[Any]) -> None:
    """Close a generator; what a decorator made of one may be something else."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
