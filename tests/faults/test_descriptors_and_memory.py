"""A peer that does with descriptors and shared memory what it must not, or dies with them."""

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy
import pytest

from asyncipc import Fd, Limits, Peer, PeerDied, Session, SessionClosed
from asyncipc.transport.regions import PAGE
from asyncipc.transport.shared_memory import SEALS
from asyncipc.wire.messages import (
    BEGIN,
    DESCRIPTORS,
    GOODBYE,
    ITEMS,
    MEMORY,
    NOTIFY,
    PART,
    PING,
    RELEASE,
    REQUEST,
    RETRACT,
)
from tests.raw_client import RawClient, frame, hello, pack
from tests.session.support import MIB, Journal, failure

ARENA = 16 * PAGE


def placeholder(index: int, kind: str = "descriptor") -> msgpack.ExtType:
    return msgpack.ExtType(64, pack([index, kind]))


class RawCarrier(RawClient):
    """A peer by hand that can send descriptors, each right or wrong."""

    async def carry(
        self, message: Any, *fds: int, attached: bytes = b"", data: bytes = b""
    ) -> None:
        """Send a message in a frame, with descriptors, which are closed here."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, numpy.array(fds, "i4").tobytes())
        self._sock.sendmsg([data or frame(message, attached)], [rights])
        for fd in fds:
            os.close(fd)

    async def notify(
        self, lengths: list[Any], fds: int, params: list[Any], transfer: int = 1
    ) -> None:
        """A notification whose attachments are declared so, with so many descriptors."""
        envelope = pack([NOTIFY, "take", params])
        begin = [BEGIN, transfer, [len(envelope), *lengths]]
        await self.carry(begin, *pipes(fds), attached=envelope)

    async def announce(self, fd: int, size: int = ARENA, segment: int = 1) -> None:
        envelope = pack([MEMORY, segment, size, placeholder(0)])
        await self.carry([BEGIN, 99, [len(envelope), None]], fd, attached=envelope)

    async def goodbye(self) -> str:
        """The reason for which the session was ended."""
        while (message := await self.receive())[0] != GOODBYE:
            pass
        assert message[2] == 1
        reason = message[3]
        assert isinstance(reason, str)
        return reason


def pipes(count: int) -> list[int]:
    fds = []
    for _ in range(count):
        reader, writer = os.pipe()
        os.close(writer)
        fds.append(reader)
    return fds


def memfd(size: int = ARENA, seals: int = SEALS, content: bytes = b"") -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@contextlib.asynccontextmanager
async def facing(
    peer: Peer | None = None, *, ask: bool = True
) -> AsyncIterator[tuple[RawCarrier, Session, Journal]]:
    """A session of a peer whose notifications are noted; it has been asked for credit."""
    limits = Limits() if peer is not None else Limits(max_descriptors=4)
    peer, taken = peer or Peer(limits=limits), Journal()
    peer.on_notification("take")(lambda *values: taken.append(values))
    ours, theirs = socket.socketpair()
    announced = {"max_message": 2**30, "max_requests": 100, "max_descriptors": 4}
    async with RawCarrier(ours) as raw:
        await raw.send(hello(features=["descriptors", "shared memory"], limits=announced))
        async with peer.wrap(theirs) as session:
            await raw.receive()
            if ask:
                await raw.send([DESCRIPTORS, 0])
                assert await raw.receive() == [DESCRIPTORS, 2 * limits.max_descriptors]
            yield raw, session, taken


async def ended(raw: RawCarrier, session: Session, complaint: str) -> None:
    """The session ends, both sides are told why; what is left over, the test of leftovers sees."""
    assert complaint in await raw.goodbye()
    await session.wait_closed()
    assert isinstance(session.close_reason, SessionClosed)
    assert complaint in str(session.close_reason)


async def test_the_raw_peer_can_do_it_right() -> None:
    async with facing() as (raw, _, taken):
        await raw.notify([None, None], 2, [[placeholder(1), placeholder(0)]])
        await taken.reaches(1)
        for fd in taken[0][0]:
            assert isinstance(fd, Fd)
            fd.close()


# -- descriptors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "came", "complaint"),
    [
        (2, 1, "declared 2 file descriptors, but 1 came"),
        (1, 3, "declared 1 file descriptors, but 3 came"),
        (1, 0, "declared 1 file descriptors, but 0 came"),
    ],
)
async def test_a_count_that_does_not_match(declared: int, came: int, complaint: str) -> None:
    async with facing() as (raw, session, taken):
        await raw.notify([None] * declared, came, [placeholder(0)])
        await ended(raw, session, complaint)
        assert not taken


async def test_descriptors_that_nobody_declares() -> None:
    async with facing() as (raw, session, _):
        await raw.carry([PING, 1], *pipes(2))
        await ended(raw, session, "sent 2 file descriptors with a frame that declares none")


async def test_descriptors_inside_a_frame_that_does_not_declare_them() -> None:
    """It may be taken for that of the next message, but not for long."""
    async with facing() as (raw, session, taken):
        data = frame([PING, 1])
        await raw.carry(None, *pipes(1), data=data[:5])
        await raw.send_bytes(data[5:])
        await raw.notify([None], 1, [placeholder(0)])
        await raw.notify([None], 1, [placeholder(0)], 2)
        await ended(raw, session, "with a frame that declares none")
        for (fd,) in taken:
            fd.close()


async def test_descriptors_beyond_the_credit() -> None:
    async with facing() as (raw, session, _):
        envelope = pack([NOTIFY, "take", [placeholder(0)]])
        for number in range(3):  # none of these is finished, so no credit comes back
            begin = [BEGIN, number + 1, [len(envelope), *[None] * 3]]
            await raw.carry(begin, *pipes(3), attached=envelope[:1])
        await ended(raw, session, "9 file descriptors under way, more than 8")


@pytest.mark.parametrize("in_shared_memory", [False, True])
async def test_items_with_descriptors_beyond_the_credit(in_shared_memory: bool) -> None:
    """Nobody reads them: they are held as long as they are few."""
    peer, started = Peer(limits=Limits(max_descriptors=4)), Journal()

    @peer.on_request
    async def store(items: AsyncIterator[Any]) -> None:
        started.append(items)
        await asyncio.Event().wait()

    async with facing(peer, ask=False) as (raw, session, _), asyncio.timeout(20):
        await raw.send([DESCRIPTORS, 0], [REQUEST, 2, "store", [None], None, {"items": 0}])
        assert await raw.receive() == [DESCRIPTORS, 8]
        await started.reaches(1)
        for number in range(1, 6):  # more than 4; credit for each was given back
            kind = "memoryview" if in_shared_memory else "descriptor"
            envelope = pack([ITEMS, 2, [placeholder(0, kind)]])
            begin = [BEGIN, number, [len(envelope), [PAGE] if in_shared_memory else None]]
            (fd,) = [memfd(PAGE)] if in_shared_memory else pipes(1)
            await raw.carry(begin, fd, attached=envelope)
        await ended(raw, session, "sent items while at least 262144 bytes of them were under way")
        assert session.statistics().descriptors_received == 5


async def test_a_batch_with_descriptors() -> None:
    peer = Peer(limits=Limits(max_descriptors=4))

    @peer.on_request
    async def store(items: AsyncIterator[Any]) -> None:
        await asyncio.Event().wait()

    async with facing(peer, ask=False) as (raw, session, _), asyncio.timeout(20):
        await raw.send([DESCRIPTORS, 0], [REQUEST, 2, "store", [None], None, {"items": 0}])
        assert await raw.receive() == [DESCRIPTORS, 8]
        envelope = pack([[ITEMS, 2, [placeholder(0)]], [ITEMS, 2, [1]]])
        await raw.carry([BEGIN, 1, [len(envelope), None]], *pipes(1), attached=envelope)
        await ended(raw, session, "sent a batch as a transfer")


async def test_descriptors_of_what_is_dropped_are_closed_and_credited() -> None:
    async with facing() as (raw, _, taken):
        envelope = pack([NOTIFY, "take", [placeholder(0)]])
        await raw.carry([BEGIN, 5, [len(envelope), None]], *pipes(1), attached=envelope[:1])
        await raw.send([RETRACT, 5])
        # One that has no handler, and one with a value that is not understood.
        nobody = pack([REQUEST, 2, "nobody", [placeholder(0)], None])
        await raw.carry([BEGIN, 6, [len(nobody), None]], *pipes(1), attached=nobody)
        broken = pack([NOTIFY, "take", [placeholder(0), msgpack.ExtType(17, b"\0")]])
        await raw.carry([BEGIN, 7, [len(broken), None]], *pipes(1), attached=broken)
        credit = 0
        while credit < 2:
            message = await raw.receive()
            if message[0] == DESCRIPTORS:
                credit += message[1]
        assert not taken


async def test_a_placeholder_of_the_wrong_sort() -> None:
    for kind, lengths, fds in (("bytes", [None], 1), ("descriptor", [0], 0)):
        async with facing() as (raw, session, _):
            await raw.notify(lengths, fds, [placeholder(0, kind)])
            await ended(raw, session, f"attachment 0 is no {kind}")


async def test_too_many_open_files() -> None:
    """What the kernel had no room for is lost: the session ends, and nothing else does."""
    async with facing() as (raw, session, _):
        fds = pipes(4)
        envelope = pack([NOTIFY, "take", [placeholder(n) for n in range(4)]])
        begin = [BEGIN, 1, [len(envelope), *[None] * 4]]
        await raw.carry(begin, *fds, attached=envelope)
        with no_more_files():
            assert "as many open as it may" in await raw.goodbye()
            await session.wait_closed()
        assert "RLIMIT_NOFILE" in str(session.close_reason)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open two files more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0), os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, limits[1]))
    for fd in free:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_no_descriptor_left_to_copy_one_that_is_to_be_sent() -> None:
    async with facing() as (_, session, _taken):
        (fd,) = pipes(1)
        with Fd(fd) as kept:
            with no_more_files():
                extra = [os.dup(0), os.dup(0)]
                error = await failure(session.request("take", kept))
                for each in extra:
                    os.close(each)
            assert "Too many open files" in str(error)
            assert not kept.closed
            assert session.statistics().pending == 0


async def test_more_credit_than_can_be() -> None:
    async with facing() as (raw, session, _):
        await raw.send([DESCRIPTORS, 8], [DESCRIPTORS, 1])
        await ended(raw, session, "takes 9 file descriptors at once, but its Limits.max_descript")


# -- shared memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ((ARENA, 0), "has the seals 0x0"),
        ((ARENA, SEALS & ~16), "has the seals"),
        ((PAGE, SEALS), "has 4096 bytes instead of 65536"),
        (None, "is no memfd"),
    ],
)
async def test_an_arena_that_is_none(made: tuple[int, int] | None, complaint: str) -> None:
    async with facing() as (raw, session, _):
        await raw.announce(*(pipes(1) if made is None else [memfd(*made)]))
        await ended(raw, session, complaint)


@pytest.mark.parametrize("own", [False, True])
async def test_shared_memory_that_cannot_be_mapped(own: bool) -> None:
    """It is no fault of the sender's, nor a reason to end: the bytes are copied."""
    async with facing() as (raw, session, taken), asyncio.timeout(20):
        await raw.notify([], 0, [0])
        await taken.reaches(1)
        fd = memfd(content=b"x" * PAGE)
        envelope = pack([NOTIFY, "take", [placeholder(0, "memoryview")]])
        with no_more_files():
            if own:
                await raw.carry([BEGIN, 1, [len(envelope), [ARENA]]], fd, attached=envelope)
            else:
                await raw.announce(fd)
            extra = [os.dup(0), os.dup(0)]  # one is left, for what comes
            if not own:
                begin = [BEGIN, 1, [len(envelope), [1, 1, 0, PAGE + 1]]]
                await raw.send(begin, attached=envelope)
            await taken.reaches(2)
            for each in extra:
                os.close(each)
        assert "/memfd:test" not in Path("/proc/self/maps").read_text()
        [view] = taken[1]
        assert bytes(view) == (b"x" * PAGE).ljust(ARENA if own else PAGE + 1, b"\0")
        assert not session.closed


