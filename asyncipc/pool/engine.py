"""What a pool is made of, from its start to its end.

Layer 4, inside the pool. Above: the pool, its face. Below: scheduler, supervisor, task.
"""

import asyncio
import contextlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from asyncipc.errors import PoolClosed, PoolError, SessionClosed, WorkerDied
from asyncipc.pool.launching import WorkerOptions
from asyncipc.pool.link import Link
from asyncipc.pool.logs import logger_levels
from asyncipc.pool.main_module import GUARD, is_importing_main
from asyncipc.pool.options import PoolOptions, check_count, default_start_method
from asyncipc.pool.scheduler import Scheduler
from asyncipc.pool.services import Services
from asyncipc.pool.starting import SpawnStarter, Starter, ZygoteStarter
from asyncipc.pool.statistics import PoolStatistics, TaskCounts
from asyncipc.pool.supervisor import Supervisor
from asyncipc.pool.task import PoolTask
from asyncipc.pool.work import Work
from asyncipc.pool.worker import WorkerSetup
from asyncipc.pool.worker_view import Worker
from asyncipc.session.context import serving
from asyncipc.session.params import DefaultTimeout, check_timeout
from asyncipc.session.progress import OnProgress

__all__ = ["Engine"]


class Engine:
    """A pool at work; see `asyncipc.Pool` for what its methods do and raise.

    :ivar on_started: called with each worker that became ready
    :ivar on_died: called with each that died
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self.count: int = options.workers
        self.on_started: list[Callable[[Worker], object]] = []
        self.on_died: list[Callable[[Worker, WorkerDied], object]] = []
        self._counts = TaskCounts()
        self._callbacks: set[asyncio.Task[Any]] = set()  # those of on_started and on_died
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduler: Scheduler
        self._supervisor: Supervisor
        self._services: Services
        self._closing: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # where the closing waits for tasks

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers."""
        if self._loop is not None:
            raise PoolError("the pool was started before; make another")
        if is_importing_main():
            raise PoolError(
                "a pool is started while the main module is imported for a worker, which would "
                f"start pools without end; {GUARD}"
            )
        # Instances of classes of the main module come back from workers under that name.
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        options = self._options
        loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(loop, options.concurrency, self.count, options.max_queued)
        self._supervisor = Supervisor(
            self._worker_options(),
            self._make_starter(),
            self._scheduler,
            on_started=self._worker_started,
            on_died=self._worker_died,
        )
        self._scheduler.on_change = self._supervisor.changed
        self._services = Services(self._scheduler, self._supervisor.changed, self._tell_idle)
        self._loop = loop
        try:
            await self._supervisor.resize(self.count)
        except BaseException:
            await self.close(drain=False)
            raise

    async def close(self, *, drain: bool) -> None:
        """End the pool."""
        if self._loop is None:
            return
        if self._closing is None:
            self._services.close()
            self._closing = self._loop.create_task(self._close(drain=drain))
        elif not drain:
            self._give_all_up()
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._give_all_up()
            self._supervisor.kill_all()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._closing)
            raise

    async def _close(self, *, drain: bool) -> None:
        assert self._loop is not None
        if drain:
            self._scheduler.resume_all()  # or what waits for them would wait for ever
        else:
            self._give_all_up()
        self._idle = self._loop.create_future()
        self._tell_idle()
        await self._idle
        self._scheduler.close()
        await self._supervisor.aclose()

    def _give_all_up(self) -> None:
        self._scheduler.cancel_all()
        self._services.cancel_all()

    def _worker_options(self) -> WorkerOptions:
        options = self._options
        return WorkerOptions(
            setup=WorkerSetup(
                initializer=options.initializer,
                initargs=tuple(options.initargs),
                service=options.service,
                niceness=options.niceness,
                max_memory=options.max_rss,
                log_levels=logger_levels(),
            ),
            max_tasks=options.max_tasks,
            spawn_timeout=options.spawn_timeout,
            grace=options.grace,
        )

    def _make_starter(self) -> Starter:
        method = self._options.start_method or default_start_method()
        starter = ZygoteStarter if method == "zygote" else SpawnStarter
        return starter(list(self._options.preload), self._options.on_stderr)

    # -- tasks -----------------------------------------------------------------------------

    def give(
        self,
        work: Work,
        timeout: float | DefaultTimeout | None,
        retries: int,
        on_progress: OnProgress | None = None,
        *,
        kind: type[PoolTask[Any]] = PoolTask,
        bounded: bool = True,
    ) -> Any:
        """Have a worker do it, as soon as one may."""
        if self._loop is None or self._closing is not None:
            raise self._closed()
        if isinstance(timeout, DefaultTimeout):
            call = serving.get()
            timeout = None if call is None or call.finished else call.remaining
        elif timeout is not None:
            timeout = check_timeout(timeout)
        if retries:
            check_count("retries", retries)
        counts = self._counts
        task = kind(
            self._loop,
            counts.submitted,
            work,
            timeout=timeout,
            retries=retries,
            on_progress=on_progress,
            on_done=self._task_done,
        )
        self._scheduler.submit(task, bounded=bounded)
        counts.submitted += 1
        return task

    def _task_done(self, task: PoolTask[Any]) -> None:
        if task.has_result:
            self._counts.done += 1
        elif task.cancelled():
            self._counts.cancelled += 1
        else:
            self._counts.failed += 1
        if self._idle is not None:
            self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is None or self._idle.done():
            return
        if not (self._counts.unfinished or self._services.are_under_way):
            self._idle.set_result(None)

    # -- services --------------------------------------------------------------------------

    async def request(
        self,
        method: object,
        params: object,
        timeout: float | DefaultTimeout | None,
        on_progress: OnProgress | None,
    ) -> Any:
        """Ask the worker that may answer first."""
        self.check_open()
        return await self._services.request(method, params, timeout, on_progress)

    async def broadcast(
        self, method: object, params: object, timeout: float | DefaultTimeout | None
    ) -> list[Any]:
        """Ask all workers."""
        self.check_open()
        return await self._services.broadcast(method, params, timeout)

    # -- workers ---------------------------------------------------------------------------

    async def resize(self, count: int) -> None:
        """Have so many workers."""
        check_count("workers", count)
        self.check_open()
        self.count = count
        await self._supervisor.resize(count)

    @property
    def workers(self) -> list[Worker]:
        """Those that are ready, or about to be replaced."""
        if self._loop is None:
            return []
        return [self._worker(link) for link in self._scheduler.links]

    def statistics(self) -> PoolStatistics:
        """Counters since the start, and how it stands now."""
        if self._loop is None:
            return PoolStatistics(*[0] * len(PoolStatistics._fields))
        links, counts = self._scheduler.links, self._counts
        return PoolStatistics(
            workers=len(links),
            idle=sum(link.is_idle for link in links),
            queued=self._scheduler.queued,
            running=counts.unfinished - self._scheduler.queued,
            submitted=counts.submitted,
            done=counts.done,
            failed=counts.failed,
            cancelled=counts.cancelled,
            moved=self._scheduler.moved,
            bundled=self._scheduler.bundled,
            workers_started=self._supervisor.started,
            workers_died=self._supervisor.died,
            workers_recycled=self._supervisor.recycled,
        )

    @property
    def state(self) -> str:
        """For people."""
        if self._loop is None:
            return "not started"
        if self._closing is None:
            return "open"
        return "closed" if self._closing.done() else "closing"

    def check_open(self) -> None:
        """:raises PoolClosed: it takes nothing"""
        if self._loop is None or self._closing is not None:
            raise self._closed()

    def _closed(self) -> PoolClosed:
        return PoolClosed(f"the pool takes no tasks: it is {self.state}")

    def _worker(self, link: Link) -> Worker:
        return Worker(link, self._scheduler.resumed)

    def _worker_started(self, link: Link) -> None:
        for callback in self.on_started:
            self._call_back(callback, self._worker(link))

    def _worker_died(self, link: Link, reason: SessionClosed | None) -> None:
        error = link.death_of(None, reason or SessionClosed("it closed its session"))
        for callback in self.on_died:
            self._call_back(callback, self._worker(link), error)

    def _call_back(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call it; one that is async goes on in a task, which nothing here waits for."""
        assert self._loop is not None
        try:
            begun = callback(*arguments)
        except Exception as error:  # noqa: BLE001 - a callback's mistake is reported, not ours
            self._callback_failed(error)
            return
        if inspect.iscoroutine(begun):
            task = self._loop.create_task(begun)
            self._callbacks.add(task)
            task.add_done_callback(self._callback_ended)

    def _callback_ended(self, task: asyncio.Task[Any]) -> None:
        self._callbacks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._callback_failed(error)

    def _callback_failed(self, error: BaseException) -> None:
        assert self._loop is not None
        self._loop.call_exception_handler(
            {"message": "a callback of a pool for its workers failed", "exception": error}
        )
