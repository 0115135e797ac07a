"""Busy polling: a loop that waits for one answer stays awake where answers come at once.

To fall asleep and be woken up takes the kernel several times as long as a short call takes both
sides: measured, a call over a unix socket takes 50 us if both sides sleep meanwhile, and 13 us if
they do not. So for a moment after something has left alone, with nothing else under way as far as
is known, the loop takes turns instead of sleeping. Each turn is an ordinary one, in which
everything else is served; nothing waits.

It costs processor time where the answer takes longer. So each moment is about as long as sleeping
and waking takes on a slow machine, and whether there is one depends on what was seen: a session
begins with it after some exchanges, goes on as long as answers come in time, and tries again ever
more rarely where they do not. What can be lost is bounded: one moment in nine exchanges at worst,
one in a thousand before long. That is no polling in the sense of the house: nothing is looked at
by the clock, an idle session sleeps, and what comes wakes it as ever.

Layer 2, inside the session. Above: the outbox, the connection.
"""

import asyncio
from time import monotonic
from typing import Final

__all__ = ["BusyPoll"]

# How many times nothing is awaited after an answer that did not come in time: at first, so that a
# session of few calls never does it, and at most.
FIRST_PAUSE: Final = 8
LONGEST_PAUSE: Final = 1024


class BusyPoll:
    """The moments of one session.

    :param seconds: how long each is at most; 0: there are none
    :ivar is_waiting: the loop is kept awake for something to come
    """

    __slots__ = ("_is_turning", "_loop", "_pause", "_seconds", "_skip", "_until", "is_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._until = 0.0
        self._pause = FIRST_PAUSE
        self._skip: float = FIRST_PAUSE if seconds else float("inf")
        self._is_turning = False
        self.is_waiting: bool = False

    def sent(self) -> None:
        """Something has left alone: nothing else was to be sent, and perhaps it has an answer."""
        if self._skip:
            self._skip -= 1
            return
        self._until = monotonic() + self._seconds
        self.is_waiting = True
        if not self._is_turning:
            self._is_turning = True
            self._loop.call_soon(self._turn)

    def came(self) -> None:
        """Something came while it was waited for: in time."""
        self.is_waiting = False
        self._pause = FIRST_PAUSE

    def stop(self) -> None:
        """The session is over."""
        self.is_waiting = False
        self._skip = float("inf")

    def _turn(self) -> None:
        if self.is_waiting:
            if monotonic() < self._until:
                self._loop.call_soon(self._turn)  # with this in line the loop does not sleep
                return
            self.is_waiting = False
            self._skip = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._is_turning = False
