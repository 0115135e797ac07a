"""Memory that two processes see: memfds, their seals and their mappings.

Owns: the arena of a sender, its image at the receiver, and memory that users make to be sent
without a copy. What travels between the two sides is the session's business. Above: the session.
Below: the kernel, ``regions``.

A memfd is mapped by its sender, then sealed: its size cannot change any more, so that nobody who
reads it is killed by SIGBUS, and no one else can write to it (F_SEAL_FUTURE_WRITE leaves the
mapping that there is). The receiver looks at the seals and the size before it maps the memory
privately: what it writes becomes a copy of its own, page by page.

Layer 1.
"""

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from asyncipc.lazy import LazyModule
from asyncipc.transport.base import HAS_SHARED_MEMORY, Buffer
from asyncipc.transport.fd import Fd
from asyncipc.transport.regions import PAGE, Regions, whole_pages

if TYPE_CHECKING:
    import numpy
else:
    numpy = LazyModule("numpy")

__all__ = [
    "Arena",
    "ArenaImage",
    "ArenaReader",
    "Region",
    "SharedMemory",
    "memory_behind",
    "received_memory",
    "shared_array",
    "shared_buffer",
]

# Of <linux/memfd.h> and <linux/fcntl.h>; Python 3.11 knows the first two.
SEAL_SHRINK: Final = 2
SEAL_GROW: Final = 4
SEAL_FUTURE_WRITE: Final = 16
# What `stat` counts in.
BLOCK: Final = 512

SEALS: Final = SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE


