"""Which task goes to which worker, and when.

Tasks wait here, in the order given, while no worker may have them. Whoever has a task hears at once
when nobody waits for it any longer, be it the queue or a worker.

Layer 4, inside the pool. Above: the pool. Below: link, roster, policy, task.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from asyncipc.errors import Busy, PoolClosed, PoolError
from asyncipc.pool.link import Link, timed_out
from asyncipc.pool.policy import Durations
from asyncipc.pool.roster import Roster, Seat, WorkerState
from asyncipc.pool.task import PoolTask
from asyncipc.pool.work import Work
from asyncipc.session.deadlines import Deadlines

__all__ = ["Scheduler"]


class Scheduler:
    """The tasks of a pool that wait, and the workers that could have them.

    :param concurrency: async functions that one worker runs at once
    :param count: workers that may have tasks at the same time
    :param max_queued: tasks that may wait
    :ivar on_change: called when a worker ended a task, and when it got one that may be its last
    """

    on_change: Callable[[Link], None]  # set by the engine

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        concurrency: int,
        count: int,
        max_queued: int,
    ) -> None:
        self._loop = loop
        self._max_queued = max_queued
        self._waiting: OrderedDict[int, PoolTask[Any]] = OrderedDict()
        self._returned: list[PoolTask[Any]] = []
        self._deadlines = Deadlines(loop, self._waiting, self._expire)
        self._durations = Durations()
        self._is_giving_out = False
        self._links: dict[Seat, Link] = {}
        self._readiness: set[asyncio.Future[None]] = set()  # where requests wait for a worker
        self.roster: Roster = Roster(concurrency, count)
        self.moved: int = 0

    @property
    def queued(self) -> int:
        """Tasks that wait for a worker."""
        return len(self._waiting) + len(self._returned)

    @property
    def links(self) -> list[Link]:
        """The workers, by their numbers."""
        return sorted(self._links.values(), key=_link_number)

    # -- workers ---------------------------------------------------------------------------

    def add(self, link: Link) -> None:
        """A worker is ready."""
        link.seat.become(WorkerState.READY)
        self._links[link.seat] = link
        self.roster.seats.append(link.seat)
        self.resumed()

    def link_of(self, seat: Seat) -> Link:
        """The worker of a seat of the roster."""
        return self._links[seat]

    def resumed(self) -> None:
        """A worker takes tasks, which may not have been so."""
        for future in self._readiness:
            if not future.done():
                future.set_result(None)
        self.give_out()

    def resume_all(self) -> None:
        """Have the workers that are paused take tasks."""
        for seat in self.roster.seats:
            if seat.state is WorkerState.PAUSED:
                seat.become(WorkerState.READY)
        self.resumed()

    def remove(self, link: Link) -> None:
        """A worker is gone."""
        if self._links.pop(link.seat, None) is not None:
            self.roster.seats.remove(link.seat)

    def least_loaded(self) -> Link | None:
        """The worker that may answer a request first."""
        seat = self.roster.least_loaded()
        return None if seat is None else self._links[seat]

    def ready(self) -> list[Link]:
        """The workers that are not paused or on their way out, by their numbers."""
        return [
            link
            for link in self.links
            if link.seat.state is WorkerState.READY and not link.seat.is_doomed
        ]

    async def wait_ready(self) -> None:
        """Wait until a worker takes tasks that did not.

        :raises PoolError: there will be none soon; `PoolClosed` where that is why
        """
        future = self._loop.create_future()
        self._readiness.add(future)
        try:
            await future
        finally:
            self._readiness.discard(future)

    # -- tasks -----------------------------------------------------------------------------

    def submit(self, task: PoolTask[Any], *, bounded: bool) -> None:
        """Give a task to a worker, or let it wait for one.

        :param bounded: not beside more than ``max_queued`` others
        :raises Busy: so many wait already
        """
        if not self._waiting and self._place(task):
            return
        if bounded and len(self._waiting) >= self._max_queued:
            raise Busy(
                f"{len(self._waiting)} tasks wait for a worker already; max_queued is "
                f"{self._max_queued}"
            )
        self._waiting[task.number] = task
        task.holder = self
        if task.deadline is not None and task.timeout is not None:
            self._deadlines.add(task.number, task.deadline, task.work.name, task.timeout)

    def give_out(self) -> None:
        """Give waiting tasks to workers that may have them."""
        if self._is_giving_out:
            return  # one that could not be sent is over at once, and its place is free again
        waiting = self._waiting
        self._is_giving_out = True
        try:
            while waiting:
                task = next(iter(waiting.values()))
                if not self._place(task):
                    return
        finally:
            self._is_giving_out = False

    def give_up(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`."""
        self._waiting.pop(task.number, None)

    def watch(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`: a task that waits makes no progress."""

    def released(self, link: Link, work: Work, seconds: float | None) -> None:
        """See `asyncipc.pool.link.Owner`."""
        if work.key is not None and seconds is not None:
            self._durations.note(work.key, seconds)
        self.on_change(link)
        if self._waiting and link.seat.load <= link.seat.refill_at:
            self.give_out()

    def doomed(self, link: Link) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.on_change(link)

    def freed(self, link: Link) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.on_change(link)
        self.resumed()

    def returned(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.moved += 1
        if not self._returned:
            # Not at once: the worker that it comes from hears of its own death right now.
            self._loop.call_soon(self._take_back)
        self._returned.append(task)
        task.holder = self

    def cancel_all(self) -> None:
        """Give up every task."""
        self._take_back()
        for task in list(self._waiting.values()):
            task.cancel()
        for link in self._links.values():
            link.cancel_all()

    def fail_all(self, make_error: Callable[[], PoolError]) -> None:
        """There is no worker for those that wait, and there will be none."""
        self._take_back()
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for task in waiting:
            task.holder = None
            task.fail(make_error())
        self._fail_readiness(make_error)

    def close(self) -> None:
        """There will be no more tasks and requests."""
        self._deadlines.close()
        self._fail_readiness(lambda: PoolClosed("the pool was closed meanwhile"))

    def _fail_readiness(self, make_error: Callable[[], PoolError]) -> None:
        for future in self._readiness:
            if not future.done():
                future.set_exception(make_error())

    def _take_back(self) -> None:
        returned, self._returned = self._returned, []
        returned.sort(key=_number, reverse=True)
        for task in returned:
            if task.done():
                continue
            self._waiting[task.number] = task
            self._waiting.move_to_end(task.number, last=False)
            if task.deadline is not None and task.timeout is not None:
                self._deadlines.add(task.number, task.deadline, task.work.name, task.timeout)
        self.give_out()

    def _place(self, task: PoolTask[Any]) -> bool:
        """Give a task to a worker; False if none may have it now."""
        work = task.work
        ahead = self._durations.ahead(work.key) if work.key is not None else 0
        seat = self.roster.pick(exclusive=work.exclusive, ahead=ahead)
        if seat is None:
            return False
        if self._waiting:
            self._waiting.pop(task.number, None)
        link = self._links[seat]
        link.send(task, quick=ahead > 0)
        if seat.limit is not None or seat.is_doomed:
            self.on_change(link)
        return True

    def _expire(self, number: int, _name: str, _timeout: float) -> None:
        task = self._waiting.pop(number)
        task.holder = None
        task.fail(timed_out(task))


def _link_number(link: Link) -> int:
    return link.number


def _number(task: PoolTask[Any]) -> int:
    return task.number
