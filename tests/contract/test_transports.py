"""The contract of `asyncipc.transport.base`, run over every transport."""

import asyncio
import contextlib
import gc
import os
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncipc.errors import LocalProtocolError
from asyncipc.transport.base import Transport
from asyncipc.transport.memory import memory_transports
from tests.contract.transports import KINDS, Kind
from tests.transport.recorder import MIB, End, pattern, turns


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


@pytest.fixture
async def ends(kind: Kind, tmp_path: Path) -> AsyncIterator[tuple[End, End]]:
    """Both ends, not started. In the end each has been lost once, and nothing is left over."""
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    before = open_descriptors()
    left, right = [End(transport) for transport in await kind.make(tmp_path)]
    yield left, right
    for end in left, right:
        end.call("close")
        if end.heard.events or is_started(end):
            await end.lost()
        assert end.heard.violations == []
    for _ in range(5):
        await asyncio.sleep(0)  # the loops' own transports close theirs a few turns later
    assert failures == []
    assert open_descriptors() == before


def is_started(end: End) -> bool:
    return getattr(end.transport, "_receiver", None) is not None


@pytest.fixture
async def pair(ends: tuple[End, End]) -> tuple[End, End]:
    """Both ends, started."""
    for end in ends:
        end.start()
    return ends


