"""``pool.map``: one function over many items, in chunks, never far ahead of who reads the results.

Layer 4, inside the pool. Above: the pool. Below: task, policy.
"""

import asyncio
import operator
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from itertools import islice
from typing import Any, Final

from asyncipc.pool.payload import Failure, load_failure
from asyncipc.pool.policy import ChunkSizer
from asyncipc.pool.task import PoolTask

__all__ = ["map_items"]

# Chunks that each worker may have been given beyond the one that is being read.
CHUNKS_AHEAD: Final = 2

# What a chunk comes back as: the results up to the first failure, and that failure or None.
Outcome = tuple[list[Any], Failure | None]

Submit = Callable[[tuple[Any, ...]], PoolTask[Outcome]]


async def map_items(
    submit: Submit,
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    workers: int,
    ordered: bool,
    chunk_size: int | None,
) -> AsyncIterator[Any]:
    """The results, as they come or in the order of the items; see `asyncipc.Pool.map`.

    :param submit: gives a chunk to the pool
    :param workers: how many may be at work
    :param chunk_size: items in a chunk; None: as many as is good
    """
    chunks = _Chunks(submit, items, workers, ordered=ordered, chunk_size=chunk_size)
    try:
        while (task := await chunks.next_task()) is not None:
            results, failure = await task
            chunks.took(task)
            for result in results:
                yield result
            if failure is not None:
                raise load_failure(failure)
    finally:
        chunks.cancel_all()


class _Chunks:
    """The chunks that are under way, and how large the next should be."""

    def __init__(
        self,
        submit: Submit,
        items: Iterable[Any] | AsyncIterable[Any],
        workers: int,
        *,
        ordered: bool,
        chunk_size: int | None,
    ) -> None:
        self._submit = submit
        self._source = _Source(items)
        self._workers = workers
        self._chunk_size = chunk_size
        self._sizer = ChunkSizer(workers, _length(items))
        self._under_way: dict[PoolTask[Outcome], int] = {}  # and how many items each has, in order
        self._finished: asyncio.Queue[PoolTask[Outcome]] | None = None
        if not ordered:
            self._finished = asyncio.Queue()

    async def next_task(self) -> PoolTask[Outcome] | None:
        """The chunk whose results are next; None when all were read."""
        while not self._source.is_over and self._may_submit():
            chunk = await self._source.take(self._chunk_size or self._sizer.size)
            if chunk:
                task = self._submit(chunk)
                self._under_way[task] = len(chunk)
                if self._finished is not None:
                    task.add_done_callback(self._finished.put_nowait)
        if not self._under_way:
            return None
        if self._finished is not None:
            return await self._finished.get()
        return next(iter(self._under_way))

    def took(self, task: PoolTask[Outcome]) -> None:
        """The results of a chunk are there."""
        self._sizer.note(self._under_way.pop(task), task.seconds)

    def cancel_all(self) -> None:
        """Nobody reads what is under way."""
        for task in self._under_way:
            task.cancel()

    def _may_submit(self) -> bool:
        if self._chunk_size is None and not self._sizer.is_informed:
            return len(self._under_way) < self._workers  # these tell how long an item takes
        return len(self._under_way) <= self._workers * CHUNKS_AHEAD


class _Source:
    """The items, a chunk at a time."""

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.is_over = False
        self._sync = iter(items) if isinstance(items, Iterable) else None
        self._async = aiter(items) if isinstance(items, AsyncIterable) else None
        if self._sync is None and self._async is None:
            raise TypeError(f"map() takes an iterable or an async iterable, not {items!r:.60}")

    async def take(self, count: int) -> tuple[Any, ...]:
        """The next items, up to ``count`` of them."""
        if self._sync is not None:
            chunk = tuple(islice(self._sync, count))
        else:
            assert self._async is not None
            found = []
            async for item in self._async:
                found.append(item)
                if len(found) == count:
                    break
            chunk = tuple(found)
        self.is_over = len(chunk) < count
        return chunk


def _length(items: object) -> int | None:
    length = operator.length_hint(items, -1)
    return length if length >= 0 else None
