"""Which task goes to which worker, and when.

Tasks wait here, in the order given, while no worker may have them. Whoever has a task hears at once
when nobody waits for it any longer, be it the queue or a worker.

Layer 4, inside the pool. Above: the pool. Below: link, roster, policy, task.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Final

from asyncipc.errors import Busy, PoolClosed, PoolError
from asyncipc.pool.ledger import MAX_BUNDLE, ROOM
from asyncipc.pool.link import Link
from asyncipc.pool.policy import Durations, Maxima
from asyncipc.pool.roster import Roster, Seat, WorkerState
from asyncipc.pool.task import PoolTask, timed_out
from asyncipc.session.deadlines import Deadlines

__all__ = ["Scheduler"]

# Tasks that are worth a bundle, and bytes of a result beyond which too few would fit into one.
MIN_BUNDLE: Final = 2
LARGEST_RESULT: Final = ROOM // 8


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
        self._sizes = Maxima()  # of results, in a ledger
        self._is_giving_out = False
        self._is_gathering = False
        self._links: dict[Seat, Link] = {}
        self._readiness: set[asyncio.Future[None]] = set()  # where requests wait for a worker
        self.roster: Roster = Roster(concurrency, count)
        self.moved: int = 0
        self.bundled: int = 0

    @property
    def queued(self) -> int:
        """Tasks that wait for a worker."""
        return len(self._waiting) + sum(not task.done() for task in self._returned)

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
        if not self._waiting and self._place(task, gathers=True):
            return
        if bounded and len(self._waiting) >= self._max_queued and self._is_gathering:
            self.give_out()  # what waits for the end of this turn only
        if bounded and len(self._waiting) >= self._max_queued:
            raise Busy(
                f"{len(self._waiting)} tasks wait for a worker already; max_queued is "
                f"{self._max_queued}"
            )
        self._waiting[task.number] = task
        task.holder = self
        if task.deadline is not None and task.timeout is not None:
            self._deadlines.add(task.number, task.deadline, task.work.name, task.timeout)
        if not self._is_gathering:
            self._is_gathering = True
            self._loop.call_soon(self._gathered)

    def _gathered(self) -> None:
        self._is_gathering = False
        self.give_out()

    def give_out(self) -> None:
        """Give waiting tasks to workers that may have them."""
        if self._is_giving_out:
            return  # one that could not be sent is over at once, and its place is free again
        waiting = self._waiting
        self._is_giving_out = True
        try:
            while (task := next(filter(_is_wanted, waiting.values()), None)) is not None:
                ahead = self._ahead(task)
                if ahead < MIN_BUNDLE:
                    placed = self._place(task)
                else:
                    placed = self._place_together(task, ahead)
                if not placed:
                    return
        finally:
            self._is_giving_out = False

    def give_up(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`."""
        self._waiting.pop(task.number, None)

    def watch(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`: a task that waits makes no progress."""

    def released(self, link: Link) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.on_change(link)
        if self._waiting and link.seat.load <= link.seat.refill_at:
            self.give_out()

    def took(self, key: bytes, seconds: float) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self._durations.note(key, seconds)

    def gave(self, key: bytes, size: float) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self._sizes.note(key, size)

    def doomed(self, link: Link) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.on_change(link)

    def freed(self, link: Link) -> None:
        """See `asyncipc.pool.link.Owner`."""
        self.on_change(link)
        self.resumed()

    def returned(self, tasks: Sequence[PoolTask[Any]], *, is_gone: bool = True) -> None:
        """See `asyncipc.pool.link.Owner`."""
        for task in tasks:
            task.holder = self
        if not is_gone:
            self.bundled -= len(tasks)
            self._put_back(tasks)
            return
        self.moved += len(tasks)
        if not self._returned:
            # Not at once: the worker that they come from hears of its own death right now.
            self._loop.call_soon(self._take_back)
        self._returned += tasks

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
        self._put_back(returned)
        self.give_out()

    def _put_back(self, tasks: Sequence[PoolTask[Any]]) -> None:
        """Let them wait again, in the order in which all were given."""
        last = max(map(_number, tasks), default=-1)
        # Others may have come back a moment before.
        before = [task for _, task in takewhile(lambda item: item[0] < last, self._waiting.items())]
        for task in sorted([*tasks, *before], key=_number, reverse=True):
            if task.number in self._waiting:
                self._waiting.move_to_end(task.number, last=False)
                continue
            if task.done():
                continue
            self._waiting[task.number] = task
            self._waiting.move_to_end(task.number, last=False)
            if task.deadline is not None and task.timeout is not None:
                self._deadlines.add(task.number, task.deadline, task.work.name, task.timeout)

    def _place(self, task: PoolTask[Any], *, gathers: bool = False) -> bool:
        """Give a task to a worker; False if none may have it now.

        :param gathers: it may be one of many, so that it rather waits for the others than in a
            worker
        """
        work = task.work
        ahead = self._durations.ahead(work.key) if work.key is not None else 0
        waits = gathers and self._ahead(task) >= MIN_BUNDLE
        seat = self.roster.pick(exclusive=work.exclusive, ahead=0 if waits else ahead)
        if seat is None:
            return False
        if self._waiting:
            self._waiting.pop(task.number, None)
        link = self._links[seat]
        link.send(task, quick=ahead > 0)
        if seat.limit is not None or seat.is_doomed:
            self.on_change(link)
        return True

    def _place_together(self, first: PoolTask[Any], ahead: int) -> bool:
        """Give tasks that fit into a bundle to a worker, this one first; False if none may have it.

        Not more than its share to one of several workers, and half of what may wait in one: while
        it is at one bundle, it has another.
        """
        seat = self.roster.pick(exclusive=True, ahead=ahead)
        if seat is None:
            return False
        link = self._links[seat]
        if link.ledger is None:
            return self._place(first)
        if not link.takes_bundles:
            return False
        share = -(-len(self._waiting) // len(self.roster.seats))
        most = min(MAX_BUNDLE, ahead // 2, share, seat.remaining)
        tasks = self._gather(most, ahead / 2)
        if len(tasks) < MIN_BUNDLE:
            return self._place(first)
        for task in tasks:
            del self._waiting[task.number]
        self.bundled += len(tasks)
        link.send_bundle(tasks)
        self.on_change(link)
        return True

    def _gather(self, most: float, ahead: float) -> list[PoolTask[Any]]:
        """The first tasks that wait, as far as they fit into one bundle.

        :param ahead: so many such tasks may wait in a worker at least
        """
        room: float = ROOM
        tasks: list[PoolTask[Any]] = []
        key, size = None, 0.0  # of the last one: many are the same
        for task in filter(_is_wanted, self._waiting.values()):
            if task.work.key is not key:
                if self._ahead(task) < ahead:
                    break
                key = task.work.key
                size = self._sizes.of(key) or 0.0 if key is not None else 0.0
            room -= size
            if len(tasks) >= most or room < 0 or not task.fits_bundle:
                break
            tasks.append(task)
        return tasks

    def _ahead(self, task: PoolTask[Any]) -> int:
        """How many such tasks may wait in a worker as parts of bundles."""
        key = task.work.key
        if key is None or not task.fits_bundle:
            return 0
        size = self._sizes.of(key)
        if size is None or size > LARGEST_RESULT:
            return 0
        return self._durations.ahead(key)

    def _expire(self, number: int, _name: str, _timeout: float) -> None:
        task = self._waiting.pop(number)
        task.holder = None
        task.fail(timed_out(task))


def _link_number(link: Link) -> int:
    return link.number


def _is_wanted(task: PoolTask[Any]) -> bool:
    """One that was given up leaves the queue when who waited for it has had a turn."""
    return not task.done()


def _number(task: PoolTask[Any]) -> int:
    return task.number