class SharedMemory(mmap.mmap):
    """A memfd and the writable mapping of who made it.

    Buffers made from it keep it alive: it is what *exports* them. (A finalizer on a view of it
    would run while slices of the view still live.)

    :ivar fd: its descriptor, closed with it
    """

    fd: int = -1

    @classmethod
    def create(cls, size: int) -> "SharedMemory":
        """New memory, sealed.

        :raises OSError: the kernel has no memfds or no seals, or no descriptor is left
        """
        fd = os.memfd_create("asyncipc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            memory = cls(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(fd)
            raise
        memory.fd = fd
        return memory

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Region:
    """A part of an arena, taken for one attachment.

    :ivar number: what it goes by on the wire
    :ivar is_sent: the other side has been told of it
    """

    __slots__ = ("is_sent", "length", "memory", "number", "offset")

    def __init__(self, number: int, offset: int, memory: memoryview) -> None:
        self.number: int = number
        self.offset: int = offset
        self.length: int = len(memory)
        self.memory: memoryview = memory
        self.is_sent: bool = False

    def wipe(self) -> None:
        """Leave nothing in it: what was to be sent was not."""
        self.memory[:] = bytes(self.length)


class Arena:
    """The memory through which one side of a session sends.

    Its size is fixed; the kernel gives memory to it when it is first used, and says so if there is
    none (`posix_fallocate`), which a write into a mapping could only say by SIGBUS.

    :param size: bytes, rounded up to whole pages
    :raises OSError: there is no shared memory to be had
    """

    __slots__ = ("_allocated", "_last_number", "_memory", "_regions", "_taken", "size")

    def __init__(self, size: int) -> None:
        self.size: int = whole_pages(size)
        self._memory = SharedMemory.create(self.size)
        self._regions = Regions(self.size)
        self._allocated = 0  # bytes from the beginning that the kernel has given memory to
        self._taken: dict[int, Region] = {}
        self._last_number = 0

    @property
    def fd(self) -> int:
        """The memfd."""
        return self._memory.fd

    @property
    def used(self) -> int:
        """Bytes in regions that the other side has not given back."""
        return self._regions.used

    def take(self, length: int) -> Region | None:
        """A region of ``length`` bytes; None if there is no room, or the system has no memory."""
        offset = self._regions.take(length)
        if offset is None:
            return None
        end = offset + whole_pages(length)
        if end > self._allocated:
            try:
                os.posix_fallocate(self._memory.fd, self._allocated, end - self._allocated)
            except OSError:
                self._regions.give_back(offset)
                return None
            self._allocated = end
        self._last_number += 1
        memory = memoryview(self._memory)[offset : offset + length]
        region = self._taken[self._last_number] = Region(self._last_number, offset, memory)
        return region

    def has_sent(self, number: int) -> bool:
        """Whether the other side has a region of that number."""
        region = self._taken.get(number)
        return region is not None and region.is_sent

    def give_back(self, number: int) -> None:
        """A region is free again.

        :raises KeyError: there is none of that number, or no longer
        """
        region = self._taken.pop(number)
        self._regions.give_back(region.offset)


class SharedBytes:
    """Some shared memory that came, for who makes a value of it.

    The views keep what exports them alive, and that is what tells when the last is gone.

    :param exporter: has the buffer protocol
    :param length: bytes of it that count
    """

    __slots__ = ("_exporter", "_length", "was_written")

    def __init__(self, exporter: Any, length: int) -> None:
        self._exporter = exporter
        self._length = length
        self.was_written: list[bool] = []  # shared with who looks after the exporter

    def __len__(self) -> int:
        return self._length

    def readonly(self) -> memoryview:
        """The bytes, not to be written to."""
        return memoryview(self._exporter).cast("B")[: self._length].toreadonly()

    def writable(self) -> memoryview:
        """The bytes; what is written is seen here alone."""
        self.was_written.append(True)
        return memoryview(self._exporter).cast("B")[: self._length]


class ArenaImage:
    """The arena of the other side, mapped once (see also `ArenaReader`).

    :param fd: the memfd; the caller keeps it
    :param size: what the other side says that it has
    :raises ValueError: it is no sealed memfd of that size
    :raises OSError: it cannot be mapped
    """

    __slots__ = ("_mapping", "size")

    def __init__(self, fd: int, size: int) -> None:
        _check_received(fd, size)
        self._mapping = _map_received(fd, size)
        self.size: int = size

    def exporter(self, offset: int, length: int) -> Any:
        """An object that exports the bytes of a region, and can be referred to weakly.

        :raises ValueError: they do not all lie in the arena, or do not begin with a page
        """
        _check_region(self.size, offset, length)
        pages = min(whole_pages(length), self.size - offset)
        return _exporter_class(pages).from_buffer(self._mapping, offset)

    def forget(self, offset: int, length: int) -> None:
        """Drop the copies of what was written in a region: the sender will use it again."""
        pages = min(whole_pages(length), self.size - offset)
        self._mapping.madvise(mmap.MADV_DONTNEED, offset, pages)


class ArenaReader:
    """The arena of the other side where it is not mapped: its regions are copied.

    :param memfd: the memfd, taken over
    :param size: what the other side says that it has
    :raises ValueError: it is no sealed memfd of that size
    """

    __slots__ = ("_fd", "size")

    def __init__(self, memfd: Fd, size: int) -> None:
        _check_received(memfd.fileno(), size)
        self._fd = memfd.detach()
        self.size: int = size

    def exporter(self, offset: int, length: int) -> Any:
        """See `ArenaImage.exporter`."""
        _check_region(self.size, offset, length)
        return _exporter_class(length).from_buffer(_read(self._fd, offset, length))

    def forget(self, offset: int, length: int) -> None:
        """What was written in a region was written to its copy."""

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


# Making one takes longer than using it, and regions mostly come in few sizes.
@functools.lru_cache(maxsize=64)
def _exporter_class(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def received_memory(fd: int, size: int) -> SharedBytes:
    """What `shared_buffer` made on the other side; the caller keeps the descriptor.

    It is copied where it cannot be mapped, since too much is open or mapped here; and where it has
    holes, since who looks into one in a mapping pays for the memory.

    :raises ValueError: it is no sealed memfd of that size
    """
    if _check_received(fd, size) >= size:
        with contextlib.suppress(OSError):
            return SharedBytes(_map_received(fd, size), size)
    return SharedBytes(_read(fd, 0, size), size)


def _check_region(size: int, offset: int, length: int) -> None:
    if offset % PAGE or not 0 < length <= size - offset:
        raise ValueError(f"{length} bytes at {offset} are no region of an arena of {size} bytes")


def _check_received(fd: int, size: int) -> int:
    """How many bytes of a memfd the kernel has given memory to.

    :raises ValueError: it is no sealed memfd of that size
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise ValueError("what should be shared memory is no memfd") from None
    if seals & SEALS != SEALS:
        raise ValueError(f"the memfd has the seals {seals:#x}; expected at least {SEALS:#x}")
    status = os.fstat(fd)
    if status.st_size != size:
        raise ValueError(f"the memfd has {status.st_size} bytes instead of {size}")
    return status.st_blocks * BLOCK


def _map_received(fd: int, size: int) -> mmap.mmap:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=protection)


def _read(fd: int, offset: int, length: int) -> bytearray:
    """A copy of some bytes of a memfd, whose size does not change."""
    memory = bytearray(length)
    done = 0
    with memoryview(memory) as view:
        while done < length:
            done += os.preadv(fd, [view[done:]], offset + done)
    return memory


def memory_behind(buffer: Buffer) -> SharedMemory | None:
    """The shared memory that a buffer is a view of, if it is one of all of it."""
    if not isinstance(buffer, memoryview):
        return None
    owner: Any = buffer.obj
    array = getattr(sys.modules.get("numpy"), "ndarray", ())
    while isinstance(owner, (memoryview, array)):  # views of views, of whatever kind
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    if type(owner) is not SharedMemory or buffer.nbytes != len(owner):
        return None
    return owner


def shared_buffer(size: int) -> memoryview:
    """Writable memory that can be sent without a copy; see ``docs/shared-memory.md``.

    It lies in a memfd of its own. Sent over a unix socket, all of it, it arrives as a read-only
    memoryview of the same memory; a part of it, or over anything else, is sent like any
    memoryview. Do not change it while a receiver may read it.

    :param size: bytes, at least 1
    :raises ValueError: the size is not positive
    :raises OSError: there is no memory to be had
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"the size of a shared buffer is a number of bytes, not {size!r:.60}")
    if size < 1:
        raise ValueError(f"a shared buffer has at least 1 byte, not {size}")
    if not HAS_SHARED_MEMORY:
        return memoryview(bytearray(size))
    memory = SharedMemory.create(size)
    os.posix_fallocate(memory.fd, 0, size)
    return memoryview(memory)


def shared_array(shape: int | Sequence[int], dtype: Any = float) -> "numpy.ndarray[Any, Any]":
    """A numpy array of zeros in memory like that of `shared_buffer`.

    It arrives as a writable array; what the receiver writes is its own copy.

    :raises TypeError: the dtype holds Python objects
    :raises OSError: there is no memory to be had
    """
    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of {kind} holds Python objects, which cannot be shared")
    dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
    size = functools.reduce(lambda product, extent: product * extent, dimensions, kind.itemsize)
    if not size:
        return numpy.zeros(dimensions, kind)
    return numpy.ndarray(dimensions, kind, buffer=shared_buffer(size))
