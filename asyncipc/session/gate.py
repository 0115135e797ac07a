"""A gate: senders wait in line until there is room, and get through in the order they came.

Used for request slots and for notification credit. A fair line matters: whoever found the gate
shut must not be overtaken for ever by those who come when it happens to be open.

Layer 2, inside the session.
"""

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Gate"]

# How many may pass before those let in have used what they were let in for. Small, so that what
# they add cannot overshoot a limit by much; more than one, so that a burst is sent together.
BATCH = 16


class Gate:
    """A line of senders in front of a condition.

    :param is_open: says whether one more may pass, beside so many who were let in and have not
        sent yet; once it has said no, whatever changes that calls `update`
    :ivar waiting: how many wait, or were let in and have not sent yet
    """

    __slots__ = ("_is_open", "_line", "_loop", "_passing", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, is_open: Callable[[int], bool]) -> None:
        self._loop = loop
        self._is_open = is_open
        self._line: deque[asyncio.Future[None]] | None = None  # made when somebody has to wait
        self._passing = 0
        self.waiting: int = 0

    async def enter(self) -> None:
        """Wait for one's turn. Whoever got through calls `passed` when it has sent.

        :raises Exception: what `fail` was given
        """
        place = self._loop.create_future()
        if self._line is None:
            self._line = deque()
        self._line.append(place)
        self.waiting += 1
        # Whoever came here has looked at the condition in short. Looking in full is what makes
        # the outbox tell when there is room again, so nobody waits who has not.
        self.update()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.passed()  # let in and cancelled in the same turn: the next may go instead
            elif place in self._line:
                self._line.remove(place)
                self.waiting -= 1
            raise

    def passed(self) -> None:
        """One who was let in has sent, or will not."""
        self._passing -= 1
        self.waiting -= 1
        self.update()

    def update(self) -> None:
        """Something changed: let in who may."""
        while self._line and self._passing < BATCH and self._is_open(self._passing):
            place = self._line.popleft()
            if place.done():
                self.waiting -= 1
            else:
                self._passing += 1
                place.set_result(None)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Send everyone in the line away; each gets an exception of its own."""
        while self._line:
            place = self._line.popleft()
            self.waiting -= 1
            if not place.done():
                place.set_exception(make_error())
