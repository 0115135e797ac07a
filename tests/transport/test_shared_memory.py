"""Memory that two processes see: its seals, its bounds, and what the receiver's own copies are."""

import errno
import fcntl
import gc
import mmap
import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from asyncipc import Fd, shared_array, shared_buffer
from asyncipc.transport.regions import PAGE
from asyncipc.transport.shared_memory import (
    SEALS,
    Arena,
    ArenaImage,
    ArenaReader,
    SharedMemory,
    memory_behind,
    received_memory,
)

MIB = 1024 * 1024


def test_what_is_written_to_the_arena_is_seen_in_its_image() -> None:
    arena = Arena(MIB)
    image = ArenaImage(arena.fd, arena.size)
    region = arena.take(10_000)
    assert region is not None
    assert arena.used == 12_288
    region.memory[:] = b"x" * 10_000
    exporter = image.exporter(region.offset, region.length)
    assert bytes(memoryview(exporter).cast("B")[:10_000]) == b"x" * 10_000
    arena.give_back(region.number)
    assert arena.used == 0
    with pytest.raises(KeyError):
        arena.give_back(region.number)


def test_what_the_receiver_writes_is_its_own_until_it_forgets() -> None:
    arena = Arena(MIB)
    image = ArenaImage(arena.fd, arena.size)
    region = arena.take(PAGE)
    assert region is not None
    region.memory[:] = b"a" * PAGE
    view = memoryview(image.exporter(region.offset, PAGE)).cast("B")
    view[:1] = b"!"
    assert bytes(region.memory[:2]) == b"aa"
    region.memory[:] = b"b" * PAGE
    assert bytes(view[:2]) == b"!a"  # the page is a copy
    image.forget(region.offset, PAGE)
    assert bytes(view[:2]) == b"bb"


def test_an_exporter_outlives_every_view_of_it_and_the_image() -> None:
    arena = Arena(MIB)
    image = ArenaImage(arena.fd, arena.size)
    exporter = image.exporter(0, 2 * PAGE)
    gone = weakref.ref(exporter)
    array = numpy.ndarray((100,), "<i4", exporter)[10:20].view("<u2")
    piece = memoryview(exporter).cast("B")[5:9]
    del exporter, image
    assert gone() is not None
    del piece
    assert gone() is not None
    assert array.sum() == 0
    del array
    assert gone() is None


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (1, 1), (MIB, 1), (MIB - PAGE, PAGE + 1), (2 * MIB, 1)]
)
def test_no_exporter_out_of_bounds(offset: int, length: int) -> None:
    arena = Arena(MIB)
    reader = ArenaReader(Fd(os.dup(arena.fd)), arena.size)
    for image in (ArenaImage(arena.fd, arena.size), reader):
        with pytest.raises(ValueError, match="no region of an arena of 1048576 bytes"):
            image.exporter(offset, length)


