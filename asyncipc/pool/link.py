"""One worker as the application sees it: its session, its process, and what it has to do.

Owns the way of a task to the worker and back, and the ladder for what will not stop. Tasks are
answered in the turn of the loop in which the answer is read, with no task or future in between.

Layer 4, inside the pool. Above: the scheduler and the supervisor. Below: task, roster, session.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import Any, Final, Protocol

from asyncipc.errors import (
    IPCError,
    RequestCancelled,
    RequestRefused,
    RequestTimeout,
    SessionClosed,
    TaskTimeout,
    WorkerDied,
)
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.jobs import RESULT, STREAM
from asyncipc.pool.payload import dump
from asyncipc.pool.roster import Seat
from asyncipc.pool.starting import Started
from asyncipc.pool.task import PoolTask
from asyncipc.pool.work import Work
from asyncipc.process.handle import ProcessHandle
from asyncipc.process.stderr import StderrCapture
from asyncipc.session.ending import State
from asyncipc.session.params import DefaultTimeout
from asyncipc.session.progress import OnProgress
from asyncipc.session.session import Session

__all__ = ["Assignment", "Link", "Owner"]


class Owner(Protocol):
    """Who gives tasks to workers."""

    def released(self, link: "Link", work: Work, seconds: float | None) -> None:
        """A worker has ended a task and has room for another.

        :param seconds: how long it took, if it came to its end
        """

    def doomed(self, link: "Link") -> None:
        """A worker was told to end, because something in it will not."""

    def freed(self, link: "Link") -> None:
        """A request that nobody waited for has ended in a worker, or the worker was killed."""

    def returned(self, task: PoolTask[Any]) -> None:
        """A task that had not begun comes back: it is to be given to another worker, soon."""


class Assignment:
    """A task that a worker has; waits for the end of its call (`asyncipc.session.waiter`).

    :ivar task: None when nobody waits for it any longer
    """

    __slots__ = ("answer_id", "has_ended", "link", "quick", "task", "work")

    def __init__(self, link: "Link", task: PoolTask[Any], *, quick: bool) -> None:
        self.link: Link = link
        self.task: PoolTask[Any] | None = task
        self.work: Work = task.work
        self.quick: bool = quick
        self.answer_id: int = 0
        self.has_ended: bool = False

    def done(self) -> bool:
        """Its timeout is not its end: the worker may still be at it."""
        return self.has_ended

    def set_result(self, answer: list[Any], /) -> None:
        """The worker answered; with nothing where what it had to say were items."""
        kind, seconds, *dumped = answer or _NO_RESULT
        task = self._end(seconds)
        if task is None:
            drop_descriptors(dumped)
            return
        task.seconds = seconds
        if kind == RESULT:
            task.resolve(dumped)
        else:
            task.reject(dumped)

    def set_exception(self, error: Exception, /) -> None:
        """It timed out, or will not be answered."""
        if isinstance(error, RequestTimeout):
            self.link.stop(self)
            task, self.task = self.task, None
            if task is not None:
                task.holder = None
                task.fail(timed_out(task))
            return
        if isinstance(error, SessionClosed):
            self._worker_ended(error)
            return
        task = self._end(None)
        if task is None:
            return
        if isinstance(error, RequestRefused):
            self.link.owner.returned(task)
        elif isinstance(error, RequestCancelled):
            task.fail(RequestCancelled("the task was cancelled in the worker, not by its caller"))
        else:
            task.fail(error)

    def _worker_ended(self, error: SessionClosed) -> None:
        self.link.seat.is_doomed = True
        had_begun = self.link.had_begun(self)
        task = self._end(None)
        if task is None:
            return
        if had_begun and not task.retries:
            task.fail(self.link.death_of(task.work.name, error))
            return
        task.retries -= had_begun
        self.link.owner.returned(task)

    def _end(self, seconds: float | None) -> PoolTask[Any] | None:
        """The call is over; the task, if anybody still waits for it."""
        self.has_ended = True
        task, self.task = self.task, None
        if task is not None:
            task.holder = None
        self.link.ended(self, seconds)
        return task


class Link:
    """A worker, from its start to its end.

    :param number: of the worker in its pool, counted from 1
    :param grace: seconds between the steps that end a task which will not stop
    """

    def __init__(
        self,
        number: int,
        started: Started,
        session: Session,
        *,
        seat: Seat,
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
        self._assigned: deque[Assignment] = deque()
        self._first_at_death: Assignment | None = None
        # By the task, or the id of the answer to a request.
        self._ladders: dict[Assignment | int, asyncio.TimerHandle] = {}
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
            self.owner.returned(task)
            return
        except IPCError as error:
            assignment.set_exception(error)
            return
        task.holder = self
        task.begun(self._calls, assignment.answer_id)

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

    def stop(self, assignment: Assignment) -> None:
        """A task is to end; if it will not, the worker does, when it is that task's turn."""
        if assignment.quick:
            assignment.quick = False
            self.seat.slow += 1
        if self.has_begun(assignment):
            self._climb(assignment)

    def has_begun(self, assignment: Assignment) -> bool:
        """Whether a task may have begun: of plain functions only the first of those not ended."""
        return not assignment.work.exclusive or assignment is self._assigned[0]

    def had_begun(self, assignment: Assignment) -> bool:
        """`has_begun` when the worker died, of which its tasks hear one after the other."""
        if self._first_at_death is None:
            self._first_at_death = self._assigned[0]
        return not assignment.work.exclusive or assignment is self._first_at_death

    def ended(self, assignment: Assignment, seconds: float | None) -> None:
        """A task that the worker had is over."""
        if self._calls.watched:
            self._calls.unwatch(assignment.answer_id)
        if assignment.work.method == STREAM:
            self._calls.streams.remove(assignment.answer_id)
        if self._ladders:
            ladder = self._ladders.pop(assignment, None)
            if ladder is not None:
                ladder.cancel()
        if self._assigned[0] is assignment:
            self._assigned.popleft()
        else:
            self._assigned.remove(assignment)
        self.seat.leave(quick=assignment.quick)
        self.tasks_done += 1
        self.has_served = True
        if self._assigned and self._assigned[0].task is None:
            self._climb(self._assigned[0])  # it was given up before it could begin
        self.owner.released(self, assignment.work, seconds)

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
        for assignment in list(self._assigned):
            if assignment.task is not None:
                assignment.task.cancel()

    @property
    def is_idle(self) -> bool:
        """It has nothing to do."""
        return not (self.seat.load or self.seat.requests)

    def _assignment_of(self, task: PoolTask[Any]) -> Assignment | None:
        return next((one for one in self._assigned if one.task is task), None)

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

    def _climb(self, what: Assignment | int) -> None:
        if what not in self._ladders:
            self._ladders[what] = self._loop.call_later(self._grace, self._terminate)

    def _terminate(self) -> None:
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
        if self._killing is not None:
            self._killing.cancel()


_NO_RESULT: Final = [RESULT, 0.0, *dump(None)]


def timed_out(task: PoolTask[Any]) -> TaskTimeout:
    """What is told to who waits for a task that did not end in time."""
    return TaskTimeout(f"no result of {task.work.name} within {task.timeout:g} s")
