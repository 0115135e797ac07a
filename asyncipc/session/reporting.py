"""Progress on its way from a handler to the caller.

Sent at once while there is room in the outbox; otherwise, and from other threads when many wait,
only the latest of each call is kept, so that a chatty handler cannot fill the memory.

Layer 2, inside the session. Above: dispatch. Below: wire.
"""

import asyncio
import contextlib
import logging
import threading
from time import monotonic
from typing import Any, Final

from asyncipc.errors import FrameTooLarge
from asyncipc.session.context import Call, Progress
from asyncipc.session.outbox import Outbox
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import PROGRESS

__all__ = ["Pace", "ProgressSender"]

_logger = logging.getLogger("asyncipc")

# Updates that threads may have sent before the loop looks at them; then only the latest of each
# call is kept.
MAX_FROM_THREADS: Final = 1024

# Seconds for which an update is held that comes too soon behind others.
HOLD: Final = 0.05

# Held for a moment each time; one lock does for all sessions.
_waiting_updates: Final = threading.Lock()


class Pace:
    """Lets a number of updates pass at once, and from then on so many a second.

    :param burst: how many at once
    :param rate: how many a second
    """

    __slots__ = ("_burst", "_left", "_rate", "_seen")

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left: float = burst
        self._seen = monotonic()

    def allows(self) -> bool:
        """One more may pass now, and is counted."""
        now = monotonic()
        self._left = min(self._burst, self._left + (now - self._seen) * self._rate)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class ProgressSender:
    """The progress of the calls that one session serves.

    :ivar dropped: how many updates were, for later ones of the same call
    :ivar held: the latest of each lane, while the outbox is full or the pace too high
    :ivar pace: how fast updates may follow each other; None: as fast as they come
    :ivar is_direct: updates leave at once, because what sends them keeps the loop from doing it
    """

    __slots__ = (
        "_codec",
        "_from_threads",
        "_loop",
        "_outbox",
        "_room",
        "dropped",
        "held",
        "is_direct",
        "pace",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._from_threads: list[tuple[Call, Progress]] | None = None
        self._room: tuple[asyncio.Future[None], ...] = ()
        self.held: dict[int, bytes] = {}
        self.dropped: int = 0
        self.pace: Pace | None = None
        self.is_direct: bool = False

    def open(self, codec: Codec) -> None:
        """Begin to send."""
        self._codec = codec

    def send(self, call: Call, update: Progress) -> None:
        """Send progress in the call's lane, or keep the latest while the outbox is full."""
        if call.finished:
            return
        if call.streams is not None:
            call.streams.flush()  # the items before it go first
        lane = call.wire_id + 1
        data = self._codec.encode([PROGRESS, lane, update.done, update.total, update.message], [])
        if len(data) > self._outbox.inline_size:
            self._outbox.check_size(data, ())
        if self._outbox.full:
            self._hold(lane, data)
            return
        if self.pace is not None and not self.pace.allows():
            if not self.held:  # what runs may be silent from now on
                self._loop.call_later(HOLD, self._release_held)
            self._hold(lane, data)
            return
        if self.held and self.held.pop(lane, None) is not None:  # out of date now
            self._count_dropped()
        self._put(lane, data)
        if self.is_direct:
            self._outbox.flush()

    def _hold(self, lane: int, data: bytes) -> None:
        if lane in self.held:
            self._count_dropped()
        self.held[lane] = data

    def _count_dropped(self) -> None:
        with _waiting_updates:  # threads count as well
            self.dropped += 1

    def send_from_thread(self, call: Call, update: Progress) -> None:
        """`send` from another thread; only the latest of a call while many wait."""
        with _waiting_updates:
            if self._from_threads is None:
                self._from_threads = []
            waiting = self._from_threads
            if len(waiting) < MAX_FROM_THREADS:
                waiting.append((call, update))
            else:
                latest = next((at for at in _backwards(waiting) if waiting[at][0] is call), None)
                if latest is None:
                    waiting.append((call, update))
                else:
                    waiting[latest] = (call, update)
                    self.dropped += 1
            if len(waiting) > 1:
                return
        # RuntimeError: the loop is closed, and with it the session.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.take_from_threads)

    def take_from_threads(self) -> None:
        """Send what threads have reported; by itself where nobody keeps the loop from it."""
        if self._from_threads is None:
            return
        with _waiting_updates:
            waiting, self._from_threads = self._from_threads, None
        for call, update in waiting or ():
            try:
                self.send(call, update)
            except FrameTooLarge as error:
                _logger.warning("progress of %r was dropped: %s", call.method, error)

    def room_again(self) -> None:
        """The outbox is no longer full: what was held back may go."""
        held, self.held = self.held, {}
        for lane, data in held.items():
            self._put(lane, data)
        waiting, self._room = self._room, ()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def room(self) -> None:
        """Wait until the outbox is no longer full, or the session is over."""
        if self._outbox.full:
            future = self._loop.create_future()
            self._room += (future,)
            await future

    def _release_held(self) -> None:
        if not self._outbox.full:
            held, self.held = self.held, {}
            for lane, data in held.items():
                self._put(lane, data)

    def release(self, call: Call) -> None:
        """A call ends: what was held back of it goes first."""
        lane = call.wire_id + 1
        data = self.held.pop(lane, None)
        if data is not None:
            self._put(lane, data)

    def _put(self, lane: int, data: bytes) -> None:
        if len(data) > self._outbox.inline_size:
            self._outbox.put_large([data], lane)
        else:
            self._outbox.put(data, lane)


def _backwards(items: list[Any]) -> range:
    return range(len(items) - 1, -1, -1)