def test_what_is_not_mapped_is_read() -> None:
    """The regions are copies, that cost the sender's side nothing, and tell when they are gone."""
    before = len(os.listdir("/proc/self/fd"))
    arena = Arena(MIB)
    reader = ArenaReader(Fd(os.dup(arena.fd)), arena.size)
    region = arena.take(10_000)
    assert region is not None
    region.memory[:] = b"x" * 10_000
    exporter = reader.exporter(region.offset, region.length)
    gone = weakref.ref(exporter)
    view = memoryview(exporter).cast("B")
    assert bytes(view) == b"x" * 10_000
    view[:1] = b"!"
    assert bytes(region.memory[:1]) == b"x"
    reader.forget(region.offset, region.length)
    allocated = os.fstat(arena.fd).st_blocks
    assert bytes(memoryview(reader.exporter(MIB - PAGE, PAGE)).cast("B")) == bytes(PAGE)
    assert os.fstat(arena.fd).st_blocks == allocated
    del exporter, view
    assert gone() is None
    with pytest.raises(ValueError, match="bytes instead of"):
        ArenaImage(arena.fd, PAGE)
    del arena, reader, region
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_looks_at_memory_with_holes_does_not_pay_for_it(memfd: int) -> None:
    os.pwrite(memfd, b"here", MIB // 2)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
    allocated = os.fstat(memfd).st_blocks
    memory = received_memory(memfd, MIB)
    assert bytes(memory.readonly()) == bytes(MIB // 2) + b"here" + bytes(MIB // 2 - 4)
    memory.writable()[:1] = b"!"
    assert os.fstat(memfd).st_blocks == allocated


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("seals", [0, SEALS & ~2, SEALS & ~16])
def test_what_is_not_sealed_is_not_mapped(memfd: int, seals: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    for open_it in (ArenaImage, received_memory):
        with pytest.raises(ValueError, match="has the seals"):
            open_it(memfd, MIB)
    with Fd(os.dup(memfd)) as fd, pytest.raises(ValueError, match="has the seals"):
        ArenaReader(fd, MIB)


def test_what_has_another_size_or_is_no_memfd_is_not_mapped(memfd: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(ValueError, match="has 1048576 bytes instead of 1048577"):
        ArenaImage(memfd, MIB + 1)
    with open("/dev/zero", "rb") as file, pytest.raises(ValueError, match="no memfd"):
        ArenaImage(file.fileno(), MIB)


def test_the_seals_hold() -> None:
    memory = SharedMemory.create(MIB)
    for size in (0, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        os.write(memory.fd, b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(memory.fd, MIB)
    memory[:3] = b"abc"
    assert bytes(received_memory(memory.fd, MIB).readonly()[:3]) == b"abc"


def test_a_full_memory_file_system_is_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be filled without harm to the machine, so the kernel's answer is made up here."""
    arena = Arena(64 * MIB)
    allocate = os.posix_fallocate

    def full(fd: int, offset: int, length: int) -> None:
        if offset + length > 8 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert arena.take(PAGE) is not None
    assert arena.take(16 * MIB) is None
    assert arena.used == PAGE
    assert arena.take(MIB) is not None
    with pytest.raises(OSError, match="No space left"):
        shared_buffer(16 * MIB)


def view(array: Any) -> memoryview:
    return memoryview(array)


# -- memory of users ---------------------------------------------------------------------------


def test_a_shared_buffer_is_writable_memory() -> None:
    buffer = shared_buffer(10)
    assert (buffer.nbytes, buffer.readonly, bytes(buffer)) == (10, False, bytes(10))
    buffer[:2] = b"ab"
    assert memory_behind(buffer) is buffer.obj
    assert memory_behind(buffer[:9]) is None
    assert memory_behind(memoryview(b"x")) is None


def test_a_shared_array_is_an_array_of_zeros() -> None:
    array = shared_array((3, 4), "<i2")
    assert array.shape == (3, 4)
    assert array.dtype == numpy.dtype("<i2")
    assert not array.any()
    flat = view(array.T.reshape(-1, order="F").view(numpy.uint8))
    assert memory_behind(flat) is not None
    assert memory_behind(view(array[1:])) is None
    assert shared_array(3).dtype == float
    assert shared_array((0, 5)).shape == (0, 5)


def test_arrays_and_views_of_all_of_a_shared_buffer() -> None:
    buffer = shared_buffer(800)
    array = numpy.frombuffer(buffer, "<f8")
    for each in (array, array.reshape(10, 10), view(array)[:], array.view("<i4")):
        assert memory_behind(view(each).cast("B")) is buffer.obj
    assert memory_behind(view(array[1:]).cast("B")) is None
    assert memory_behind(view(array.copy())) is None


class Strange(bytearray):
    """Has a base that is no memory that it would be a view of."""

    base: Any


def test_only_arrays_are_asked_for_their_base() -> None:
    strange = Strange(10)
    for base in (shared_buffer(10).obj, strange):
        strange.base = base
        assert memory_behind(memoryview(strange)) is None


def test_shared_memory_is_closed_when_its_last_view_is_gone() -> None:
    """The test of leftovers looks too."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    array = shared_array(10)[3:5]
    assert len(os.listdir("/proc/self/fd")) > before
    del array
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError), (True, TypeError)]
)
def test_the_size_of_a_shared_buffer(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="shared buffer"):
        shared_buffer(size)


def test_objects_cannot_be_shared() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        shared_array(3, object)