async def test_a_second_arena() -> None:
    async with facing() as (raw, session, _):
        await raw.announce(memfd())
        await raw.announce(memfd(), segment=2)
        await ended(raw, session, "announced a second arena")


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        ([1, 1, 0, ARENA + 1], "are no region of an arena"),
        ([1, 1, ARENA, 1], "are no region of an arena"),
        ([1, 1, 17, 100], "are no region of an arena"),
        ([1, 1, 2**62, 2**62], "are no region of an arena"),
        ([1, 1, 0, 0], "are no region of an arena"),
        ([2, 1, 0, PAGE], "refers to segment 2 of shared memory, which it has not announced"),
    ],
)
@pytest.mark.parametrize("where", ["begin", "part"])
async def test_a_region_that_is_not_there(region: list[int], complaint: str, where: str) -> None:
    async with facing(Peer(limits=Limits(max_message=2**48))) as (raw, session, taken):
        await raw.announce(memfd())
        envelope = pack([NOTIFY, "take", [placeholder(0, "bytes")]])
        if where == "begin":
            await raw.send([BEGIN, 1, [len(envelope), region]], attached=envelope)
        else:
            await raw.send([BEGIN, 1, [len(envelope), 2**40]], attached=envelope)
            await raw.send([PART, 1, region])
        await ended(raw, session, complaint)
        assert not taken


