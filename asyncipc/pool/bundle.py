"""Tasks that go to a worker together, because each of them is over in a moment.

The way there and back, which costs more than they do, is made once for all. For each of them
nothing else is different: the ledger tells how it has ended, also when the worker has died, and it
can be given up on its own.

Layer 4, inside the pool. Above: link. Below: carrier, ledger, task.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from asyncipc.errors import RequestRefused, SessionClosed
from asyncipc.pool.carrier import Carrier
from asyncipc.pool.descriptors import drop_descriptors
from asyncipc.pool.ledger import ROOM, Ledger, size_in_ledger
from asyncipc.pool.payload import load, load_failure
from asyncipc.pool.protocol import FAILURE, RESULT
from asyncipc.pool.task import PoolTask

__all__ = ["LONGEST_LOOK_INTERVAL", "LOOK_INTERVAL", "Bundle"]

# Seconds until the first look at what a worker has done of a bundle that it has not answered, and
# between two looks at most, which come ever more rarely while there is nothing new. It should have
# been answered long before, so that who has ended is told at last: the others may take their time.
LOOK_INTERVAL: Final = 0.005
LONGEST_LOOK_INTERVAL: Final = 0.25


class Bundle:
    """Tasks that a worker has; waits for the end of their call (`asyncipc.session.waiter`).

    :param slot: of the ledger
    :ivar quick: nothing in it is known to take longer than it should
    :ivar is_awaited: the worker awaits the task that it is at, and was not asked to cancel it
    :ivar stopping: the task for which the worker is being ended, if it does not stop before
    :ivar unaccounted: how many of its tasks the worker is not known to have ended
    """

    __slots__ = (
        "_carrier",
        "_has_ended",
        "_keys",
        "_ledger",
        "_seen",
        "_tasks",
        "_told",
        "answer_id",
        "is_awaited",
        "quick",
        "slot",
        "stopping",
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
        self.stopping: int | None = None
        self.is_awaited: bool = False
        self.unaccounted: int = len(tasks)
        self._keys = [task.work.key for task in tasks]

    @property
    def unwanted(self) -> int | None:
        """The task that the worker is at, if it is at this bundle and nobody waits for it."""
        at = self._ledger.count(self.slot)
        return at if at < len(self._tasks) and self._tasks[at] is None else None

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
        """The worker answered (see `asyncipc.pool.bundle_runner.Ran`)."""
        if answer[0] == FAILURE:  # what runs the tasks has failed itself
            self._failed(load_failure(answer[2:]))
            return
        _, _, ended, slowest, seconds, is_awaited, *last = answer
        self._tell_noted(ended - bool(last))
        if last:
            kind, *outcome = last
            self._carrier.gave(self._keys[ended - 1], ROOM)
            self._tell_next(kind, outcome)
        if slowest >= 0:
            self._carrier.took(self._keys[slowest], seconds)
        if is_awaited:
            self._carrier.gave(self._keys[ended - 1], math.inf)
        self._end()

    def set_exception(self, error: Exception, /) -> None:
        """The worker has died, or will not answer."""
        if isinstance(error, SessionClosed):
            if self._carrier.had_begun(self):
                self._tell_noted(self._ledger.count(self.slot))
                task = self._take_next()
                if task is not None:
                    self._carrier.died_with(task, error)
            self._end(is_gone=True)
        elif isinstance(error, RequestRefused):
            self._end(is_gone=True)
        else:
            self._failed(error)

    def look(self) -> bool:
        """See what the worker, which is at it, has done of it; whether that was nothing new.

        What has ended before the last look is told so. (Not what has ended since: the memory of
        one processor may show that another counts a task before it shows the outcome.)
        """
        count = self._ledger.count(self.slot)
        if count != self._seen:
            self._seen = count
            return False
        told = self._told
        self._tell_noted(count)
        self.unaccounted -= count - told
        self._carrier.left(count - told, quick=self.quick)
        if self.unwanted is not None:
            self._carrier.stop(self)
        else:
            self._carrier.is_slow(self)
        return True

    def _failed(self, error: Exception) -> None:
        """There is no answer because of the task that the worker was at."""
        self._tell_noted(self._ledger.count(self.slot))
        task = self._take_next()
        if task is not None:
            task.fail(error)
        self._end()

    def _end(self, *, is_gone: bool = False) -> None:
        self._has_ended = True
        rest = self.wanted()
        for task in rest:
            task.holder = None
        self._carrier.bundle_ended(self, rest, is_gone=is_gone)

    def _tell_noted(self, count: int) -> None:
        """Tell the first so many how they have ended, by the ledger."""
        outcomes = self._ledger.outcomes(self.slot, self._told, count)
        if not outcomes:
            return
        sizes = [size_in_ledger([pickled]) for _, pickled in outcomes]
        largest = max(sizes)
        self._carrier.gave(self._keys[self._told + sizes.index(largest)], largest)
        for kind, pickled in outcomes:
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
