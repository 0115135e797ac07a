"""Who is in the pool and who gets the next task: pure, so that it can be tried without a process.

Layer 4, inside the pool. Above: the scheduler and the supervisor.
"""

import enum
import math
from typing import Final

__all__ = ["Roster", "Seat", "WorkerState"]


class WorkerState(enum.Enum):
    """The life of a worker.

    ::

        STARTING -> READY <-> PAUSED
                      |          |
                      +-> RETIRING -> ENDED   (from every state, by a death)

    A worker that retires because there were too many is READY again where there are too few.
    """

    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    RETIRING = "retiring"
    ENDED = "ended"


_NEXT: Final[dict[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.RETIRING, WorkerState.ENDED}),
    WorkerState.READY: frozenset({WorkerState.PAUSED, WorkerState.RETIRING, WorkerState.ENDED}),
    WorkerState.PAUSED: frozenset({WorkerState.READY, WorkerState.RETIRING, WorkerState.ENDED}),
    WorkerState.RETIRING: frozenset({WorkerState.READY, WorkerState.ENDED}),
    WorkerState.ENDED: frozenset(),
}


class Seat:
    """The place of one worker.

    :ivar state: see `WorkerState`
    :ivar load: tasks that it has and that have not ended
    :ivar requests: of `asyncipc.Pool.request`, which are no tasks, and under way in it; until it
        has ended them, whoever waits
    :ivar overdue: of its requests, those that nobody waits for any longer. It gets nothing before
        they have ended: they may never, and what came behind them would end with them.
    :ivar slow: of its tasks, those that are not known to be over in a moment
    :ivar is_exclusive: what it has are plain functions, which run one at a time
    :ivar refill_at: with so many left or fewer it is given more, several at a time where they are
        tiny
    :ivar is_doomed: it is dead, or about to be: it gets nothing more, whatever its state
    :ivar is_killed: it got SIGKILL and counts no longer, though the kernel may need its time
    :ivar is_surplus: it retires for no other reason than that there are too many
    :ivar is_replaced: its replacement is there or on its way, and counts instead of it
    :ivar taken: tasks that it ever got
    :ivar limit: how many it may get in all; None: any number
    """

    __slots__ = (
        "is_doomed",
        "is_exclusive",
        "is_killed",
        "is_replaced",
        "is_surplus",
        "limit",
        "load",
        "overdue",
        "refill_at",
        "requests",
        "slow",
        "state",
        "taken",
    )

    def __init__(self, limit: int | None = None) -> None:
        self.state: WorkerState = WorkerState.STARTING
        self.load: int = 0
        self.requests: int = 0
        self.overdue: int = 0
        self.slow: int = 0
        self.is_exclusive: bool = False
        self.refill_at: int = 0
        self.is_doomed: bool = False
        self.is_replaced: bool = False
        self.is_killed: bool = False
        self.is_surplus: bool = False
        self.taken: int = 0
        self.limit: int | None = limit

    def become(self, state: WorkerState) -> None:
        """Go on to a state.

        :raises ValueError: there is no way from here to there
        """
        if state not in _NEXT[self.state]:
            raise ValueError(f"a worker that is {self.state.value} cannot become {state.value}")
        self.state = state

    @property
    def takes_tasks(self) -> bool:
        """It is ready, nothing in it is overdue, and it has not had all it may have."""
        if self.state is not WorkerState.READY or self.is_doomed or self.overdue:
            return False
        return self.limit is None or self.taken < self.limit

    @property
    def is_present(self) -> bool:
        """It counts as one of the pool's workers: it is not on its way out."""
        return self.state is not WorkerState.RETIRING and not self.is_replaced

    @property
    def remaining(self) -> float:
        """How many tasks it may still get."""
        return math.inf if self.limit is None else self.limit - self.taken

    def take(self, *, exclusive: bool, quick: bool, count: int = 1) -> None:
        """It gets tasks."""
        self.load += count
        self.taken += count
        self.is_exclusive = exclusive
        if not quick:
            self.slow += count

    def hand_back(self, count: int) -> None:
        """It has not begun tasks that it got, and will not."""
        self.taken -= count

    def leave(self, *, quick: bool, count: int = 1) -> None:
        """It has tasks no longer."""
        self.load -= count
        if not quick:
            self.slow -= count


class Roster:
    """The seats of a pool.

    There may be more of them than workers that may work at once: those on their way out are at
    their last tasks, and their replacements are there before they are needed.

    :param concurrency: async functions that one worker may run at once
    :param count: workers that may have tasks at the same time, whatever their state
    """

    def __init__(self, concurrency: int, count: int) -> None:
        self._concurrency = concurrency
        self.count: int = count
        self.seats: list[Seat] = []

    def pick(self, *, exclusive: bool, ahead: int) -> Seat | None:
        """Who gets a task: the one with the least to do that may have it, or nobody yet.

        :param exclusive: the task is a plain function, which needs a worker to itself
        :param ahead: how many such tasks may wait in a worker that is busy with another
        """
        room = 1 + ahead if exclusive else self._concurrency
        none_more = len(self.seats) > self.count and self._are_enough_busy()
        best = None
        for seat in self.seats:
            if not seat.takes_tasks:
                continue
            if seat.load == 0:
                if none_more:
                    continue
                if seat.requests == 0:
                    best = seat
                    break
            # Behind something slow it would wait while others have nothing to do.
            elif (
                seat.is_exclusive is not exclusive or (exclusive and seat.slow) or seat.load >= room
            ):
                continue
            if best is None or _load(seat) < _load(best):
                best = seat
        if best is not None:
            best.refill_at = room // 2 if exclusive else room - 1
        return best

    def least_loaded(self) -> Seat | None:
        """Who gets a request that needs no worker to itself."""
        ready = [seat for seat in self.seats if seat.takes_tasks]
        return min(ready, key=_delay, default=None)

    @property
    def present(self) -> int:
        """How many seats count as the pool's workers."""
        return sum(seat.is_present for seat in self.seats)

    def to_retire(self) -> list[Seat]:
        """The seats to give up where there are too many: those with the least to do."""
        present = sorted((seat for seat in self.seats if seat.is_present), key=_load)
        return present[: max(0, len(present) - self.count)]

    def to_keep(self) -> list[Seat]:
        """The seats to take back where there are too few: those given up without need."""
        leaving = [
            seat
            for seat in self.seats
            if seat.state is WorkerState.RETIRING and seat.is_surplus and not seat.is_doomed
        ]
        return leaving[: max(0, self.count - self.present)]

    def _are_enough_busy(self) -> bool:
        busy = sum(seat.load > 0 and not seat.is_killed for seat in self.seats)
        return busy >= self.count


def _load(seat: Seat) -> int:
    return seat.load + seat.requests


def _delay(seat: Seat) -> tuple[bool, int]:
    """How long a request may have to wait: a plain function lets nothing in before it is over."""
    return seat.load > 0 and seat.is_exclusive, _load(seat)
