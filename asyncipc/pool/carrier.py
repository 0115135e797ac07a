"""The worker that something was given to, as that sees it.

Layer 4, inside the pool. Above: assignment and bundle, which are given; the link is one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from asyncipc.errors import SessionClosed
from asyncipc.pool.task import PoolTask

__all__ = ["Carrier"]


class Carrier(Protocol):
    """A worker that has a task, or several of them in a bundle: each is ``given`` here."""

    def has_begun(self, given: Any) -> bool:
        """Whether it may be at it."""

    def had_begun(self, given: Any) -> bool:
        """`has_begun` when it has died, of which what it was given hears one after the other."""

    def is_slow(self, given: Any) -> None:
        """Something that was to be over in a moment is not."""

    def stop(self, given: Any) -> None:
        """What it is at is to end; if it will not, the worker does."""

    def died_with(self, task: PoolTask[Any], error: SessionClosed) -> None:
        """It died while it ran a task."""

    def returned(self, task: PoolTask[Any]) -> None:
        """A task has not begun, and it will not begin it."""

    def left(self, count: int, *, quick: bool) -> None:
        """So many of the tasks of a bundle are over."""

    def ended(self, given: Any, seconds: float | None) -> None:
        """The call of one task is over.

        :param seconds: how long it took, if it came to its end
        """

    def bundle_ended(self, bundle: Any, rest: Sequence[PoolTask[Any]], *, is_gone: bool) -> None:
        """The call of a bundle is over.

        :param rest: those of its tasks that have not begun
        :param is_gone: and this worker will not begin them
        """

    def took(self, key: bytes | None, seconds: float) -> None:
        """A task took so long (for the key see `asyncipc.pool.work.Work`)."""

    def gave(self, key: bytes | None, size: float) -> None:
        """What it gave has so many bytes in a ledger; infinite where it is none for bundles."""
