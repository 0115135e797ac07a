"""Tasks that go to a worker together, because each of them is over in a moment.

The way there and back, which costs more than they do, is made once for all. For each of them
nothing else is different: the ledger tells how it has ended, also when the worker has died, and it
can be given up on its own.

Layer 4, inside the pool. Above: link. Below: carrier, ledger, task.
"""

from collections.abc import Sequence
from typing import Any, Final

from asyncipc.errors import RequestRefused, SessionClosed
from asyncipc.pool.carrier import Carrier
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.ledger import Ledger
from asyncipc.pool.payload import load
from asyncipc.pool.protocol import FAILURE, RESULT
from asyncipc.pool.task import PoolTask

__all__ = ["LOOK_INTERVAL", "Bundle"]

# Seconds between two looks at what a worker has done of a bundle that it has not answered. It
# should have been answered long before, so each task that has ended by then is told so: the others
# may take their time.
LOOK_INTERVAL: Final = 0.005


class Bundle:
    """Tasks that a worker has; waits for the end of their call (`asyncipc.session.waiter`).

    :param slot: of the ledger
    :ivar quick: nothing in it is known to take longer than it should
    :ivar unaccounted: how many of its tasks the worker is not known to have ended
    """

    __slots__ = (
        "_carrier",
        "_has_ended",
        "_ledger",
        "_seen",
        "_tasks",
        "_told",
        "answer_id",
        "keys",
        "quick",
        "slot",
        "unaccounted",
    )

    exclusive: Final = True  # all of its functions are plain ones
    is_given_up: Final = False  # its tasks are, one by one

    def __init__(
        self, carrier: Carrier, ledger: Ledger, slot: int, tasks: Sequence[PoolTask[Any]]
    ) -> None:
        self._carrier = carrier
        self._ledger = ledger
        self._tasks: list[PoolTask[Any] | None] = list(tasks)  # None: nobody waits for it any more
        self._has_ended = False
        self._seen = -1  # tasks that had ended at the last look
        self._told = 0  # tasks that were told how they ended
        self.slot: int = slot
        self.answer_id: int = 0
        self.quick: bool = True
        self.unaccounted: int = len(tasks)
        self.keys: set[bytes | None] = {task.work.key for task in tasks}

    @property
    def is_unwanted(self) -> bool:
        """The worker is at it, and nobody waits for the task that it is at."""
        at = self._ledger.count(self.slot)
        return at < len(self._tasks) and self._tasks[at] is None

    def wanted(self) -> list[PoolTask[Any]]:
        """The tasks that somebody waits for."""
        return [task for task in self._tasks if task is not None]

    # -- for its tasks ---------------------------------------------------------------------

    def give_up(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`."""
        index = self._tasks.index(task)
        self._tasks[index] = None
        self._ledger.give_up(self.slot, index)
        if index == self._ledger.count(self.slot) and self._carrier.has_begun(self):
            self._carrier.stop(self)

    def watch(self, task: PoolTask[Any]) -> None:
        """See `asyncipc.pool.task.Holder`: a task whose progress is wanted is in no bundle."""

    # -- for its call ----------------------------------------------------------------------

    def done(self) -> bool:
        """It wants to hear nothing more."""
        return self._has_ended

    def set_result(self, answer: list[Any], /) -> None:
        """The worker answered."""
        longest = None
        if answer[0] == RESULT:
            _, _, ended, longest, *last = answer
            self._tell_noted(ended - bool(last))
            if last:
                self._tell_next(last[0], last[1:])
        else:  # what runs the tasks has failed itself, for want of memory perhaps
            self._tell_noted(self._ledger.count(self.slot))
            self._tell_next(FAILURE, answer[2:])
        self._end(longest)

    def set_exception(self, error: Exception, /) -> None:
        """The worker has died, or will not answer."""
        if isinstance(error, SessionClosed):
            if self._carrier.had_begun(self):
                self._tell_noted(self._ledger.count(self.slot))
                task = self._take_next()
                if task is not None:
                    self._carrier.died_with(task, error)
        elif not isinstance(error, RequestRefused):
            for task in self.wanted():
                task.holder = None
                task.fail(error)
            self._tasks.clear()
        self._end(None)

    def look(self) -> bool:
        """See what the worker, which is at it, has done of it.

        :returns: True if it is at the same task as at the last look. Those before are told how
            they ended, and there is nothing more to see until it is over.
        """
        count = self._ledger.count(self.slot)
        if count != self._seen:
            self._seen = count
            return False
        told = self._told
        self._tell_noted(count)
        self.unaccounted -= count - told
        self._carrier.left(count - told, quick=self.quick)
        if self.is_unwanted:
            self._carrier.stop(self)
        else:
            self._carrier.is_slow(self)
        return True

    def _end(self, longest: float | None) -> None:
        self._has_ended = True
        rest = self.wanted()
        for task in rest:
            task.holder = None
        self._carrier.bundle_ended(self, rest, longest)

    def _tell_noted(self, count: int) -> None:
        """Tell the first so many how they have ended, by the ledger."""
        for kind, pickled in self._ledger.outcomes(self.slot, self._told, count):
            task = self._take_next()
            if task is None:
                continue
            if kind == RESULT:
                task.resolve([pickled])
            else:
                task.reject(load([pickled]))

    def _tell_next(self, kind: int, outcome: list[Any]) -> None:
        """Tell the next how it has ended."""
        task = self._take_next()
        if task is None:
            drop_descriptors(outcome)
        elif kind == RESULT:
            task.resolve(outcome)
        else:
            task.reject(outcome)

    def _take_next(self) -> PoolTask[Any] | None:
        if self._told == len(self._tasks):
            return None
        index = self._told
        task, self._tasks[index] = self._tasks[index], None
        self._told = index + 1
        if task is not None:
            task.holder = None
        return task