async def test_a_region_before_any_arena() -> None:
    async with facing() as (raw, session, _):
        await raw.notify([[1, 1, 0, PAGE]], 0, [placeholder(0, "bytes")])
        await ended(raw, session, "which it has not announced")


async def test_a_region_that_is_still_held() -> None:
    async with facing() as (raw, session, taken):
        await raw.announce(memfd())
        for number in (1, 2):
            await raw.notify([[1, 7, 0, PAGE]], 0, [placeholder(0, "memoryview")], number)
        await ended(raw, session, "sent region 7 twice")
        assert len(taken) == 1


@pytest.mark.parametrize(("page", "pages"), [(2, 1), (2, 2), (3, 1), (1, 2), (1, 4), (0, 9)])
@pytest.mark.parametrize("where", ["begin", "part"])
async def test_a_region_that_overlaps_one_that_is_held(page: int, pages: int, where: str) -> None:
    """What the receiver wrote to a region of its own is never seen in another."""
    async with facing() as (raw, session, taken):
        await raw.announce(memfd())
        array = msgpack.ExtType(82, pack(["|u1", [PAGE + 1], "C", placeholder(0, "array")]))
        await raw.notify([[1, 1, 2 * PAGE, PAGE + 1]], 0, [array])
        await taken.reaches(1)
        taken[0][0][:] = 1
        region = [1, 2, page * PAGE, pages * PAGE]
        envelope = pack([NOTIFY, "take", [placeholder(0, "bytes")]])
        if where == "begin":
            await raw.send([BEGIN, 2, [len(envelope), region]], attached=envelope)
        else:
            await raw.send([BEGIN, 2, [len(envelope), MIB]], attached=envelope)
            await raw.send([PART, 2, region])
        await ended(raw, session, "shares pages with region 1, which was not given back")
        assert len(taken) == 1


