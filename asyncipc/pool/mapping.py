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
    sizer = ChunkSizer(workers, _length(items)) if chunk_size is None else None
    source = _Source(items)
    under_way: dict[PoolTask[Outcome], int] = {}  # and how many items each has, in order
    finished: asyncio.Queue[PoolTask[Outcome]] = asyncio.Queue()
    try:
        while True:
            while not source.is_over and len(under_way) <= workers * CHUNKS_AHEAD:
                if sizer is not None and not sizer.is_informed and len(under_way) >= workers:
                    break  # let the first tell how long an item takes
                chunk = await source.take(chunk_size or (sizer.size if sizer is not None else 1))
                if chunk:
                    task = submit(chunk)
                    under_way[task] = len(chunk)
                    if not ordered:
                        task.add_done_callback(finished.put_nowait)
            if not under_way:
                return
            task = next(iter(under_way)) if ordered else await finished.get()
            results, failure = await task
            size = under_way.pop(task)
            if sizer is not None:
                sizer.note(size, task.seconds)
            for result in results:
                yield result
            if failure is not None:
                raise load_failure(failure)
    finally:
        for task in under_way:
            task.cancel()


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
