"""Pool: the public face of the worker pool. Thin: what it does, its parts do.

Layer 4. Below: everything else in this package.
"""

import contextlib
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from asyncipc.errors import WorkerDied
from asyncipc.pool.engine import Engine
from asyncipc.pool.mapping import map_items
from asyncipc.pool.options import PoolOptions, StartMethod, check_count
from asyncipc.pool.payload import is_async
from asyncipc.pool.statistics import PoolStatistics
from asyncipc.pool.stream import PoolStream, StreamTask
from asyncipc.pool.task import PoolTask
from asyncipc.pool.work import Packer
from asyncipc.pool.worker_view import Worker
from asyncipc.session.params import DEFAULT_TIMEOUT, DefaultTimeout, check_timeout
from asyncipc.session.progress import OnProgress

__all__ = ["Pool"]

Result = TypeVar("Result")
Item = TypeVar("Item")


class Pool:
    """Processes that run functions; ``async with Pool(workers=4) as pool``.

    It belongs to one event loop, and is used from its thread. For what is inherited by workers
    and what is not, see ``docs/fork-safety.md``.

    :param workers: how many; by default as many as this process may use processors
    :param preload: modules that are imported once for all workers, before they are forked
    :param initializer: called first in each worker, with ``initargs``; an ``async def`` is awaited
        on the loop in which its async functions run
    :param initargs: its arguments
    :param service: what gives every worker named handlers for `request`: an object with
        ``__handlers__``, or a class or function that makes one in each worker
    :param concurrency: ``async def`` functions that one worker runs at once. Those that share a
        worker also share its death.
    :param max_tasks: a worker is replaced when it has run so many, or up to a tenth fewer
    :param max_rss: a worker is replaced when it has more bytes of memory of its own (what it
        shares with others does not count), looked at after tasks and as requests come
    :param max_queued: tasks that may wait for a worker
    :param spawn_timeout: seconds that a worker has to get ready
    :param grace: seconds that a task which is to stop has for it, before its worker gets SIGTERM,
        and that after another such time SIGKILL
    :param niceness: added to that of the workers
    :param start_method: ``"zygote"`` forks workers from a process that has no loop and no thread;
        ``"spawn"`` starts each as a program of its own. By default the first, where it can be had.
    :param drain: on leaving the ``async with`` block in good order, finish what was given;
        otherwise it is cancelled
    :param on_stderr: called with each line that a worker writes to stderr, instead of passing it on
    :param on_worker_started: see the method of this name
    :param on_worker_died: see the method of this name
    :raises ValueError, TypeError: an option is not what it should be; the text says which and why
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        preload: Sequence[str] = (),
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        service: Any = None,
        concurrency: int = 1,
        max_tasks: int | None = None,
        max_rss: int | None = None,
        max_queued: int = 1_000_000,
        spawn_timeout: float = 10.0,
        grace: float = 2.0,
        niceness: int = 0,
        start_method: StartMethod | None = None,
        drain: bool = True,
        on_stderr: Callable[[str], object] | None = None,
        on_worker_started: Callable[[Worker], object] | None = None,
        on_worker_died: Callable[[Worker, WorkerDied], object] | None = None,
    ) -> None:
        options = PoolOptions(
            workers=workers if workers is not None else _processors(),
            preload=preload,
            initializer=initializer,
            initargs=initargs,
            service=service,
            concurrency=concurrency,
            max_tasks=max_tasks,
            max_rss=max_rss,
            max_queued=max_queued,
            spawn_timeout=spawn_timeout,
            grace=grace,
            niceness=niceness,
            start_method=start_method,
            drain=drain,
            on_stderr=on_stderr if on_stderr is not None else _pass_on,
        )
        self._drain = drain
        self._packer = Packer()
        self._engine = Engine(options)
        if on_worker_started is not None:
            self.on_worker_started(on_worker_started)
        if on_worker_died is not None:
            self.on_worker_died(on_worker_died)

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers; returns when all are ready.

        :raises PoolError: they don't come up within ``spawn_timeout``; the text says why
        :raises EncodeError: the initializer or service cannot be given to them
        """
        await self._engine.start()

    async def aclose(self, *, drain: bool | None = None) -> None:
        """End the pool; no more tasks are taken from now on.

        Goes on when the caller is cancelled, with no more grace for anybody then. May be called
        by several tasks, and twice.

        :param drain: wait for what was given; otherwise it is cancelled. None: as the pool's
        """
        await self._engine.close(drain=self._drain if drain is None else drain)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose(drain=None if kind is None else False)

    # -- tasks -----------------------------------------------------------------------------

    @overload
    async def run(
        self,
        function: Callable[..., Awaitable[Result]],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = ...,
        retries: int = ...,
        on_progress: OnProgress | None = ...,
        **kwargs: Any,
    ) -> Result: ...
    @overload
    async def run(
        self,
        function: Callable[..., Result],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = ...,
        retries: int = ...,
        on_progress: OnProgress | None = ...,
        **kwargs: Any,
    ) -> Result: ...
    async def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT,
        retries: int = 0,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function in a worker and wait for its result.

        :param function: plain or ``async def``; importable by its name, or picklable
        :param args: its arguments, and ``kwargs``; picklable
        :param timeout: seconds until the result, the time included in which it waits for a worker.
            None: no limit, which is the default, but inside a handler the default is what its
            caller still waits. (A parameter of the function that is named like one of these options
            is passed by position, or with `functools.partial`.)
        :param retries: how often it is run again if its worker dies, for functions that may be
        :param on_progress: called with a `Progress` for each update, in order and before the
            result; an ``async def`` is awaited. What it raises ends the task.
        :returns: the result
        :raises TaskTimeout: there was none in time
        :raises WorkerDied: the worker died while it ran the function
        :raises EncodeError: function, arguments or result cannot be pickled
        :raises DecodeError: the worker has no such function, or the result cannot be unpickled
        :raises PoolClosed: the pool takes no tasks
        :raises PoolError: no worker comes up any more
        :raises Busy: ``max_queued`` tasks wait already

        What the function raises is raised here, caused by a `RemoteError` with its traceback; where
        it cannot be pickled, that `RemoteError` itself. If the waiting task is cancelled, the
        work is stopped.
        """
        work = self._packer.pack_call(function, args, kwargs, lasting=True)
        return await self._engine.give(work, timeout, retries, on_progress)

    @overload
    def submit(
        self,
        function: Callable[..., Awaitable[Result]],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = ...,
        retries: int = ...,
        on_progress: OnProgress | None = ...,
        **kwargs: Any,
    ) -> PoolTask[Result]: ...
    @overload
    def submit(
        self,
        function: Callable[..., Result],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = ...,
        retries: int = ...,
        on_progress: OnProgress | None = ...,
        **kwargs: Any,
    ) -> PoolTask[Result]: ...
    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT,
        retries: int = 0,
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> PoolTask[Any]:
        """`run` without waiting: the task can be awaited, cancelled, and asked for progress.

        :raises EncodeError, PoolClosed, Busy: as `run`, but at once
        """
        work = self._packer.pack_call(function, args, kwargs)
        task: PoolTask[Any] = self._engine.give(work, timeout, retries, on_progress)
        task.keep_progress()
        return task

    def map(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool = True,
        chunk_size: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> AsyncIterator[Any]:
        """Call a function with each of the items; ``async for result in pool.map(...)``.

        Items are taken as they are needed, never more than a few chunks for each worker ahead of
        who reads the results. The first failure is raised when it is its turn, and ends the map.
        Leaving the loop early cancels what is under way.

        :param items: an iterable or async iterable, of any length
        :param ordered: results in the order of their items; otherwise as they come
        :param chunk_size: items sent together; None: one, and more where they are fast
        :param timeout: seconds for each chunk, which is one item then unless ``chunk_size`` says
            otherwise; None: no limit
        :param retries: as with `run`, for each chunk
        :raises EncodeError, DecodeError, WorkerDied, TaskTimeout, PoolError: as `run`
        """
        check_count("chunk_size", chunk_size)
        if timeout is not None and chunk_size is None:
            chunk_size = 1
        if chunk_size is None and is_async(function):
            chunk_size = 1  # or those of one chunk would wait for each other
        limit = check_timeout(timeout)
        check_count("retries", retries)

        def submit(chunk: Sequence[Item]) -> PoolTask[Any]:
            work = self._packer.pack_chunk(function, chunk)
            task: PoolTask[Any] = self._engine.give(work, limit, retries, bounded=False)
            return task

        return map_items(
            submit, items, workers=self._engine.count, ordered=ordered, chunk_size=chunk_size
        )

    def stream(
        self,
        function: Callable[..., AsyncIterable[Item] | Iterable[Item]],
        /,
        *args: Any,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> PoolStream[Item]:
        """The items that a generator gives in a worker; ``async with`` or a plain ``async for``.

        Nothing is started before that. The generator is at most its credit ahead of the reader
        (`Limits.stream_credit`, in bytes), and has a worker to itself, or shares one with other
        async functions, until it ends.

        :param function: a generator function, plain or ``async def``, or another that returns an
            iterable; and its arguments, as with `run`
        :param timeout: seconds for all of it; None: no limit
        :raises EncodeError: function or arguments cannot be pickled
        """
        limit = check_timeout(timeout)
        work = self._packer.pack_stream(function, args, kwargs)

        def start() -> StreamTask:
            task: StreamTask = self._engine.give(work, limit, 0, kind=StreamTask)
            return task

        return PoolStream(start)

    # -- services --------------------------------------------------------------------------

    async def request(
        self,
        method: object,
        params: object = None,
        *,
        timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Call a method of ``service`` in the worker with the least to do.

        For the parameters and errors see `Session.request`; the timeout covers the wait for a
        worker. One that does not stop when it was given up is ended, as with `run`.

        :raises WorkerDied: the worker died meanwhile
        :raises PoolClosed: the pool takes no requests
        :raises PoolError: no worker comes up any more
        """
        return await self._engine.request(method, params, timeout, on_progress)

    async def broadcast(
        self,
        method: object,
        params: object = None,
        *,
        timeout: float | DefaultTimeout | None = DEFAULT_TIMEOUT,
    ) -> list[Any]:
        """`request` for every worker that is ready; the results, in the order of their numbers.

        The first error is raised when all have answered.
        """
        return await self._engine.broadcast(method, params, timeout)

    # -- workers ---------------------------------------------------------------------------

    async def resize(self, workers: int) -> None:
        """Have so many workers from now on; returns when they are ready.

        Surplus ones end when they have ended their tasks, and count as at work until then.

        :raises PoolError: they don't come up within ``spawn_timeout``
        """
        await self._engine.resize(workers)

    @property
    def workers(self) -> list[Worker]:
        """The workers that are ready, or about to be replaced."""
        return self._engine.workers

    def on_worker_started(self, callback: Callable[[Worker], object]) -> None:
        """Call ``callback(worker)`` with each worker that becomes ready.

        An ``async def`` runs in a task of its own, which nobody waits for.
        """
        self._engine.on_started.append(callback)

    def on_worker_died(self, callback: Callable[[Worker, WorkerDied], object]) -> None:
        """Call ``callback(worker, error)`` with each worker that dies.

        Also where that was the only way to stop a task; not with those that end in good order.
        An ``async def`` runs in a task of its own, which nobody waits for.
        """
        self._engine.on_died.append(callback)

    def statistics(self) -> PoolStatistics:
        """Counters since the pool was started, and how it stands now."""
        return self._engine.statistics()

    def __repr__(self) -> str:
        return f"<Pool of {self._engine.count} workers, {self._engine.state}>"


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pass_on(line: str) -> None:
    """What a worker writes to stderr appears on this process's."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
