"""What is counted in a pool.

Layer 4, inside the pool.
"""

from typing import NamedTuple

__all__ = ["PoolStatistics", "TaskCounts"]


class TaskCounts:
    """How many tasks were given, and how they ended."""

    __slots__ = ("cancelled", "done", "failed", "submitted")

    def __init__(self) -> None:
        self.submitted: int = 0
        self.done: int = 0
        self.failed: int = 0
        self.cancelled: int = 0

    @property
    def unfinished(self) -> int:
        """Those that have not ended."""
        return self.submitted - self.done - self.failed - self.cancelled


class PoolStatistics(NamedTuple):
    """Counters of a pool since it began, and how it stands now.

    :ivar workers: workers that are ready; of these ...
    :ivar idle: ... those with nothing to do
    :ivar queued: tasks that wait for a worker
    :ivar running: tasks that workers have
    :ivar submitted: tasks that were given
    :ivar done: of these, those that ended with a result
    :ivar failed: those that ended with an error, timeouts included
    :ivar cancelled: those that were given up
    :ivar moved: how often a task went back to the queue because its worker was gone
    :ivar bundled: tasks that went to a worker together with others, because they are tiny
    :ivar workers_started: workers that became ready
    :ivar workers_died: workers that died, also where that was the only way to stop a task
    :ivar workers_recycled: workers that were replaced in good order
    """

    workers: int
    idle: int
    queued: int
    running: int
    submitted: int
    done: int
    failed: int
    cancelled: int
    moved: int
    bundled: int
    workers_started: int
    workers_died: int
    workers_recycled: int
