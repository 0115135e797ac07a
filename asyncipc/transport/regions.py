"""Who has which part of a piece of memory: a first-fit allocator, and what its user checks.

Pure: it touches no memory.

Above: ``shared_memory``.

Layer 1.
"""

import mmap
from bisect import bisect_left, bisect_right
from typing import Final

__all__ = ["PAGE", "HeldPages", "Regions", "whole_pages"]

# Regions begin at a page and have whole ones: what the receiver writes to in its private mapping
# becomes a copy page by page, and must not take a neighbour with it. Both sides are on one machine.
PAGE: Final = max(4096, mmap.PAGESIZE)


class Regions:
    """The free and the taken parts of ``size`` bytes.

    First fit keeps what is in use at the low end, where the memory has been touched before.

    :ivar used: bytes that are taken, whole pages
    """

    __slots__ = ("_free", "_taken", "size", "used")

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.used: int = 0
        self._free: list[tuple[int, int]] = [(0, size)]  # offset and length, by offset
        self._taken: dict[int, int] = {}

    def take(self, length: int) -> int | None:
        """The offset of ``length`` free bytes, which are taken now; None if there are none."""
        length = whole_pages(length)
        for position, (offset, room) in enumerate(self._free):
            if length <= room:
                if length < room:
                    self._free[position] = (offset + length, room - length)
                else:
                    del self._free[position]
                self._taken[offset] = length
                self.used += length
                return offset
        return None

    def give_back(self, offset: int) -> None:
        """The region that begins there is free again.

        :raises KeyError: none does
        """
        length = self._taken.pop(offset)
        self.used -= length
        position = bisect_right(self._free, (offset, 0))
        if position < len(self._free) and self._free[position][0] == offset + length:
            length += self._free.pop(position)[1]
        if position and sum(self._free[position - 1]) == offset:
            position -= 1
            offset, before = self._free.pop(position)
            length += before
        self._free.insert(position, (offset, length))


class HeldPages:
    """The pages of the other side's memory that somebody here looks at, by region."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []  # first byte, end, region; by first byte

    def hold(self, number: int, offset: int, length: int) -> int | None:
        """Note a region, unless it shares a page with one that is held: the number of that."""
        end = offset + whole_pages(length)
        position = bisect_left(self._ranges, (offset, 0, 0))
        for start, stop, other in self._ranges[max(0, position - 1) : position + 1]:
            if start < end and offset < stop:
                return other
        self._ranges.insert(position, (offset, end, number))
        return None

    def let_go(self, offset: int) -> None:
        """Nobody looks any longer at the region that begins there."""
        del self._ranges[bisect_left(self._ranges, (offset, 0, 0))]


def whole_pages(length: int) -> int:
    """The length, rounded up to whole pages."""
    return -(-length // PAGE) * PAGE
