"""One worker as the application sees it: its session, its process, and what it has to do.

Owns the way of a task to the worker and back, and the ladder for what will not stop. Tasks are
answered in the turn of the loop in which the answer is read, with no task or future in between.

Layer 4, inside the pool. Above: the scheduler and the supervisor. Below: assignment, bundle, task,
roster, session.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

from asyncipc.errors import (
    IPCError,
    SessionClosed,
    WorkerDied,
)
from asyncipc.pool.assignment import Assignment
from asyncipc.pool.bundle import LONGEST_LOOK_INTERVAL, LOOK_INTERVAL, Bundle
from asyncipc.pool.ledger import SLOTS, Ledger
from asyncipc.pool.protocol import BUNDLE, STREAM
from asyncipc.pool.roster import Seat
from asyncipc.pool.starting import Started
from asyncipc.pool.task import PoolTask
from asyncipc.process.handle import ProcessHandle
from asyncipc.process.stderr import StderrCapture
from asyncipc.session.ending import State
from asyncipc.session.params import DefaultTimeout
from asyncipc.session.progress import OnProgress
from asyncipc.session.session import Session

__all__ = ["Link", "Owner"]


class Owner(Protocol):
    """Who gives tasks to workers."""

    def released(self, link: "Link") -> None:
        """A worker has ended tasks and has room for others."""

    def took(self, key: bytes, seconds: float) -> None:
        """A task of such a function took so long (see `asyncipc.pool.work.Work`)."""

    def gave(self, key: bytes, size: float) -> None:
        """Its result has so many bytes in a ledger; infinite for one that is none for bundles."""

    def doomed(self, link: "Link") -> None:
        """A worker was told to end, because something in it will not."""

    def freed(self, link: "Link") -> None:
        """A request that nobody waited for has ended in a worker, or the worker was killed."""

    def returned(self, tasks: Sequence[PoolTask[Any]], *, is_gone: bool = True) -> None:
        """Tasks that had not begun come back, to be given out again soon.

        :param is_gone: the worker takes none; else these have only waited for longer than they
            should
        """


class Link:
    """A worker, from its start to its end.

    :param number: of the worker in its pool, counted from 1
    :param ledger: for bundles; without one it gets none
    :param grace: seconds between the steps that end a task which will not stop
    """

    def __init__(
        self,
        number: int,
        started: Started,
        session: Session,
        *,
        seat: Seat,
        ledger: Ledger | None,
        owner: Owner,
        grace: float,
    ) -> None:
        self.number: int = number
        self.process: ProcessHandle = started.process
        self.stderr: StderrCapture = started.stderr
        self.session: Session = session
        self.seat: Seat = seat
        self.owner: Owner = owner
        self.tasks_done: int = 0
        self.has_served: bool = False  # it got so far that it was asked something
        self.ready_at: float = session.connection.loop.time()
        self._grace = grace
        self._calls = session.connection.exchange.calls
        self._calls.leftovers = self
        self._loop = session.connection.loop
        self._assigned: deque[Assignment | Bundle] = deque()
        self._first_at_death: Assignment | Bundle | None = None
        self.ledger: Ledger | None = ledger
        self._slots = [] if ledger is None else list(range(SLOTS))  # those that are free
        self._looking: asyncio.TimerHandle | None = None
        self._pause = LOOK_INTERVAL  # until that look
        # By what is to end, or the id of the answer to a request.
        self._ladders: dict[Assignment | Bundle | int, asyncio.TimerHandle] = {}
        self._killing: asyncio.TimerHandle | None = None

    # -- tasks -----------------------------------------------------------------------------

    def send(self, task: PoolTask[Any], *, quick: bool) -> None:
        """Give the worker a task.

        :param quick: it is known to be over in a moment
        """
        assignment = Assignment(self, task, quick=quick)
        work = task.work
        self.seat.take(exclusive=work.exclusive, quick=quick)
        self._assigned.append(assignment)
        timeout = None if task.deadline is None else max(0.0, task.deadline - monotonic())
        metadata = work.metadata
        try:
            assignment.answer_id = self._calls.begin(
                assignment, work.method, work.params, timeout, metadata=metadata
            )
        except SessionClosed:
            # The worker has just gone: its task has not begun.
            self.seat.is_doomed = True
            self._assigned.pop()
            self.seat.leave(quick=quick)
            self.owner.returned((task,))
            return
        except IPCError as error:
            assignment.set_exception(error)
            return
        task.holder = self
        task.begun(self._calls, assignment.answer_id)

    @property
    def takes_bundles(self) -> bool:
        """It can have one more."""
        return bool(self._slots)

    def send_bundle(self, tasks: Sequence[PoolTask[Any]]) -> None:
        """Give the worker tasks that are known to be over in a moment, in one message."""
        ledger = self.ledger
        assert ledger is not None, "it takes bundles"
        bundle = Bundle(self, ledger, self._slots.pop(), tasks)
        params: list[Any] = [bundle.slot]
        for task in tasks:
            params += task.work.params
            task.holder = bundle
        ledger.clear(bundle.slot)
        self.seat.take(exclusive=True, quick=True, count=len(tasks))
        self._assigned.append(bundle)
        try:
            bundle.answer_id = self._calls.begin(bundle, BUNDLE, params, None)
        except SessionClosed:
            # The worker has just gone: they have not begun.
            self.seat.is_doomed = True
            self._assigned.pop()
            self.seat.leave(quick=True, count=len(tasks))
            self.owner.returned(tasks)
        except IPCError as error:
            bundle.set_exception(error)
        else:
            self._look_later()

    def watch(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`."""
        assignment = self._assignment_of(task)
        if assignment is not None:
            self._calls.watch(assignment.answer_id, task.update)

    def give_up(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`."""
        assignment = self._assignment_of(task)
        if assignment is not None:
            assignment.task = None
            self.stop(assignment)
            self._calls.abandon(assignment.answer_id)

    def stop(self, given: Assignment | Bundle) -> None:
        """What it has is to end; if it will not, the worker does, when it is its turn."""
        self.is_slow(given)
        if self.has_begun(given):
            self._climb(given)
        if isinstance(given, Bundle) and given.is_awaited:
            given.is_awaited = False  # it is asked once: it may take its time to clean up
            self._calls.abandon(given.answer_id)

    def awaits(self, slot: int) -> None:
        """The worker awaits a task of a bundle, which none that is for bundles makes it do."""
        first = self._assigned[0] if self._assigned else None
        if isinstance(first, Bundle) and first.slot == slot:
            first.is_awaited = True
            if first.unwanted is not None:
                self.stop(first)

    def is_slow(self, given: Assignment | Bundle) -> None:
        """Something that was to be over in a moment is not."""
        if given.quick:
            given.quick = False
            self.seat.slow += given.unaccounted

    def has_begun(self, given: Assignment | Bundle) -> bool:
        """Whether it may have begun: of plain functions only the first of those not ended."""
        return not given.exclusive or given is self._assigned[0]

    def had_begun(self, given: Assignment | Bundle) -> bool:
        """`has_begun` when the worker died, of which its tasks hear one after the other."""
        self.seat.is_doomed = True
        if self._first_at_death is None:
            self._first_at_death = self._assigned[0]
        return not given.exclusive or given is self._first_at_death

    def died_with(self, task: PoolTask[Any], error: SessionClosed) -> None:
        """The worker died while it ran a task."""
        if task.retries:
            task.retries -= 1
            self.owner.returned((task,))
        else:
            task.fail(self.death_of(task.work.name, error))

    def ended(self, assignment: Assignment, seconds: float | None) -> None:
        """A task that the worker had is over."""
        if self._calls.watched:
            self._calls.unwatch(assignment.answer_id)
        if assignment.work.method == STREAM:
            self._calls.streams.remove(assignment.answer_id)
        self.left(1, quick=assignment.quick)
        self._take_off(assignment)
        if seconds is not None:
            self.took(assignment.work.key, seconds)
        self.owner.released(self)

    def bundle_ended(self, bundle: Bundle, rest: Sequence[PoolTask[Any]], *, is_gone: bool) -> None:
        """See `asyncipc.pool.carrier.Carrier`."""
        self.left(bundle.unaccounted - len(rest), quick=bundle.quick)
        self._slots.append(bundle.slot)
        if rest:
            self.seat.leave(quick=bundle.quick, count=len(rest))
            self.seat.hand_back(len(rest))
            self.owner.returned(rest, is_gone=is_gone)
        self._take_off(bundle)
        self.owner.released(self)

    def took(self, key: bytes | None, seconds: float) -> None:
        """See `asyncipc.pool.carrier.Carrier`."""
        if key is not None:
            self.owner.took(key, seconds)

    def gave(self, key: bytes | None, size: float) -> None:
        """See `asyncipc.pool.carrier.Carrier`."""
        if key is not None:
            self.owner.gave(key, size)

    def returned(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.carrier.Carrier`."""
        self.owner.returned((task,))

    def left(self, count: int, *, quick: bool) -> None:
        """So many of its tasks are over."""
        self.seat.leave(quick=quick, count=count)
        self.tasks_done += count
        self.has_served = True

    def _take_off(self, given: Assignment | Bundle) -> None:
        """It is over."""
        if self._ladders:
            ladder = self._ladders.pop(given, None)
            if ladder is not None:
                ladder.cancel()
        if self._assigned[0] is given:
            self._assigned.popleft()
        else:
            self._assigned.remove(given)
        if self._assigned:
            first = self._assigned[0]
            if first.is_given_up:
                self._climb(first)  # it was given up before it could begin
            elif isinstance(first, Bundle):
                self._look_later()

    def _look_later(self, pause: float = LOOK_INTERVAL) -> None:
        if self._looking is not None:
            if pause >= self._pause:
                return
            self._looking.cancel()
        self._pause = pause
        self._looking = self._loop.call_later(pause, self._look)

    def _look(self) -> None:
        self._looking = None
        first = self._assigned[0] if self._assigned else None
        if isinstance(first, Bundle):
            is_at_the_same = first.look()
            self._look_later(
                min(2 * self._pause, LONGEST_LOOK_INTERVAL) if is_at_the_same else LOOK_INTERVAL
            )

    def death_of(self, name: str | None, error: SessionClosed) -> WorkerDied:
        """The worker's death, for who waits for a task that died with it; or in general."""
        return WorkerDied(
            f"the worker (pid {self.process.pid}) died" + (f" while it ran {name}" if name else ""),
            exit_code=getattr(error, "exit_code", None),
            signal=getattr(error, "signal", None),
            stderr_tail=getattr(error, "stderr_tail", ""),
        )

    def cancel_all(self) -> None:
        """Give up every task it has."""
        for given in list(self._assigned):
            for task in given.wanted():
                task.cancel()

    @property
    def is_idle(self) -> bool:
        """It has nothing to do."""
        return not (self.seat.load or self.seat.requests)

    def _assignment_of(self, task: PoolTask[Any]) -> Assignment | None:
        return next(
            (one for one in self._assigned if isinstance(one, Assignment) and one.task is task),
            None,
        )

    # -- requests --------------------------------------------------------------------------

    async def ask(
        self,
        method: object,
        params: object,
        timeout: float | DefaultTimeout | None,
        on_progress: OnProgress | None,
    ) -> Any:
        """Have the worker's service answer a request; see `asyncipc.Pool.request`."""
        self.seat.requests += 1
        self.has_served = True
        try:
            return await self.session.request(
                method, params, timeout=timeout, on_progress=on_progress
            )
        except SessionClosed as error:
            self.seat.is_doomed = True
            raise self.death_of(f"the method {method!r:.60}", error) from error
        finally:
            self.seat.requests -= 1

    def given_up(self, answer_id: int) -> None:
        """See `asyncipc.session.waiter.Leftovers`: the worker is at it until it says otherwise."""
        self.seat.requests += 1
        self.seat.overdue += 1
        self._climb(answer_id)

    def over(self, answer_id: int) -> None:
        """See `asyncipc.session.waiter.Leftovers`."""
        ladder = self._ladders.pop(answer_id, None)
        if ladder is not None:
            ladder.cancel()
            self.seat.requests -= 1
            self.seat.overdue -= 1
            if self.session.connection.state is State.CLOSED:
                self.seat.is_doomed = True
            self.owner.freed(self)

    # -- the ladder ------------------------------------------------------------------------

    def _climb(self, what: Assignment | Bundle | int) -> None:
        if isinstance(what, Bundle):
            at = what.unwanted
            if at is None:
                return  # the worker has gone on meanwhile
            if what in self._ladders and at != what.stopping:
                self._ladders.pop(what).cancel()  # it was for another task, which has ended
            what.stopping = at
        if what not in self._ladders:
            self._ladders[what] = self._loop.call_later(self._grace, self._terminate, what)

    def _terminate(self, what: Assignment | Bundle | int) -> None:
        if isinstance(what, Bundle) and what.unwanted != what.stopping:
            del self._ladders[what]
            self._climb(what)
            return
        # It may still answer, which saves it no longer.
        self.seat.is_doomed = True
        self.process.terminate_once()
        if self._killing is None:
            self._killing = self._loop.call_later(self._grace, self._kill)
        self.owner.doomed(self)

    def _kill(self) -> None:
        self.seat.is_killed = True
        self.process.kill()
        self.owner.freed(self)

    def closed(self) -> None:
        """It is dead."""
        for timer in (self._killing, self._looking):
            if timer is not None:
                timer.cancel()
        if self.ledger is not None:
            self.ledger.close()