async def test_regions_beside_each_other_and_again_after_their_return() -> None:
    async with facing() as (raw, _, taken):
        await raw.announce(memfd())
        for number, page in enumerate((4, 2, 3, 0, 5), 1):
            region = [1, number, page * PAGE, PAGE]
            await raw.notify([region], 0, [placeholder(0, "memoryview")], number)
        await taken.reaches(5)
        taken.clear()
        gc.collect()
        back: list[int] = []
        while len(back) < 5:
            message = await raw.receive()
            back += message[2] if message[0] == RELEASE else []
        await raw.notify([[1, 1, 0, ARENA]], 0, [placeholder(0, "memoryview")], 6)
        await taken.reaches(1)


async def test_regions_come_back_each_once() -> None:
    async with facing() as (raw, _, taken):
        await raw.announce(memfd())
        for number in (1, 2, 3):
            kind = "bytes" if number == 1 else "memoryview"
            region = [1, number, number * PAGE, PAGE]
            await raw.notify([region], 0, [placeholder(0, kind)], number)
        await taken.reaches(3)
        taken.clear()
        gc.collect()
        back: list[int] = []
        while len(back) < 3:
            message = await raw.receive()
            if message[0] == RELEASE:
                assert message[1] == 1
                back += message[2]
        assert sorted(back) == [1, 2, 3]


