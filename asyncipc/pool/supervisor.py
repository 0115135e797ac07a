"""Keeps the workers: starts them, replaces those that died or have served their time, ends them.

Layer 4, inside the pool. Above: the pool. Below: starting, link, policy, the session.
"""

import asyncio
import logging
import pickle
import signal
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final

from asyncipc.errors import EncodeError, IPCError, PoolClosed, PoolError, SessionClosed
from asyncipc.peer.companion import ChildCompanion
from asyncipc.pool import logs
from asyncipc.pool.jobs import RESULT
from asyncipc.pool.link import Link
from asyncipc.pool.payload import load_failure
from asyncipc.pool.policy import Backoff, task_limit
from asyncipc.pool.roster import Seat, WorkerState
from asyncipc.pool.scheduler import Scheduler
from asyncipc.pool.starting import Started, Starter
from asyncipc.pool.worker import BEGIN, LOG, TOO_LARGE, WorkerSetup, new_settings
from asyncipc.session.handlers import Handlers
from asyncipc.session.session import Session
from asyncipc.wire.handshake import Role

__all__ = ["Supervisor", "WorkerOptions"]

logger: logging.Logger = logging.getLogger("asyncipc.pool")

# How often a worker may die before it is ready, without one that was, until the pool gives up
# opening. What a worker can say about its own failure is said at once.
MAX_FIRST_FAILURES: Final = 3

# A worker that crashes within so many seconds, without a task, has not really come up.
EARLY: Final = 5.0

