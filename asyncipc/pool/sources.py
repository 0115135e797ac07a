"""Where the items of ``pool.map`` come from, if that is no async iterable.

An iterable is asked in the loop's thread, so it is asked for a moment at a time.

Layer 4, inside the pool. Above: mapping.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any, Final, Protocol

from asyncipc.pool.lent import is_lent
from asyncipc.session.lending import HARMLESS

__all__ = ["TURN", "Source", "length_of", "source_of"]

# Seconds for which items may be taken before others of the loop have their turn.
TURN: Final = 0.002

# Items that are taken between two looks at the clock, at most. A look costs as much as ten trivial
# items, and a source that was fast may become slow at any of them.
MAX_STEP: Final = 256

# Their items are all there, so that none is filled anew for the next.
CONTAINERS: Final = frozenset({list, tuple, set, frozenset, dict})

# How fast that number may grow while the items come quickly.
STEP_GROWTH: Final = 16


class Source(Protocol):
    """Gives items.

    :ivar is_over: there are no more
    :ivar failure: what there was instead, if anything
    :ivar is_slow: the last `take` has taken until its time was over
    """

    is_over: bool
    failure: Exception | None
    is_slow: bool

    def take(self, count: int, until: float) -> Sequence[Any]:
        """The next ``count`` items, or fewer: there are no more, or they take too long.

        What may be filled anew for the next item (`asyncipc.pool.lent`) is the last.

        :param until: when they do, on the clock of ``time.perf_counter()``; at least one is tried
        """
        ...


def source_of(items: Iterable[Any], *, exact: bool) -> Source:
    """What gives these items.

    :param exact: fewer items than were asked for are given at the end only
    :raises TypeError: they are no iterable
    """
    if type(items) is range:
        return _Slices(items)
    if not isinstance(items, Iterable):
        raise TypeError(f"map() takes an iterable or an async iterable, not {items!r:.60}")
    return _Iterable(iter(items), exact=exact, lends=type(items) not in CONTAINERS)


def length_of(items: object) -> int | None:
    """How many there are, if they know."""
    length = operator.length_hint(items, -1)
    return length if length >= 0 else None


class _Slices:
    """A range in pieces that are ranges, whose pickles are as small whatever their length."""

    failure: Exception | None = None
    is_slow = False

    def __init__(self, items: range) -> None:
        self._rest = items
        self.is_over = False

    def take(self, count: int, _until: float) -> range:
        """See `Source`."""
        taken, self._rest = self._rest[:count], self._rest[count:]
        self.is_over = not self._rest
        return taken


class _Iterable:
    """Any iterable."""

    def __init__(self, items: Iterator[Any], *, exact: bool, lends: bool) -> None:
        self._items = items
        self._exact = exact
        self._lends = lends
        self._has_lent = False  # what was taken last, which has to be packed now
        self._chunk: list[Any] = []  # what was taken and is not enough yet
        self._step = 1
        self.is_over = False
        self.failure: Exception | None = None
        self.is_slow = False

    def take(self, count: int, until: float) -> list[Any]:
        """See `Source`."""
        self._fill(count, until)
        if self._exact and len(self._chunk) < count and not (self.is_over or self._has_lent):
            return []
        chunk, self._chunk = self._chunk, []
        return chunk

    def _fill(self, count: int, until: float) -> None:
        chunk, items = self._chunk, self._items
        began = perf_counter()
        self.is_slow = self._has_lent = False
        while (missing := count - len(chunk)) > 0:
            step = min(self._step, missing)
            try:
                self._take_some(chunk, items, step)  # what came before a failure stays in it
            except Exception as error:  # noqa: BLE001 - raised in its turn
                self.failure = error
                self.is_over = True
                return
            if self._has_lent:
                return
            if count - len(chunk) > missing - step:
                self.is_over = True
                return
            now = perf_counter()
            self._adapt(step, now - began)
            if now > until:
                self.is_slow = True
                return
            began = now

    def _take_some(self, chunk: list[Any], items: Iterator[Any], count: int) -> None:
        if not self._lends:
            chunk.extend(islice(items, count))
            return
        for item in islice(items, count):
            chunk.append(item)
            if type(item) not in HARMLESS and is_lent(item):
                self._has_lent = True
                return

    def _adapt(self, step: int, seconds: float) -> None:
        """Look at the clock four times in a turn, or more often."""
        fitting = max(1, int(step * TURN / 4 / (seconds + 1e-9)))
        if step == self._step:
            self._step = min(fitting, step * STEP_GROWTH, MAX_STEP)
        else:
            self._step = min(fitting, self._step)