@pytest.mark.parametrize("release", [[1, [1]], [2, [0]], [1, [5, 5]], [1, [2**62]]])
async def test_a_release_of_what_was_not_sent(release: list[Any]) -> None:
    async with facing() as (raw, session, _):
        await raw.send([RELEASE, *release])
        await ended(raw, session, "which it did not have")


async def test_a_region_released_before_it_was_sent() -> None:
    """Its number can be guessed; what waits in it is neither overwritten nor lost."""
    async with facing(ask=False) as (raw, session, _), asyncio.timeout(20):
        task = asyncio.create_task(session.request("take", [numpy.ones(MIB, "u1")]))
        assert await raw.receive() == [DESCRIPTORS, 0]  # which is not answered: nothing leaves
        assert session.statistics().arena_used == MIB
        await raw.send([RELEASE, 1, [1]])
        await ended(raw, session, "gave back region 1 of segment 1, which it did not have")
        assert isinstance(await failure(task), SessionClosed)
        assert session.statistics().pending == 0


async def test_a_region_released_twice() -> None:
    async with facing(ask=False) as (raw, session, _):
        await raw.send([DESCRIPTORS, 8])
        task = asyncio.create_task(session.notify("take", [numpy.zeros(MIB, "u1")]))
        begun = 0
        while begun < 2:  # the arena's and the notification's
            envelope, _attached = await raw.receive_frame()
            begun += envelope[1] == BEGIN
        await task
        assert session.statistics().arena_used == MIB
        await raw.send([RELEASE, 1, [1]], [RELEASE, 1, [1]])
        await ended(raw, session, "gave back region 1 of segment 1, which it did not have")


async def test_memory_over_the_limit_of_a_message() -> None:
    async with facing(Peer(limits=Limits(max_message=MIB))) as (raw, session, _):
        await raw.announce(memfd(2 * MIB), 2 * MIB)
        await raw.notify([[1, 1, 0, 2 * MIB]], 0, [placeholder(0, "bytes")])
        await ended(raw, session, "Limits.max_message is 1048576")


async def test_memory_of_its_own_that_is_none() -> None:
    async with facing() as (raw, session, _):
        await raw.notify([[PAGE]], 1, [placeholder(0, "memoryview")])
        await ended(raw, session, "the other side's shared memory: what should be shared memory")


async def test_what_was_not_agreed_on() -> None:
    ours, theirs = socket.socketpair()
    async with RawCarrier(ours) as raw:
        await raw.send(hello())
        async with Peer().wrap(theirs) as session:
            await raw.receive()
            envelope = pack([NOTIFY, "take", [placeholder(0)]])
            await raw.send([BEGIN, 1, [len(envelope), None]], attached=envelope)
            await ended(raw, session, "which was not agreed on")


async def test_the_peer_dies_with_descriptors_under_way() -> None:
    async with facing() as (raw, session, taken):
        await raw.notify([None], 1, [placeholder(0)])
        envelope = pack([NOTIFY, "take", [placeholder(0)]])
        begin = [BEGIN, 2, [len(envelope), None]]
        await raw.carry(begin, *pipes(1), attached=envelope[:-1])
        await raw.carry(None, *pipes(1), data=frame(begin)[:7])
        raw._sock.close()
        await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)
        for (fd,) in taken:
            fd.close()