# The replacement of a worker is started before the last of its tasks, or the last tenth.
LAST_SHARE: Final = 10


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What all workers of a pool have in common; see `asyncipc.Pool`."""

    setup: WorkerSetup
    max_tasks: int | None
    spawn_timeout: float
    grace: float


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
        self._count = 0
        self._options = options
        self._starter = starter
        self._scheduler = scheduler
        self._on_started = on_started
        self._on_died = on_died
        self._settings = new_settings()
        self._setup = _pickled(options.setup)
        self._backoff = Backoff()
        self._pause: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._openings: set[asyncio.Future[None]] = set()  # those who wait for all to be ready
        self._leaving: set[Link] = set()
        self._outgoing: set[Link] = set()  # those whose replacements are on their way
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
        self._count = count
        self._trim()
        if len(self._present()) >= count:
            self._tell_ready()
            return
        opening: asyncio.Future[None] = self._loop.create_future()
        self._openings.add(opening)
        self._fill()
        try:
            async with asyncio.timeout(self._options.spawn_timeout):
                await opening
        except TimeoutError as error:
            text = (
                f"{len(self._present())} of {count} workers came up within spawn_timeout "
                f"({self._options.spawn_timeout:g} s)"
            )
            if self._last_failure is not None:
                text += f"; the last one failed: {self._last_failure}"
            raise PoolError(text) from self._last_failure or error
        finally:
            self._openings.discard(opening)

    def changed(self, link: Link) -> None:
        """A worker got a task, or has ended one."""
        seat = link.seat
        if link.tasks_done and self._backoff.failures and self._has_died_early:
            self._has_died_early = False
            self._backoff.succeeded()
        if seat.limit is not None and seat.taken >= seat.limit - seat.limit // LAST_SHARE - 1:
            self._replace(link)
            if seat.taken >= seat.limit:
                self.retire(link)
        elif seat.is_doomed and seat.state is WorkerState.READY:
            seat.become(WorkerState.RETIRING)
            self._fill()
        if seat.state is WorkerState.RETIRING and link.is_idle and not link.has_died:
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
        """Start the replacement of a worker that still takes tasks."""
        # One that may run a single task would have one replacement after the other.
        if link not in self._outgoing and link.seat.taken > 0:
            self._outgoing.add(link)
            self._fill()

    def _tell_ready(self) -> None:
        for opening in self._openings:
            _resolve(opening)

    def _trim(self) -> None:
        """Retire those beyond the count, and those that were only to stay until now."""
        for link in [link for link in self._outgoing if link in self._oversized]:
            if len(self._present()) >= self._count:
                self.retire(link)
        for seat in self._scheduler.roster.to_retire(len(self._present()) - self._count):
            self.retire(next(link for link in self._scheduler.links if link.seat is seat))

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

    def _present(self) -> list[Link]:
        """The workers that count: not those on their way out."""
        return [
            link
            for link in self._scheduler.links
            if link.seat.state is not WorkerState.RETIRING and link not in self._outgoing
        ]

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        if self._is_closing or self._pause is not None:
            return
        for _ in range(self._count - len(self._present()) - len(self._starting)):
            self._last_number += 1
            task = self._loop.create_task(self._start(self._last_number))
            self._starting.add(task)
            task.add_done_callback(self._start_ended)

    def _start_ended(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if self._is_closing or task.cancelled():
            return
        error = task.exception()
        if error is None:
            if not self._has_died_early:
                self._backoff.succeeded()
            self._failing_since = self._last_failure = None
            if len(self._present()) >= self._count:
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
        if failures > 1 or not self._has_died_early:
            logger.error("a worker did not come up (%d in a row): %s", failures, error)
        is_final = isinstance(error, PoolError) or failures >= MAX_FIRST_FAILURES
        if is_final:
            for opening in self._openings:
                if not opening.done():
                    opening.set_exception(_as_pool_error(error))
        too_long = now - self._failing_since >= self._options.spawn_timeout
        if not self._present() and (too_long or failures > MAX_FIRST_FAILURES):
            self._scheduler.fail_all(partial(_as_pool_error, error))
        if self._pause is None:
            self._pause = self._loop.call_later(pause, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._fill()

    async def _start(self, number: int) -> None:
        """Start a worker and get it ready.

        :raises PoolError: it says itself why it cannot be
        :raises IPCError: it died meanwhile
        """
        try:
            async with asyncio.timeout(self._options.spawn_timeout):
                started = await self._starter.start(number)
                link = await self._connect(number, started)
        except TimeoutError as error:
            raise PoolError(
                f"a worker was not ready within spawn_timeout ({self._options.spawn_timeout:g} s)"
            ) from error
        except OSError as error:
            raise PoolError(f"a worker process cannot be made: {error}") from error
        self.started += 1
        self._scheduler.add(link)
        link.session.on_close(partial(self._ended, link))
        self._on_started(link)

    async def _connect(self, number: int, started: Started) -> Link:
        handlers = Handlers()
        handlers.on_notification(LOG)(logs.handle_record)
        session = Session(started.transport, Role.CONNECTING, self._settings, handlers)
        connection = session.connection
        connection.companion = ChildCompanion(started.process, started.stderr, self._options.grace)
        started.process.on_exit(lambda _: connection.companion_exited())
        await session.start()
        try:
            homework = self._starter.homework
            answer = await session.request(
                BEGIN,
                [homework.main, homework.argv, homework.preload, self._setup],
                timeout=None,
            )
            if answer[0] != RESULT:
                error = load_failure(answer[2:])
                raise PoolError(f"a worker could not get ready: {error!r}") from error
        except BaseException:
            started.process.kill()
            await session.aclose()
            raise
        limit = task_limit(self._options.max_tasks)
        link = Link(
            number,
            started,
            session,
            seat=Seat(limit),
            owner=self._scheduler,
            grace=self._options.grace,
        )
        handlers.on_notification(TOO_LARGE)(partial(self._too_large, link))
        return link

    def _too_large(self, link: Link, size: int) -> None:
        logger.info("worker %d has %d bytes of its own, more than max_rss", link.number, size)
        self._oversized.add(link)
        self._replace(link)

    # -- ending ----------------------------------------------------------------------------

    def _let_go(self, link: Link) -> None:
        """End a worker in good order: goodbye, and the ladder for one that stays."""
        self._outgoing.discard(link)
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
        self._outgoing.discard(link)
        was_let_go = link.seat.state is WorkerState.ENDED
        self._scheduler.remove(link)
        if was_let_go:
            return
        link.seat.become(WorkerState.ENDED)
        self.died += 1
        self._on_died(link, reason)
        was_killed = link.process.signal in (signal.SIGKILL, signal.SIGTERM)
        is_early = not link.tasks_done and self._loop.time() - link.ready_at < EARLY
        if is_early and not was_killed:
            # As good as one that never came up: not at full speed, one after the other.
            self._has_died_early = True
            self._start_failed(reason or SessionClosed("it closed its session"))
        else:
            self._fill()


def _pickled(setup: WorkerSetup) -> bytes:
    try:
        return pickle.dumps(setup, 5)
    except Exception as error:
        raise EncodeError(
            f"initializer, initargs or service cannot be given to a worker: {error}"
        ) from error


def _as_pool_error(error: BaseException) -> PoolError:
    """An error of one's own for each who is told: each carries its own traceback."""
    text = str(error) if isinstance(error, IPCError) else repr(error)
    failure = PoolError(text if isinstance(error, PoolError) else f"workers don't come up: {text}")
    failure.__cause__ = error
    return failure


def _resolve(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
