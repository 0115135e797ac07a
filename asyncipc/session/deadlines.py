"""One timer for all the deadlines of a session.

Most calls are answered long before their deadline, so nothing is done when they are: their
entries stay in a heap until the timer or a clean-up passes by.

Layer 2, inside the session.
"""

import asyncio
import heapq
from collections.abc import Callable, Container
from time import monotonic

__all__ = ["Deadlines"]

# Clean up when there are this many times more entries than calls, and at least this many.
SLACK = 4
SMALLEST_CLEANUP = 1024


class Deadlines:
    """The deadlines of calls, by id.

    :param live: the ids of the calls that still wait; others are skipped
    :param expire: called with the id, method and timeout (seconds) of a call when it is over
    """

    __slots__ = ("_cleanup_at", "_expire", "_heap", "_live", "_loop", "_next", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        live: Container[int],
        expire: Callable[[int, str, float], None],
    ) -> None:
        self._loop = loop
        self._live = live
        self._expire = expire
        self._heap: list[tuple[float, int, str, float]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = float("inf")
        self._cleanup_at = SMALLEST_CLEANUP

    def add(self, call: int, deadline: float, method: str, timeout: float) -> None:
        """Expire a call at ``deadline``, on the clock of `time.monotonic`."""
        heapq.heappush(self._heap, (deadline, call, method, timeout))
        if deadline < self._next:
            self._arm(deadline)
        if len(self._heap) > self._cleanup_at:
            self._clean_up()

    def extend(self, call: int, seconds: float) -> None:
        """Expire a call no sooner than ``seconds`` from now; nothing if it has no deadline.

        Rare, so it may look through the whole heap.
        """
        deadline = monotonic() + seconds
        for position, (old, entry, method, timeout) in enumerate(self._heap):
            if entry == call and deadline > old:
                # The timer may fire too early now, and then finds nothing to do.
                self._heap[position] = (deadline, call, method, timeout + deadline - old)
                heapq.heapify(self._heap)
                return

    def close(self) -> None:
        """Expire nothing more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = deadline
        # Not `call_at`: the time of a loop may stand still while a callback runs.
        self._timer = self._loop.call_later(max(0.0, deadline - monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._next = float("inf")
        # Loops round the clock: a timer may fire a little early, and must not be re-armed for
        # a moment that has as good as come.
        now = monotonic() + 0.001
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][1] not in self._live):
            _, call, method, timeout = heapq.heappop(heap)
            if call in self._live:
                self._expire(call, method, timeout)
        if heap:
            self._arm(heap[0][0])

    def _clean_up(self) -> None:
        self._heap[:] = [entry for entry in self._heap if entry[1] in self._live]
        heapq.heapify(self._heap)
        self._cleanup_at = max(SMALLEST_CLEANUP, SLACK * len(self._heap))
