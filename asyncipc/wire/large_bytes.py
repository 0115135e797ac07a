"""Bytes objects of many megabytes, filled as the bytes come and never copied as a whole.

Two things make large messages slow: copying them once more to make a ``bytes`` of them, and the
first touch of fresh memory, which costs a page fault for each 4 KiB (measured: 45 ms for 64 MiB,
more than the socket takes). So the object is made first, by the function of the C API that leaves
its contents to the caller, in memory for which huge pages are asked for (10 ms). How large depends
on what has come, not on what was announced.

Where there is no C API (PyPy) or no ``madvise`` (not Linux), `io.BytesIO` does.

Layer 1. Above: transfers. Does no I/O.
"""

import ctypes
import io
import sys
from typing import Any, Final

__all__ = ["LargeBytes", "copy_large", "new_large_bytes"]

# How many times what has come is reserved. Growing copies what has come so far, during which
# nothing else happens in the loop; so when some of a message has come, and it is thus no mere
# announcement, this much is reserved at once. It is address space: the kernel gives memory to it
# when it is written to.
GROWTH: Final = 4
SOME: Final = 512 * 1024
RESERVE: Final = 256 * 1024 * 1024

MADV_HUGEPAGE: Final = 14
PAGE: Final = 4096


class LargeBytes:
    """Memory that is written from front to back and becomes a ``bytes``."""

    __slots__ = ("_bytes", "_filled", "_size", "_view")

    def __init__(self, size: int) -> None:
        self._size = size
        self._filled = 0
        self._bytes = b""
        self._view = memoryview(b"")

    def write(self, data: memoryview) -> None:
        """Append; no more than ``size`` bytes in all."""
        if not data:  # a part has ended where this began, and there may be no memory to write to
            return
        end = self._filled + len(data)
        if end > len(self._view):
            self._grow(min(self._size, max(GROWTH * end, RESERVE if end > SOME else 0)))
        self._view[self._filled : end] = data
        self._filled = end

    def getvalue(self) -> bytes:
        """The object, when ``size`` bytes were written."""
        assert self._filled == self._size == len(self._view)
        # Nobody has seen the object yet; from here on it is as immutable as any.
        self._view.release()
        return self._bytes

    def _grow(self, capacity: int) -> None:
        larger = _make_bytes(None, capacity)
        # What stands in front of the contents is all of a bytes object but its closing NUL.
        address = id(larger) + bytes.__basicsize__ - 1
        start = -(-address // PAGE) * PAGE
        _madvise(start, (address + capacity - start) // PAGE * PAGE, MADV_HUGEPAGE)
        view = memoryview((ctypes.c_char * capacity).from_address(address)).cast("B")
        view[: self._filled] = self._view[: self._filled]
        self._bytes, self._view = larger, view


def new_large_bytes(size: int) -> LargeBytes | io.BytesIO:
    """Memory for ``size`` bytes with ``write`` and ``getvalue``.

    Pays from about 1 MiB on: memory of that size comes fresh from the kernel each time.
    """
    return LargeBytes(size) if _is_possible else io.BytesIO()


def copy_large(view: memoryview) -> bytes:
    """A copy of flat bytes, in memory that is had faster where they are many."""
    if len(view) < SOME:
        return bytes(view)
    memory = new_large_bytes(len(view))
    memory.write(view)
    return memory.getvalue()


_make_bytes: Any = None
_madvise: Any = None
_is_possible: Final = sys.implementation.name == "cpython" and sys.platform == "linux"
if _is_possible:
    _make_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
    _make_bytes.restype = ctypes.py_object
    _make_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]
    # Its answer is not looked at: where huge pages are not to be had, small ones do.
    _madvise = ctypes.CDLL(None).madvise
    _madvise.restype = ctypes.c_int
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
