"""Keeps the workers: starts them, replaces those that died or have served their time, ends them.

Layer 4, inside the pool. Above: the pool. Below: launching, scheduler, roster, policy.
"""

import asyncio
import logging
import signal
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

from asyncipc.errors import IPCError, PoolClosed, PoolError, SessionClosed
from asyncipc.pool.launching import Launch, Launcher, WorkerOptions
from asyncipc.pool.link import Link
from asyncipc.pool.policy import Backoff
from asyncipc.pool.roster import WorkerState
from asyncipc.pool.scheduler import Scheduler
from asyncipc.pool.starting import Starter

__all__ = ["Supervisor"]

logger: logging.Logger = logging.getLogger("asyncipc.pool")

# How often a worker may die before it is ready, without one that was, until the pool gives up
# opening. What a worker can say about its own failure is said at once.
MAX_FIRST_FAILURES: Final = 3

# A worker that crashes within so many seconds, without a task, has not really come up.
EARLY: Final = 5.0

# The replacement of a worker is started before the last of its tasks, or the last tenth.
LAST_SHARE: Final = 10


class Supervisor:
    """The workers of a pool.

    :param on_started: called with each worker that is ready
    :param on_died: called with each that died, also where that was the only way to stop a task
    """

    def __init__(
        self,
        options: WorkerOptions,
        starter: Starter,
        scheduler: Scheduler,
        *,
        on_started: Callable[[Link], None],
        on_died: Callable[[Link, SessionClosed | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn_timeout = options.spawn_timeout
        self._starter = starter
        self._scheduler = scheduler
        self._roster = scheduler.roster
        self._on_started = on_started
        self._on_died = on_died
        self._launcher = Launcher(options, starter, scheduler, self._replace_large)
        self._backoff = Backoff()
        self._pause: asyncio.TimerHandle | None = None
        self._starting: dict[asyncio.Task[None], Launch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._openings: set[asyncio.Future[None]] = set()  # those who wait for all to be ready
        self._leaving: set[Link] = set()
        self._oversized: weakref.WeakSet[Link] = weakref.WeakSet()
        self._has_died_early = False
        self._failing_since: float | None = None
        self._last_failure: BaseException | None = None
        self._is_closing = False
        self._last_number = 0
        self.started: int = 0
        self.died: int = 0
        self.recycled: int = 0

    # -- from outside ----------------------------------------------------------------------

    async def resize(self, count: int) -> None:
        """Have so many workers; returns when they are ready.

        :raises PoolError: they don't come up
        """
        self._roster.count = count
        self._trim()
        self._take_back()
        self._scheduler.resumed()
        if self._roster.present >= count:
            self._tell_ready()
            return
        opening: asyncio.Future[None] = self._loop.create_future()
        self._openings.add(opening)
        self._fill()
        try:
            async with asyncio.timeout(self._spawn_timeout):
                await opening
        except TimeoutError as error:
            text = (
                f"{self._roster.present} of {count} workers came up within spawn_timeout "
                f"({self._spawn_timeout:g} s)"
            )
            if self._last_failure is not None:
                text += f"; the last one failed: {self._last_failure}"
            elif self._starting:
                text += f": {next(iter(self._starting.values())).stage}"
            raise PoolError(text) from self._last_failure or error
        finally:
            self._openings.discard(opening)

    def changed(self, link: Link) -> None:
        """A worker got something to do, or has ended it."""
        seat = link.seat
        if self._has_died_early and link.has_served and self._backoff.failures:
            self._has_died_early = False
            self._backoff.succeeded()
        if seat.limit is not None and seat.taken >= seat.limit - seat.limit // LAST_SHARE - 1:
            self._replace(link)
            if seat.taken >= seat.limit:
                self.retire(link)
        elif seat.is_doomed and seat.state is WorkerState.READY:
            seat.become(WorkerState.RETIRING)
            self._fill()
        # One that is doomed is dead or dies soon, which is told when it has.
        if seat.state is WorkerState.RETIRING and link.is_idle and not seat.is_doomed:
            self._let_go(link)

    def retire(self, link: Link) -> None:
        """Have a worker end when it has ended its tasks."""
        if link.seat.state in (WorkerState.RETIRING, WorkerState.ENDED):
            return
        link.seat.become(WorkerState.RETIRING)
        self.recycled += 1
        self._fill()
        if link.is_idle:
            self._let_go(link)

    def _replace(self, link: Link) -> None:
        """Start the replacement of a worker that still takes tasks.

        The replacement takes some when no more workers have tasks than there are to be.
        """
        # One that may run a single task would have one replacement after the other.
        if link.seat.is_present and link.seat.taken > 0:
            link.seat.is_replaced = True
            self._fill()

    def _replace_large(self, link: Link) -> None:
        self._oversized.add(link)
        if link.seat.is_present:
            link.seat.is_replaced = True
            self._fill()

    def _tell_ready(self) -> None:
        for opening in self._openings:
            _resolve(opening)

    def _trim(self) -> None:
        """Retire those beyond the count, and those that were only to stay until now."""
        for link in self._scheduler.links:
            if link in self._oversized and self._roster.present >= self._roster.count:
                self.retire(link)
        for seat in self._roster.to_retire():
            seat.is_surplus = True
            self.retire(self._scheduler.link_of(seat))

    def _take_back(self) -> None:
        """Have those stay that were to go because there were too many, rather than others come."""
        for seat in self._roster.to_keep():
            seat.is_surplus = False
            seat.become(WorkerState.READY)
            self.recycled -= 1

    async def aclose(self) -> None:
        """End all workers, whatever they do: a goodbye, the grace, SIGTERM, the grace, SIGKILL."""
        self._is_closing = True
        for opening in self._openings:
            if not opening.done():
                opening.set_exception(PoolClosed("the pool was closed meanwhile"))
        if self._pause is not None:
            self._pause.cancel()
        for task in self._starting:
            task.cancel()
        for link in self._scheduler.links:
            self._let_go(link)
        if self._starting or self._ending:
            await asyncio.wait([*self._starting, *self._ending])
        await self._starter.aclose()

    def kill_all(self) -> None:
        """`aclose` for who cannot wait: nobody gets any grace from now on."""
        for link in (*self._scheduler.links, *self._leaving):
            link.process.kill()

    # -- starting --------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        if self._is_closing or self._pause is not None:
            return
        for _ in range(self._roster.count - self._roster.present - len(self._starting)):
            self._last_number += 1
            launch = Launch(self._launcher, self._last_number)
            task = self._loop.create_task(self._start(launch))
            self._starting[task] = launch
            task.add_done_callback(self._start_ended)

    def _start_ended(self, task: asyncio.Task[None]) -> None:
        del self._starting[task]
        if self._is_closing or task.cancelled():
            return
        error = task.exception()
        if error is None:
            if not self._has_died_early:
                self._backoff.succeeded()
            self._failing_since = self._last_failure = None
            if self._roster.present >= self._roster.count:
                self._tell_ready()
            self._trim()
            self._fill()
        else:
            self._start_failed(error)

    def _start_failed(self, error: BaseException) -> None:
        self._last_failure = error
        # Those that fail together are one failure.
        pause = self._backoff.failed() if self._pause is None else 0.0
        failures = self._backoff.failures
        now = monotonic()
        self._failing_since = self._failing_since or now
        is_final = isinstance(error, PoolError) or failures >= MAX_FIRST_FAILURES
        is_raised = is_final and self._openings  # for who waits for the workers
        if not is_raised and (failures > 1 or not self._has_died_early):
            logger.error("a worker did not come up (%d in a row): %s", failures, error)
        if is_final:
            for opening in self._openings:
                if not opening.done():
                    opening.set_exception(_as_pool_error(error))
        too_long = now - self._failing_since >= self._spawn_timeout
        if not self._roster.present and (too_long or failures > MAX_FIRST_FAILURES):
            self._scheduler.fail_all(partial(_as_pool_error, error))
        if self._pause is None:
            self._pause = self._loop.call_later(pause, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._fill()

    async def _start(self, launch: Launch) -> None:
        """Start a worker and let it have tasks; see `Launch.run`."""
        link = await launch.run()
        self.started += 1
        self._scheduler.add(link)
        link.session.on_close(partial(self._ended, link))
        self._on_started(link)

    # -- ending ----------------------------------------------------------------------------

    def _let_go(self, link: Link) -> None:
        """End a worker in good order: goodbye, and the ladder for one that stays."""
        if link.seat.state is WorkerState.ENDED:
            return
        self._scheduler.remove(link)
        link.seat.become(WorkerState.ENDED)
        task = self._loop.create_task(self._end(link))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, link: Link) -> None:
        self._leaving.add(link)
        try:
            await link.session.aclose()
        finally:
            self._leaving.discard(link)

    def _ended(self, link: Link, reason: SessionClosed | None) -> None:
        """A worker's session has ended, and its process with it."""
        link.closed()
        was_let_go = link.seat.state is WorkerState.ENDED
        self._scheduler.remove(link)
        if was_let_go:
            return
        link.seat.become(WorkerState.ENDED)
        self.died += 1
        self._on_died(link, reason)
        was_killed = link.process.signal in (signal.SIGKILL, signal.SIGTERM)
        is_early = not link.has_served and self._loop.time() - link.ready_at < EARLY
        if is_early and not was_killed:
            # As good as one that never came up: not at full speed, one after the other.
            self._has_died_early = True
            self._start_failed(reason or SessionClosed("it closed its session"))
        else:
            self._fill()


def _as_pool_error(error: BaseException) -> PoolError:
    """An error of one's own for each who is told: each carries its own traceback."""
    text = str(error) if isinstance(error, IPCError) else repr(error)
    if isinstance(error, PoolError):  # which has said it all
        failure = PoolError(text)
        failure.__cause__ = error.__cause__
        failure.__suppress_context__ = True
        return failure
    failure = PoolError(f"workers don't come up: {text}")
    failure.__cause__ = error
    return failure


def _resolve(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
