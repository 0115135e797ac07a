"""A worker as the application may see it.

Layer 4, inside the pool. Above: the engine. Below: link, roster.
"""

from collections.abc import Callable

from asyncipc.pool.link import Link
from asyncipc.pool.roster import WorkerState
from asyncipc.process.usage import cpu_time, resident_memory

__all__ = ["Worker"]


class Worker:
    """A worker of a pool, as the application sees it (`Pool.workers`)."""

    def __init__(self, link: Link, resume: Callable[[], None]) -> None:
        self._link = link
        self._resume = resume

    @property
    def number(self) -> int:
        """Counted from 1; a replacement has a number of its own."""
        return self._link.number

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._link.process.pid

    @property
    def state(self) -> str:
        """``"starting"``, ``"idle"``, ``"busy"``, ``"paused"``, ``"retiring"`` or ``"ended"``."""
        state = self._link.seat.state
        if state is WorkerState.READY:
            return "idle" if self._link.is_idle else "busy"
        return str(state.value)

    @property
    def tasks_done(self) -> int:
        """How many tasks it has ended, in whichever way."""
        return self._link.tasks_done

    @property
    def tasks_running(self) -> int:
        """How many tasks it has now, those included that wait in it for their turn."""
        return self._link.seat.load

    @property
    def rss(self) -> int | None:
        """Bytes of physical memory, those shared with others included.

        None if unknown, and when it has ended: its process id may be another's by then.
        """
        return None if self._has_ended else resident_memory(self.pid)

    @property
    def cpu_time(self) -> float | None:
        """Seconds of processor time that it has used; None as for `rss`."""
        return None if self._has_ended else cpu_time(self.pid)

    def pause(self) -> None:
        """Give it no more tasks until `resume`. What it has goes on.

        :raises ValueError: it is not ready
        """
        self._link.seat.become(WorkerState.PAUSED)

    def resume(self) -> None:
        """The reverse of `pause`.

        :raises ValueError: it is not paused
        """
        seat = self._link.seat
        if seat.state is WorkerState.RETIRING:  # only the pool may have it back
            raise ValueError("a worker that is retiring cannot be resumed")
        seat.become(WorkerState.READY)
        self._resume()

    @property
    def _has_ended(self) -> bool:
        return (
            self._link.seat.state is WorkerState.ENDED or self._link.process.returncode is not None
        )

    def __repr__(self) -> str:
        return f"<Worker {self.number} pid {self.pid} {self.state}>"
