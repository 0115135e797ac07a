"""``pool.stream``: the items that a generator in a worker gives, one after the other.

A stream is a task like any other (it waits for a worker, has a timeout, can be given up, dies with
its worker) whose call also has items. They come with credit, so a slow reader stops the generator.

Layer 4, inside the pool. Above: the pool. Below: task, payload, the session's streams.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from asyncipc.errors import DecodeError
from asyncipc.pool.payload import load, load_failure
from asyncipc.pool.protocol import RESULT
from asyncipc.pool.task import PoolTask
from asyncipc.session.calls import Calls
from asyncipc.session.item_receiver import ItemReceiver

__all__ = ["PoolStream", "StreamTask"]

Item = TypeVar("Item")


class StreamTask(PoolTask[None]):
    """The task behind a stream.

    :ivar receiver: of the items, as soon as a worker has it
    """

    __slots__ = ("_news", "receiver")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.receiver: ItemReceiver | None = None
        self._news: asyncio.Future[None] | None = None

    def begun(self, calls: Calls, answer_id: int) -> None:
        """See `PoolTask.begun`."""
        super().begun(calls, answer_id)
        self.receiver = calls.streams.add_receiver(answer_id, self._broken)
        self._wake()

    async def items(self) -> ItemReceiver:
        """The receiver, as soon as there is one.

        :raises Exception: the task ended before
        """
        while self.receiver is None:
            if self.done():
                await self
            self._news = self._future.get_loop().create_future()
            await self._news
        return self.receiver

    def _broken(self, error: DecodeError) -> None:
        self.cancel()
        if self.receiver is not None:
            self.receiver.finish(error)

    def _is_over(self) -> None:
        super()._is_over()
        future = self._future
        if self.receiver is not None:
            if future.cancelled():
                self.receiver.close()
            else:
                self.receiver.finish(future.exception())
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class PoolStream(AsyncIterator[Item], Generic[Item]):
    """The items of a generator in a worker; made by `asyncipc.Pool.stream`.

    Used as ``async with pool.stream(...) as items``, or iterated as it is. Leaving the ``async
    with``, `aclose`, and dropping the stream (as ``break`` in a plain ``async for`` does, and a
    task that is cancelled while it reads) end it: the generator is closed. To wait for an item no
    longer (a timeout around ``anext``) ends nothing: the item comes to who asks next.

    :param start: gives the task to the pool
    """

    def __init__(self, start: Callable[[], StreamTask]) -> None:
        self._start = start
        self._task: StreamTask | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """The next item, in the order in which they were given.

        Raises what `asyncipc.Pool.run` raises, behind the items before it.
        """
        task = self._begin()
        items = await task.items()
        kind, _, *dumped = await anext(items)
        if kind != RESULT:
            raise load_failure(dumped)
        try:
            item: Item = load(dumped)
        except Exception as error:
            task.cancel()
            raise DecodeError(
                f"an item of {task.work.name} cannot be unpickled: {error!r}"
            ) from error
        return item

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it, if it has not ended. Never waits."""
        if self._task is not None:
            self._task.cancel()

    def __del__(self) -> None:
        task = self._task
        if task is not None and not task.done():
            # From whatever thread drops it. RuntimeError: the loop is closed, and with it the pool.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    def _begin(self) -> StreamTask:
        if self._task is None:
            self._task = self._start()
        return self._task
