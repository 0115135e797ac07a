"""A task that went to a worker on its own.

It is answered in the turn of the loop in which the answer is read, with no task or future between.

Layer 4, inside the pool. Above: link. Below: carrier, task.
"""

from typing import Any, Final

from asyncipc.errors import (
    RequestCancelled,
    RequestRefused,
    RequestTimeout,
    SessionClosed,
)
from asyncipc.pool.carrier import Carrier
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.ledger import size_in_ledger
from asyncipc.pool.payload import dump
from asyncipc.pool.protocol import RESULT
from asyncipc.pool.task import PoolTask, timed_out
from asyncipc.pool.work import Work

__all__ = ["Assignment"]


class Assignment:
    """A task that a worker has; waits for the end of its call (`asyncipc.session.waiter`).

    :ivar task: None when nobody waits for it any longer
    :ivar quick: it is known to be over in a moment
    """

    unaccounted: Final = 1

    __slots__ = ("_carrier", "answer_id", "has_ended", "quick", "task", "work")

    def __init__(self, carrier: Carrier, task: PoolTask[Any], *, quick: bool) -> None:
        self._carrier = carrier
        self.task: PoolTask[Any] | None = task
        self.work: Work = task.work
        self.quick: bool = quick
        self.answer_id: int = 0
        self.has_ended: bool = False

    @property
    def exclusive(self) -> bool:
        """It is a plain function."""
        return self.work.exclusive

    @property
    def is_given_up(self) -> bool:
        """Nobody waits for it any longer."""
        return self.task is None

    def wanted(self) -> list[PoolTask[Any]]:
        """The task, if somebody waits for it."""
        return [] if self.task is None else [self.task]

    def done(self) -> bool:
        """Its timeout is not its end: the worker may still be at it."""
        return self.has_ended

    def set_result(self, answer: list[Any], /) -> None:
        """The worker answered; with nothing where what it had to say were items."""
        kind, seconds, *dumped = answer or _NO_RESULT
        if self.work.fits_bundle:
            self._carrier.gave(self.work.key, size_in_ledger(dumped) if kind == RESULT else 1)
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
            self._carrier.stop(self)
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
            self._carrier.returned(task)
        elif isinstance(error, RequestCancelled):
            task.fail(RequestCancelled("the task was cancelled in the worker, not by its caller"))
        else:
            task.fail(error)

    def _worker_ended(self, error: SessionClosed) -> None:
        had_begun = self._carrier.had_begun(self)
        task = self._end(None)
        if task is None:
            return
        if had_begun:
            self._carrier.died_with(task, error)
        else:
            self._carrier.returned(task)

    def _end(self, seconds: float | None) -> PoolTask[Any] | None:
        """The call is over; the task, if anybody still waits for it."""
        self.has_ended = True
        task, self.task = self.task, None
        if task is not None:
            task.holder = None
        self._carrier.ended(self, seconds)
        return task


_NO_RESULT: Final = [RESULT, 0.0, *dump(None)]
