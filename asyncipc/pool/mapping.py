"""``pool.map``: one function over many items, in chunks, never far ahead of who reads the results.

Layer 4, inside the pool. Above: the pool. Below: task, sources, policy.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, Final

from asyncipc.errors import EncodeError
from asyncipc.pool.chunks import Outcome
from asyncipc.pool.descriptors import carries_descriptors
from asyncipc.pool.lent import is_lent
from asyncipc.pool.payload import load_failure
from asyncipc.pool.policy import ChunkSizer
from asyncipc.pool.sources import TURN, Source, length_of, source_of
from asyncipc.pool.task import PoolTask

__all__ = ["map_items"]

# Chunks that each worker may have been given beyond the one that is being read.
CHUNKS_AHEAD: Final = 2

Submit = Callable[[Sequence[Any]], PoolTask[Outcome]]


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
        await chunks.aclose()


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
        self._workers = workers
        self._ordered = ordered
        self._chunk_size = chunk_size
        self._sizer = ChunkSizer(workers, length_of(items))
        self._under_way: dict[PoolTask[Outcome], int] = {}  # and how many items each has, in order
        self._finished: deque[PoolTask[Outcome]] = deque()  # not those in order
        self._news = asyncio.Event()
        self._is_over = False  # there are no more items ...
        self._failure: BaseException | None = None  # ... because there was this instead
        self._room: asyncio.Future[None] | None = None  # where the feeder waits for it
        self._source: Source | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._is_closing = False
        if isinstance(items, AsyncIterable) and not isinstance(items, Iterable):
            # Beside who reads: results must not wait for items that may take their time.
            self._feeder = asyncio.create_task(self._feed(aiter(items)))
        else:
            self._source = source_of(items, exact=chunk_size is not None)

    async def next_task(self) -> PoolTask[Outcome] | None:
        """The chunk whose results are next; None when all were read.

        :raises BaseException: what the items raised, when all before it were read
        """
        while True:
            is_held_up = self._source is not None and self._take_all(self._source)
            if is_held_up:
                await asyncio.sleep(0)  # others of this loop have waited for the items
            task = self._first()
            if task is not None:
                return task
            if is_held_up:
                continue
            if self._is_over and not self._under_way:
                if self._failure is not None:
                    raise self._failure
                return None
            self._news.clear()
            await self._news.wait()

    def took(self, task: PoolTask[Outcome]) -> None:
        """The results of a chunk are there."""
        self._sizer.note(self._under_way.pop(task), task.seconds)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def aclose(self) -> None:
        """Nobody reads what is under way."""
        for task in self._under_way:
            task.forget()
        if self._feeder is not None:
            self._is_closing = True
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)

    def _first(self) -> PoolTask[Outcome] | None:
        if not self._ordered:
            return self._finished.popleft() if self._finished else None
        task = next(iter(self._under_way), None)
        return task if task is not None and task.done() else None

    def _may_submit(self) -> bool:
        if self._chunk_size is None and not self._sizer.is_informed:
            return len(self._under_way) < self._workers  # these tell how long an item takes
        return len(self._under_way) <= self._workers * CHUNKS_AHEAD

    def _take_all(self, source: Source) -> bool:
        """Take items as long as there is room; whether that was left because they take long."""
        until = perf_counter() + TURN
        while not self._is_over and self._may_submit():
            chunk = source.take(self._chunk_size or self._sizer.size, until)
            if source.is_over:
                self._is_over, self._failure = True, source.failure
            if chunk:
                self._give(chunk)
            if source.is_slow and not self._is_over:
                return True
        return False

    async def _feed(self, items: AsyncIterator[Any]) -> None:
        """Take items of an async iterable, as long as somebody reads the results."""
        count = self._chunk_size or 1  # no item waits for others
        chunk: list[Any] = []
        try:
            try:
                async for item in items:
                    chunk.append(item)
                    if len(chunk) == count or is_lent(item):
                        full, chunk = chunk, []
                        if not self._give(full):
                            return
                    while not self._may_submit():
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
            except (Exception, asyncio.CancelledError) as error:
                if self._is_closing:
                    raise
                self._failure = error  # raised in its turn, also where they were cancelled
            if chunk:
                self._give(chunk)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._is_over = True
            self._news.set()
            if inspect.isasyncgen(items):
                await items.aclose()

    def _give(self, chunk: Sequence[Any]) -> bool:
        """Give items to the pool. Those that it does not take are the end, when its turn has come.

        :returns: whether it has taken all
        """
        try:
            task = self._submit(chunk)
        except Exception as error:  # noqa: BLE001 - raised in its turn
            if isinstance(error, EncodeError) and len(chunk) > 1:
                half = len(chunk) // 2  # what stands before the item that cannot be pickled is run
                return self._give(chunk[:half]) and self._give(chunk[half:])
            self._is_over, self._failure = True, error
            return False
        if self._chunk_size is None and carries_descriptors(task.work.params):
            self._chunk_size = 1  # a message has few descriptors
        self._under_way[task] = len(chunk)
        self._sizer.weigh(len(chunk), task.work.size)
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: PoolTask[Outcome]) -> None:
        if not self._ordered:
            self._finished.append(task)
        self._news.set()
