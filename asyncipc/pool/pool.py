"""Pool: the public face of the worker pool. Thin: what it does, its parts do.

Layer 4. Below: everything else in this package.
"""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, ParamSpec, Self, TypeVar, overload

from asyncipc.errors import PoolClosed, PoolError, SessionClosed, WorkerDied
from asyncipc.pool.context_variables import VariableNames, dump_context
from asyncipc.pool.jobs import MAP, RUN
from asyncipc.pool.link import Link, Worker
from asyncipc.pool.logs import logger_levels
from asyncipc.pool.main_module import is_importing_main
from asyncipc.pool.mapping import map_items
from asyncipc.pool.options import check_options, check_retries, default_start_method
from asyncipc.pool.payload import FunctionNames, dump_arguments, function_name
from asyncipc.pool.scheduler import Scheduler
from asyncipc.pool.starting import SpawnStarter, Starter, ZygoteStarter
from asyncipc.pool.supervisor import Supervisor, WorkerOptions
from asyncipc.pool.task import PoolTask, Work
from asyncipc.pool.worker import WorkerSetup
from asyncipc.session.context import serving
from asyncipc.session.params import DEFAULT_TIMEOUT, DefaultTimeout, check_timeout
from asyncipc.session.progress import OnProgress

__all__ = ["Pool", "PoolStatistics"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Item = TypeVar("Item")

StartMethod = Literal["zygote", "spawn"]


class PoolStatistics(NamedTuple):
    """Counters of a pool since it began, and how it stands now.

    :ivar workers: workers that are ready; of these ...
    :ivar idle: ... those with nothing to do
    :ivar queued: tasks that wait for a worker
    :ivar running: tasks that workers have
    :ivar submitted: tasks that were given
    :ivar done: of these, those that ended with a result
    :ivar failed: those that ended with an error, timeouts included
    :ivar cancelled: those that were given up
    :ivar moved: how often a task went back to the queue because its worker died
    :ivar workers_started: workers that became ready
    :ivar workers_died: workers that died without being asked to
    :ivar workers_recycled: workers that were replaced in good order
    """

    workers: int
    idle: int
    queued: int
    running: int
    submitted: int
    done: int
    failed: int
    cancelled: int
    moved: int
    workers_started: int
    workers_died: int
    workers_recycled: int


class Pool:
    """Processes that run functions; ``async with Pool(workers=4) as pool``.

    It belongs to one event loop, and is used from its thread. For what is inherited by workers
    and what is not, see ``docs/fork-safety.md``.

    :param workers: how many; by default as many as this process may use processors
    :param preload: modules that are imported once for all workers, before they are forked
    :param initializer: called first in each worker, with ``initargs``
    :param initargs: its arguments
    :param service: what gives every worker named handlers for `request`: an object with
        ``__handlers__``, or a class or function that makes one in each worker
    :param concurrency: ``async def`` functions that one worker runs at once. Those that share a
        worker also share its death.
    :param max_tasks: a worker is replaced when it has run so many, or up to a tenth fewer
    :param max_rss: a worker is replaced when it has more bytes of memory of its own (what it
        shares with others does not count), looked at after each task
    :param max_queued: tasks that may wait for a worker
    :param spawn_timeout: seconds that a worker has to get ready
    :param grace: seconds that a task which is to stop has for it, before its worker gets SIGTERM,
        and that after another such time SIGKILL
    :param niceness: added to that of the workers
    :param start_method: ``"zygote"`` forks workers from a process that has no loop and no thread;
        ``"spawn"`` starts each as a program of its own. By default the first, where it can be had.
    :param drain: on leaving the ``async with`` block in good order, finish what was given; otherwise
        it is cancelled
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
        self._count = workers if workers is not None else _processors()
        check_options(
            workers=self._count,
            concurrency=concurrency,
            max_tasks=max_tasks,
            max_rss=max_rss,
            max_queued=max_queued,
            spawn_timeout=spawn_timeout,
            grace=grace,
            niceness=niceness,
            preload=preload,
            start_method=start_method,
        )
        self._preload = list(preload)
        self._setup = WorkerSetup(
            initializer=initializer,
            initargs=tuple(initargs),
            service=service,
            niceness=niceness,
            max_memory=max_rss,
        )
        self._concurrency = concurrency
        self._max_tasks = max_tasks
        self._max_queued = max_queued
        self._spawn_timeout = spawn_timeout
        self._grace = grace
        self._start_method = start_method or default_start_method()
        self._drain = drain
        self._on_stderr = on_stderr if on_stderr is not None else _pass_on
        self._on_started = [on_worker_started] if on_worker_started is not None else []
        self._on_died = [on_worker_died] if on_worker_died is not None else []
        self._functions = FunctionNames()
        self._variables = VariableNames()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduler: Scheduler
        self._supervisor: Supervisor
        self._closing: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._submitted = self._done = self._failed = self._cancelled = 0
        self._requests = 0

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers; returns when all are ready.

        :raises PoolError: they don't come up within ``spawn_timeout``; the text says why
        :raises EncodeError: the initializer or service cannot be given to them
        """
        if self._loop is not None:
            raise PoolError("the pool was started before; make another")
        if is_importing_main():
            raise PoolError(
                "a pool is started while the main module is imported for a worker, which would "
                "start pools without end; put what starts it behind "
                'if __name__ == "__main__":'
            )
        # Instances of classes of the main module come back from workers under that name.
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(
            loop, self._concurrency, self._max_queued, lambda link: self._supervisor.changed(link)
        )
        self._supervisor = Supervisor(
            0,
            WorkerOptions(
                setup=dataclasses.replace(self._setup, log_levels=logger_levels()),
                max_tasks=self._max_tasks,
                spawn_timeout=self._spawn_timeout,
                grace=self._grace,
            ),
            self._make_starter(),
            self._scheduler,
            on_started=self._worker_started,
            on_died=self._worker_died,
        )
        self._loop = loop
        try:
            await self._supervisor.resize(self._count)
        except BaseException:
            await self.aclose(drain=False)
            raise

    async def aclose(self, *, drain: bool | None = None) -> None:
        """End the pool; no more tasks are taken from now on.

        Goes on when the caller is cancelled, with no more grace for anybody then. May be called
        by several tasks, and twice.

        :param drain: wait for what was given; otherwise it is cancelled. None: as the pool's
        """
        if self._loop is None:
            return
        if self._closing is None:
            do_drain = self._drain if drain is None else drain
            self._closing = self._loop.create_task(self._close(drain=do_drain))
        elif drain is False:
            self._scheduler.cancel_all()
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._scheduler.cancel_all()
            self._supervisor.kill_all()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._closing)
            raise

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
        return await self._submit(function, args, kwargs, timeout, retries, on_progress)

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
        return self._submit(function, args, kwargs, timeout, retries, on_progress)

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
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise ValueError(f"chunk_size is a number of items from 1, not {chunk_size!r}")
        if timeout is not None and chunk_size is None:
            chunk_size = 1
        exclusive = not _is_async(function)
        if not exclusive and chunk_size is None:
            chunk_size = 1  # or those of one chunk would wait for each other
        pickled = self._functions.dump(function)
        limit = check_timeout(timeout)
        retries = check_retries(retries)

        def submit(chunk: tuple[Any, ...]) -> PoolTask[Any]:
            name = function_name(function)
            params = [pickled, *dump_arguments(chunk, name)]
            work = Work(MAP, params, dump_context(self._variables), name, exclusive=exclusive)
            return self._give(work, limit, retries, None)

        return map_items(submit, items, workers=self._count, ordered=ordered, chunk_size=chunk_size)

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

        For the parameters and errors see `Session.request`.

        :raises WorkerDied: the worker died meanwhile
        :raises PoolClosed: the pool takes no requests
        :raises PoolError: no worker comes up any more
        """
        self._check_open()
        link = await self._scheduler.least_loaded()
        return await self._ask(link, method, params, timeout, on_progress)

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
        self._check_open()
        answers = await asyncio.gather(
            *(self._ask(link, method, params, timeout, None) for link in self._scheduler.links),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    # -- workers ---------------------------------------------------------------------------

    async def resize(self, workers: int) -> None:
        """Have so many workers from now on; returns when they are ready.

        Surplus ones end when they have ended their tasks.

        :raises PoolError: they don't come up within ``spawn_timeout``
        """
        check_options(workers=workers)
        self._check_open()
        self._count = workers
        await self._supervisor.resize(workers)

    @property
    def workers(self) -> list[Worker]:
        """The workers that are ready, or about to be replaced."""
        if self._loop is None:
            return []
        return [self._worker(link) for link in self._scheduler.links]

    def on_worker_started(self, callback: Callable[[Worker], object]) -> None:
        """Call ``callback(worker)`` with each worker that becomes ready."""
        self._on_started.append(callback)

    def on_worker_died(self, callback: Callable[[Worker, WorkerDied], object]) -> None:
        """Call ``callback(worker, error)`` with each worker that dies without being asked to."""
        self._on_died.append(callback)

    def statistics(self) -> PoolStatistics:
        """Counters since the pool was started, and how it stands now."""
        if self._loop is None:
            return PoolStatistics(*[0] * len(PoolStatistics._fields))
        links = self._scheduler.links
        over = self._done + self._failed + self._cancelled
        return PoolStatistics(
            workers=len(links),
            idle=sum(link.is_idle for link in links),
            queued=self._scheduler.queued,
            running=self._submitted - over - self._scheduler.queued,
            submitted=self._submitted,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            moved=self._scheduler.moved,
            workers_started=self._supervisor.started,
            workers_died=self._supervisor.died,
            workers_recycled=self._supervisor.recycled,
        )

    def __repr__(self) -> str:
        state = "new" if self._loop is None else "open" if self._closing is None else "closing"
        return f"<Pool of {self._count} workers, {state}>"

    # -- private ---------------------------------------------------------------------------

    def _submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | DefaultTimeout | None,
        retries: int,
        on_progress: OnProgress | None,
    ) -> PoolTask[Any]:
        if isinstance(timeout, DefaultTimeout):
            call = serving.get()
            timeout = None if call is None or call.finished else call.remaining
        elif timeout is not None:
            timeout = check_timeout(timeout)
        name = function_name(function)
        params = [self._functions.dump(function), *dump_arguments((args, kwargs), name)]
        work = Work(
            RUN, params, dump_context(self._variables), name, exclusive=not _is_async(function)
        )
        return self._give(work, timeout, retries and check_retries(retries), on_progress)

    def _give(
        self, work: Work, timeout: float | None, retries: int, on_progress: OnProgress | None
    ) -> PoolTask[Any]:
        self._check_open()
        assert self._loop is not None
        task: PoolTask[Any] = PoolTask(
            self._loop,
            self._submitted,
            work,
            timeout=timeout,
            retries=retries,
            on_progress=on_progress,
            on_done=self._task_done,
        )
        self._scheduler.submit(task)
        self._submitted += 1
        return task

    async def _ask(
        self,
        link: Link,
        method: object,
        params: object,
        timeout: float | DefaultTimeout | None,
        on_progress: OnProgress | None,
    ) -> Any:
        link.requests += 1
        self._requests += 1
        try:
            return await link.session.request(
                method, params, timeout=timeout, on_progress=on_progress
            )
        except SessionClosed as error:
            raise link.death_of(f"the method {method!r:.60}", error) from error
        finally:
            link.requests -= 1
            self._requests -= 1
            self._supervisor.changed(link)
            self._tell_idle()

    def _check_open(self) -> None:
        if self._loop is None or self._closing is not None:
            raise PoolClosed(f"the pool takes no tasks: {self!r}")

    def _task_done(self, task: PoolTask[Any]) -> None:
        if task.cancelled():
            self._cancelled += 1
        elif task.failed():
            self._failed += 1
        else:
            self._done += 1
        if self._idle is not None:
            self._tell_idle()

    def _tell_idle(self) -> None:
        over = self._done + self._failed + self._cancelled
        if self._idle is not None and not self._idle.done() and over == self._submitted:
            if not self._requests:
                self._idle.set_result(None)

    async def _close(self, *, drain: bool) -> None:
        assert self._loop is not None
        if not drain:
            self._scheduler.cancel_all()
        self._idle = self._loop.create_future()
        self._tell_idle()
        await self._idle
        self._scheduler.close()
        await self._supervisor.aclose()

    def _make_starter(self) -> Starter:
        starter = ZygoteStarter if self._start_method == "zygote" else SpawnStarter
        return starter(self._preload, self._on_stderr)

    def _worker(self, link: Link) -> Worker:
        return Worker(link, self._scheduler.give_out)

    def _worker_started(self, link: Link) -> None:
        for callback in self._on_started:
            self._call_back(callback, self._worker(link))

    def _worker_died(self, link: Link, reason: SessionClosed | None) -> None:
        error = link.death_of("no task", reason or SessionClosed("it closed its session"))
        for callback in self._on_died:
            self._call_back(callback, self._worker(link), error)

    def _call_back(self, callback: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - a callback's mistake is reported, not ours
            self._loop.call_exception_handler(
                {"message": f"a callback of {self!r} failed", "exception": error}
            )


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is wanted, not whether it is
    )


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pass_on(line: str) -> None:
    """What a worker writes to stderr appears on this process's."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