def open_descriptors() -> Counter[str]:
    """How many there are of each kind.

    Not which: the loops exchange some of their own between two runs.
    """
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists
            kinds[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
    del kinds[os.devnull]  # libuv keeps one in reserve
    return kinds


# Bytes


async def test_bytes_arrive_whole_and_in_order(pair: tuple[End, End]) -> None:
    left, right = pair
    await left.send(b"one ")
    await left.send(bytearray(b"two "), b"", memoryview(b"-three")[1:])
    await left.send(memoryview(b" four"))
    await right.send(b"and back")
    await right.heard.received(18)
    await left.heard.received(8)
    assert right.heard.data == b"one two three four"
    assert left.heard.data == b"and back"


async def test_more_buffers_than_one_system_call_takes(pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(20_000)
    await left.send(*(data[start : start + 4] for start in range(0, len(data), 4)))
    await right.heard.received(len(data))
    assert right.heard.data == data


async def test_one_write_of_8_mib(pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(8 * MIB)
    await left.send(b"", data[:MIB], data[MIB:], b"")  # ends where a read of the receiver ends
    await right.heard.received(len(data))
    assert right.heard.data == data


async def test_8_mib_both_ways_at_once(pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(8 * MIB)
    await asyncio.gather(left.send(data), right.send(data))
    for end in pair:
        await end.heard.received(len(data))
        assert end.heard.data == data


async def test_nothing_is_delivered_before_start(ends: tuple[End, End]) -> None:
    left, right = ends
    left.start()
    left.write(b"early")
    await turns()
    assert right.heard.events == []
    right.start()
    await right.heard.received(5)
    assert right.heard.data == b"early"


# Backpressure


async def test_a_slow_reader_stops_the_writer(pair: tuple[End, End]) -> None:
    left, right = pair
    right.call("pause_reading")
    chunk = pattern(MIB)
    chunks = 0
    while left.write(chunk):
        chunks += 1
        assert chunks < 16, "nothing stops the writer"
        await turns(2)
    with contextlib.suppress(LocalProtocolError):
        left.write(b"too early")
        pytest.fail("a write behind an unfinished one was taken")
    assert left.heard.events.count("writable") == 0
    right.call("resume_reading")
    await right.heard.received((chunks + 1) * MIB)
    await left.heard.heard("writable")
    await left.send(b"end")
    await right.heard.received((chunks + 1) * MIB + 3)
    assert right.heard.data == chunk * (chunks + 1) + b"end"


async def test_writing_from_writable(pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(MIB)
    unwritten = [data] * 8

    def write_on(event: str) -> None:
        while event == "writable" and unwritten and left.transport.write([unwritten.pop()]):
            pass

    left.heard.on_event = write_on
    if left.write(data):
        write_on("writable")
    await right.heard.received(9 * MIB)
    assert right.heard.data == data * 9


async def test_kept_buffers_are_not_copied(kind: Kind, pair: tuple[End, End]) -> None:
    if not kind.uncopied:
        pytest.skip("this library's streams want bytes of their own")
    left, right = pair
    right.call("pause_reading")
    await turns()
    data = bytearray(16 * MIB)
    assert not left.write(data)
    with pytest.raises(BufferError):
        data.append(0)  # it is in use
    right.call("resume_reading")
    await left.heard.heard("writable")
    data.append(0)
    await right.heard.received(16 * MIB)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_kept_buffers_are_copied_when_asked_to(
    pair: tuple[End, End], has_begun: bool
) -> None:
    left, right = pair
    left.call("copy_kept")  # there is nothing
    right.call("pause_reading")
    await turns()
    expected = pattern(4 * MIB)
    data, count = bytearray(expected), 1
    while left.write(memoryview(data)):
        count += 1
        await turns(2)
    if has_begun:
        right.call("resume_reading")
        await right.heard.received(1)
        right.call("pause_reading")
    left.call("copy_kept")
    data[:] = bytes(len(data))
    data.append(0)  # nobody uses it
    right.call("resume_reading")
    await left.heard.heard("writable")
    left.call("copy_kept")
    await left.send(b"end")
    await right.heard.received(count * len(expected) + 3)
    assert right.heard.data == expected * count + b"end"


async def test_paused_is_silent(pair: tuple[End, End]) -> None:
    left, right = pair
    right.call("pause_reading")
    right.call("pause_reading")
    await left.send(b"x")  # one read under way may still bring this
    await turns()
    before = bytes(right.heard.data)
    await left.send(b"yz")
    await turns()
    assert right.heard.data == before
    right.call("resume_reading")
    right.call("resume_reading")
    await right.heard.received(3)
    assert right.heard.data == b"xyz"


async def test_pausing_while_data_comes(pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(MIB)
    loop = asyncio.get_running_loop()

    def pause_a_while(event: str) -> None:
        if event == "data":
            right.transport.pause_reading()
            loop.call_soon(right.transport.resume_reading)

    right.heard.on_event = pause_a_while
    await left.send(data)
    await right.heard.received(len(data))
    assert right.heard.data == data


async def test_what_has_come_can_be_had_at_once(kind: Kind, pair: tuple[End, End]) -> None:
    left, right = pair
    await left.send(b"last words")
    right.transport.read_available()
    if kind.reads_while_paused:  # the same ability: to ask the kernel
        assert right.heard.data == b"last words"
    await right.heard.received(10)
    assert right.heard.data == b"last words"


# The end


async def test_half_close(kind: Kind, pair: tuple[End, End]) -> None:
    left, right = pair
    await left.send(b"question")
    left.call("write_eof")
    left.call("write_eof")
    if kind.half_close:
        await right.heard.heard("end_of_input")
        await right.send(b"answer")
        await left.heard.received(6)
        right.call("write_eof")
    assert await right.lost() is None
    assert await left.lost() is None
    assert right.heard.data == b"question"
    assert bytes(left.heard.data) == (b"answer" if kind.half_close else b"")


async def test_closing_by_one_side(kind: Kind, pair: tuple[End, End]) -> None:
    left, right = pair
    data = pattern(100_000)
    await left.send(data)
    left.call("close")
    assert left.heard.events.count("lost") == 0  # later, not inside the call
    if kind.hangup_is_told:
        assert await right.lost() is None
    else:
        await right.heard.heard("end_of_input")
    assert await left.lost() is None
    assert right.heard.data == data


async def test_the_end_of_input_is_not_the_last_news(kind: Kind, pair: tuple[End, End]) -> None:
    if not kind.half_close:
        pytest.skip("no half close")
    left, right = pair
    left.call("write_eof")
    await right.heard.heard("end_of_input")
    await turns()
    left.call("close")
    await left.lost()
    if not kind.hangup_after_eof:
        right.write(b"is somebody there?")  # TCP answers this with a reset
        await turns()
        right.write(b"?")
    await right.lost()


async def test_a_hangup_while_paused(kind: Kind, pair: tuple[End, End]) -> None:
    if kind.name.startswith("tls") and "uvloop" in str(type(asyncio.get_running_loop())):
        pytest.skip("uvloop's TLS drops what was not read when the other side gives up waiting")
    left, right = pair
    right.call("pause_reading")
    await left.send(b"last words")
    left.call("close")
    await left.lost()
    if not kind.reads_while_paused or not kind.hangup_is_told:
        right.call("resume_reading")
    if kind.hangup_is_told:
        assert await right.lost() is None
    else:
        await right.heard.heard("end_of_input")
    assert right.heard.data == b"last words"


async def test_closing_drops_what_is_kept(pair: tuple[End, End]) -> None:
    left, right = pair
    right.call("pause_reading")
    chunk = bytes(16 * MIB)  # more than all buffers on the way hold
    written = 1
    while left.write(chunk):
        written += 1
    left.call("close")
    async with asyncio.timeout(2):
        assert await left.lost() is None
    right.call("resume_reading")
    await right.heard.until(lambda: {"lost", "end_of_input"} & set(right.heard.events))
    assert len(right.heard.data) < written * len(chunk)


async def test_closing_twice_and_everything_after_the_end(pair: tuple[End, End]) -> None:
    left, _ = pair
    left.call("close")
    left.call("close")
    for moment in ("before", "after"):
        assert left.write(b"ignored") is False, moment
        assert left.write() is False, moment
        for method in "write_eof", "pause_reading", "resume_reading", "read_available", "close":
            left.call(method)
        await left.lost()
    await turns()
    assert left.heard.events == ["lost"]


@pytest.mark.parametrize("moment", ["data", "writable", "end_of_input"])
async def test_closing_inside_a_callback(kind: Kind, pair: tuple[End, End], moment: str) -> None:
    if moment == "end_of_input" and not kind.half_close:
        pytest.skip("no half close")
    left, right = pair

    def close(event: str) -> None:
        if event == moment:
            left.call("close")
            left.call("close")

    left.heard.on_event = close
    if moment == "writable":
        while left.write(bytes(MIB)):
            pass
    elif moment == "data":
        right.write(pattern(MIB))
    else:
        right.call("write_eof")
    assert await left.lost() is None
    assert left.heard.events[-2:] == [moment, "lost"]
    left.heard.on_event = lambda event: None


async def test_starting_what_is_closed(ends: tuple[End, End]) -> None:
    left, _ = ends
    left.call("close")
    left.start()
    assert await left.lost() is None
    assert left.heard.events == ["lost"]


async def test_never_started(ends: tuple[End, End]) -> None:
    for end in ends:
        end.call("close")
    await turns()
    assert [end.heard.events for end in ends] == [[], []]


async def test_nobody_holds_a_transport_that_was_lost(pair: tuple[End, End]) -> None:
    left, right = pair
    await left.send(pattern(MIB))
    left.call("close")
    await left.lost()
    right.call("close")
    await right.lost()
    await turns()
    references = [weakref.ref(end.transport) for end in pair]
    for end in pair:
        end.transport = memory_transports()[0]
    gc.collect()
    assert [reference() for reference in references] == [None, None]


async def test_what_a_transport_says_of_itself(kind: Kind, ends: tuple[End, End]) -> None:
    for transport in (end.transport for end in ends):
        assert isinstance(transport, Transport)
        assert transport.description
        assert transport.tolerates_noise is kind.tolerates_noise
        assert (transport.credentials is not None) is kind.has_credentials
        if transport.credentials is not None:
            assert transport.credentials.uid == os.getuid()


# Descriptors


async def test_who_can_carry_descriptors(kind: Kind, ends: tuple[End, End]) -> None:
    for end in ends:
        assert end.transport.can_carry_descriptors == kind.can_carry_descriptors


@pytest.fixture
def carriers(kind: Kind, pair: tuple[End, End]) -> tuple[End, End]:
    if not kind.can_carry_descriptors:
        pytest.skip("carries no descriptors")
    pair[1].call("accept_descriptors")
    return pair


def pipe_ends(count: int) -> list[int]:
    return [fd for _ in range(count) for fd in os.pipe()]


async def test_descriptors_come_with_their_write(carriers: tuple[End, End]) -> None:
    left, right = carriers
    for number in range(1, 30):
        fds = pipe_ends(number % 3 + 1)
        await left.send(b"before")
        if not left.call("write_with_descriptors", [b"x", b"yz"], fds):
            await left.heard.heard("writable")
        await left.send(b"behind")
        close(fds)
        await right.heard.received(15 * number)
        (came,) = right.heard.descriptors
        assert len(came) == len(fds)
        assert not any(os.get_inheritable(fd) for fd in came)
        close(came)
        right.heard.descriptors.clear()


async def test_descriptors_leave_once_with_a_write_of_many_parts(
    carriers: tuple[End, End],
) -> None:
    left, right = carriers
    right.call("pause_reading")
    data = pattern(MIB)
    while left.write(data):
        await turns(2)
    blocked = left.heard.events.count("writable")
    right.call("resume_reading")
    await left.heard.heard("writable", blocked + 1)
    before = len(right.heard.data)
    fds = pipe_ends(2)
    if not left.call("write_with_descriptors", [data, data], fds):
        await left.heard.heard("writable", blocked + 2)
    close(fds)
    await right.heard.received(before + 2 * MIB)
    assert [len(came) for came in right.heard.descriptors] == [4]
    close(right.heard.descriptors[0])


async def test_descriptors_behind_a_write_that_does_not_fit(carriers: tuple[End, End]) -> None:
    """The first byte of the second write waits for room, and they with it."""
    left, right = carriers
    right.call("pause_reading")
    chunk = pattern(4096)
    fds = pipe_ends(1)
    sent = 0
    while left.call("write_with_descriptors", [chunk, b"x"], fds):
        sent += 1
    right.call("resume_reading")
    await left.heard.heard("writable")
    close(fds)
    await right.heard.received((sent + 1) * 4097)
    assert [len(came) for came in right.heard.descriptors] == [2] * (sent + 1)
    close([fd for came in right.heard.descriptors for fd in came])


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
