"""``pool.map``: one function over many items, in chunks, never far ahead of who reads the results.

Layer 4, inside the pool. Above: the pool. Below: task, policy.
"""

import asyncio
import operator
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from itertools import islice
from typing import Any, Final

from asyncipc.pool.descriptors import has_descriptors
from asyncipc.pool.payload import Failure, load_failure
from asyncipc.pool.policy import ChunkSizer
from asyncipc.pool.task import PoolTask
from asyncipc.session.lending import HARMLESS, holds_lent

__all__ = ["map_items"]

# Chunks that each worker may have been given beyond the one that is being read.
CHUNKS_AHEAD: Final = 2

# Their items are all there, so that none is filled anew for the next.
CONTAINERS: Final = frozenset({list, tuple, range, set, frozenset, dict})

# What a chunk comes back as: the results up to the first failure, and that failure or None.
Outcome = tuple[list[Any], Failure | None]

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
        self._may_refill = type(items) not in CONTAINERS
        self._sizer = ChunkSizer(workers, _length(items))
        self._under_way: dict[PoolTask[Outcome], int] = {}  # and how many items each has, in order
        self._finished: deque[PoolTask[Outcome]] = deque()  # not those in order
        self._news = asyncio.Event()
        self._is_over = False  # there are no more items ...
        self._failure: BaseException | None = None  # ... because there was this instead
        self._room: asyncio.Future[None] | None = None  # where the feeder waits for it
        self._take: Callable[[int], Sequence[Any]] | None = None
        self._feeder: asyncio.Task[None] | None = None
        if type(items) is range:
            self._take = _Slices(items).take
        elif isinstance(items, Iterable):
            self._take = partial(self._take_from, iter(items))
        elif isinstance(items, AsyncIterable):
            # Beside who reads: results must not wait for items that may take their time.
            self._feeder = asyncio.create_task(self._feed(aiter(items)))
        else:
            raise TypeError(f"map() takes an iterable or an async iterable, not {items!r:.60}")

    async def next_task(self) -> PoolTask[Outcome] | None:
        """The chunk whose results are next; None when all were read.

        :raises BaseException: what the items raised, when all before it were read
        """
        while True:
            if self._take is not None:
                self._take_all(self._take)
            task = self._first()
            if task is not None:
                return task
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

    def _take_all(self, take: Callable[[int], Sequence[Any]]) -> None:
        while not self._is_over and self._may_submit():
            count = self._chunk_size or self._sizer.size
            chunk = take(count)
            self._is_over |= len(chunk) < count and not self._ends_lent(chunk)
            self._give(chunk)

    def _take_from(self, items: Iterator[Any], count: int) -> list[Any]:
        chunk: list[Any] = []
        try:
            # What came before a failure stays in it.
            if self._may_refill:
                while len(chunk) < count and not self._ends_lent(chunk):
                    chunk.append(next(items))
            else:
                chunk.extend(islice(items, count))
        except StopIteration:
            self._is_over = True
        except Exception as error:  # noqa: BLE001 - raised in its turn
            self._failure = error
            self._is_over = True
        return chunk

    async def _feed(self, items: AsyncIterator[Any]) -> None:
        """Take items of an async iterable, as long as somebody reads the results."""
        count = self._chunk_size or 1  # no item waits for others
        chunk: list[Any] = []
        try:
            async for item in items:
                chunk.append(item)
                if len(chunk) == count or self._ends_lent(chunk):
                    self._give(chunk)
                    chunk = []
                while not self._may_submit():
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except Exception as error:  # noqa: BLE001 - raised in its turn
            self._failure = error
        self._is_over = True
        self._give(chunk)
        self._news.set()

    def _ends_lent(self, chunk: Sequence[Any]) -> bool:
        """Whether its last item may be filled anew for the next, and so is packed before."""
        if not (self._may_refill and chunk) or type(chunk[-1]) in HARMLESS:
            return False
        return holds_lent(chunk[-1])

    def _give(self, chunk: Sequence[Any]) -> None:
        if chunk:
            task = self._submit(chunk)
            if self._chunk_size is None and has_descriptors(task.work.params):
                self._chunk_size = 1  # a message has few descriptors
            self._under_way[task] = len(chunk)
            task.add_done_callback(self._ended)

    def _ended(self, task: PoolTask[Outcome]) -> None:
        if not self._ordered:
            self._finished.append(task)
        self._news.set()


class _Slices:
    """A range in pieces that are ranges, whose pickles are as small whatever their length."""

    def __init__(self, items: range) -> None:
        self._rest = items

    def take(self, count: int) -> range:
        """The next ``count`` items, or all that are left."""
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


def _length(items: object) -> int | None:
    length = operator.length_hint(items, -1)
    return length if length >= 0 else None
