"""The table of docs/protocol.md that says what a receiver does with what should not be, row by row.

A raw client sends it to a served unix socket. Whatever happens to its own session, the server goes
on serving others. Where noise is tolerated (pipes), some of it is noise and the session goes on.
"""

import asyncio
import contextlib
import os
import re
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from asyncipc import (
    AuthenticationError,
    EncodeError,
    HandshakeTimeout,
    IPCError,
    Limits,
    MessagePack,
    Peer,
    PeerDied,
    RemoteProtocolError,
    Server,
    Session,
    SessionClosed,
    Timeouts,
)
from asyncipc.errors import FrameTooLarge
from asyncipc.wire.framing import MAGIC, frame_header
from tests.raw_client import RawClient, frame, hello, pack

HUGE = 1 << 20_000  # more digits than Python prints
LIMITS = Limits(max_frame=100_000, max_message=200_000, max_requests=2, max_depth=5)

UNKNOWN_VALUE = msgpack.ExtType(50, b"\xc0")


def make_peer(**settings: Any) -> Peer:
    peer = Peer(limits=LIMITS, **settings)

    @peer.on_request
    def add(a: int, b: int) -> int:
        return a + b

    @peer.on_request
    async def wait() -> None:
        await asyncio.Event().wait()

    @peer.on_notification
    async def note(text: Any = None) -> None:
        pass

    return peer


class Served:
    """A server, and a session of another client on it that must not notice anything."""

    def __init__(self, path: str, server: Server, witness: Session) -> None:
        self.path = path
        self.server = server
        self.witness = witness
        [self.of_witness] = server.sessions

    def connect(self) -> Awaitable[RawClient]:
        return RawClient.connect(self.path)

    async def goes_on(self) -> None:
        """Sessions that stand go on, and new ones can be had."""
        assert await self.witness.request("add", [1, 2]) == 3
        async with make_peer().connect(f"unix:{self.path}") as session:
            assert await session.request("add", [3, 4]) == 7

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[tuple[RawClient, Session]]:
        """A raw client, and the session that the server has with it."""
        async with await self.connect() as client:
            await client.say_hello()
            await client.send([65, 0])
            assert await client.receive() == [66, 0]
            [session] = self.server.sessions - {self.of_witness}
            yield client, session


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    path = f"{tmp_path}/socket"
    async with (
        make_peer().serve(f"unix:{path}") as server,
        make_peer().connect(f"unix:{path}") as witness,
    ):
        await witness.ping()
        yield Served(path, server, witness)


# Before a session stands


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", "b'GET / HTTP/1.1"),
        (b'{"jsonrpc": "2.0", "method": "add"}\n', "jsonrpc"),
        (b"\xf3\x4a\x9d\xe3" + bytes(8), "expected a frame"),
        (frame_header(0), "an empty envelope"),
        (frame_header(16385), "16385 bytes"),
        (frame_header(2**32 - 1, 2**32 - 1), "8589934590 bytes"),
        (frame(b"\x05"), "an envelope that is no message"),
        (frame(b"[0, {}]"), "an envelope that is no message"),
        (frame(b"\x92\x00"), "something else than a hello"),
        (frame([2, 2, "add", [1, 2]]), "kind 2 before the session stood"),
        (frame([[0, {}]]), "something else than a hello"),
        (frame(hello(), b"attached"), "attached 8 bytes before the session stood"),
        (frame([0, []]), "the parameters of the other side's hello should be a map"),
    ],
)
async def test_a_stranger_is_hung_up_on(
    served: Served, caplog: pytest.LogCaptureFixture, data: bytes, shown: str
) -> None:
    async with await served.connect() as client:
        await client.send_bytes(data)
        assert await client.receive_all() == []
        await served.goes_on()
    assert shown in caplog.text


@pytest.mark.parametrize(
    ("changes", "code", "shown"),
    [
        ({"versions": [2, 7]}, 2, "versions 2 to 7 of the protocol, this side 1 to 1"),
        ({"codec": "morse"}, 2, "the codec 'morse'"),
        ({"instance": b"short"}, 1, "5 bytes instead of 16"),
        ({"limits": {"max_frame": 1}}, 1, "max_frame should be an integer from 16384"),
    ],
)
async def test_a_hello_that_will_not_do_is_answered_by_a_goodbye(
    served: Served, changes: dict[str, Any], code: int, shown: str
) -> None:
    async with await served.connect() as client:
        await client.send(hello(**changes))
        [(kind, last_id, came, reason)] = await client.receive_all()
        assert (kind, last_id, came) == (12, 0, code)
        assert shown in reason
        await served.goes_on()


async def test_a_second_hello_ends_the_session(served: Served) -> None:
    for message in (hello(), [1, bytes(32)]):
        async with await served.connect() as client:
            await client.say_hello()
            await client.send(message)
            [(kind, _, code, reason)] = await client.receive_all()
            assert (kind, code) == (12, 1)
            assert "second hello" in reason
    await served.goes_on()


@pytest.mark.parametrize("proof", [b"", bytes(32)])
async def test_a_wrong_proof_is_refused(tmp_path: Path, proof: bytes) -> None:
    path = f"{tmp_path}/socket"
    async with make_peer().serve(f"unix:{path}", token="secret"):
        async with await RawClient.connect(path) as client:
            parameters = await client.say_hello()
            assert parameters["auth"] == ["hmac-sha256"]
            await client.send([1, proof])
            assert [message[:3] for message in await client.receive_all()] == [[12, 0, 3]]
        async with make_peer().connect(f"unix:{path}", token="secret") as session:
            assert await session.request("add", [1, 2]) == 3


@pytest.mark.parametrize("data", [b"", MAGIC, frame_header(100), frame(hello())[:-1]])
async def test_no_hello_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    path = f"{tmp_path}/socket"
    async with (
        make_peer(timeouts=Timeouts(handshake=0.02)).serve(f"unix:{path}"),
        await RawClient.connect(path) as client,
    ):
        await client.send_bytes(data)
        assert await client.receive_all() == []
        for _ in range(3):  # turns of the loop, for the server to hear of it too
            await asyncio.sleep(0)
    assert "no hello came within 0.02 s" in caplog.text


@pytest.mark.parametrize("data", [b"", MAGIC[:2], frame_header(100), frame(hello())[:-1]])
async def test_a_stranger_hangs_up(
    served: Served, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    async with await served.connect() as client:
        await client.send_bytes(data)
        client.finish()
        assert await client.receive_all() == []
        await served.goes_on()
    assert "hung up during the handshake" in caplog.text


# In a session that stands

BIG = b"x" * 50_000


def transfer(message: Any, *attached: bytes) -> bytes:
    segments = [pack(message), *attached]
    return frame([9, 1, list(map(len, segments))], b"".join(segments))


ENDS: dict[str, tuple[bytes, str]] = {
    "no frame": (b"text between frames", "expected a frame, got b'text"),
    "empty envelope": (frame_header(0), "an empty envelope"),
    "too large": (frame_header(100_001), "100001 bytes; at most 100000 are allowed"),
    "together too large": (frame_header(1, 100_000), "100001 bytes; at most 100000 are allowed"),
    "impossible": (frame_header(2**32 - 1, 2**32 - 1), "8589934590 bytes"),
    "no array": (frame(pack({"kind": 2})), "an envelope that is no message"),
    "empty array": (frame(b"\x90"), "an envelope that is no message"),
    "cut off": (frame(b"\x92\x02"), "sent no message"),
    "more behind": (frame(b"\x92\x41\x01\x00"), "sent no message"),
    "impossible array": (frame(b"\xdd\xff\xff\xff\xff\x02"), "sent no message"),
    "no text": (frame(b"\x94\x02\x02\xa1\xff\xc0"), "sent no message"),
    "a placeholder for nothing": (
        frame([2, 2, "add", [1, msgpack.ExtType(64, pack([0, "bytes"]))]]),
        "attachment 0 does not exist",
    ),
    "a placeholder used twice": (
        transfer([2, 2, "add", [msgpack.ExtType(64, pack([0, "bytes"]))] * 2], b"x"),
        "attachment 0 is used twice",
    ),
    "kind is text": (frame(["add", 2]), "sent no message"),
    "kind is true": (frame([True, 2]), "sent no message"),
    "kind is a float": (frame([2.0, 2, "add"]), "sent no message"),
    "kind is an array of none": (frame([[]]), "sent no message"),
    "batch in a batch": (frame([[[65, 1]]]), "sent no message"),
    "batch of a message and more": (frame([[65, 1], 5]), "sent no message"),
    "kind below 0": (frame([-1, 2]), "kind should be a number, not -1"),
    "kind far below 0": (frame(MessagePack().encode([-HUGE], [])), "not <int of 20001 bits>"),
    "unknown critical kind, no id": (frame([30]), "kind 30 without the id of a call"),
    "unknown critical kind, wrong id": (frame([30, "x"]), "kind 30 without the id of a call"),
    "no id": (frame([2]), "left out the id of its request"),
    "no method": (frame([2, 2]), "left out the method of its request"),
    "id is text": (frame([2, "2", "add", None]), "the id of the other side's request"),
    "id is 0": (frame([2, 0, "add", None]), "the id of the other side's request"),
    "id is too large": (frame([2, 2**63, "add", None, None]), "the id of the other side's request"),
    "id is huge": (
        frame(MessagePack().encode([2, HUGE, "add", None, None], [])),
        "the id of the other side's request",
    ),
    "method is binary": (frame([2, 2, b"add", None]), "the method of the other side's request"),
    "timeout is text": (frame([2, 2, "add", None, "5"]), "the timeout of the other side's request"),
    "timeout below 0": (frame([2, 2, "add", None, -1]), "the timeout of the other side's request"),
    "timeout is no number": (
        frame([2, 2, "add", None, float("nan")]),
        "the timeout of the other side's request",
    ),
    "timeout is huge": (
        frame(MessagePack().encode([2, 2, "add", None, HUGE], [])),
        "the timeout of the other side's request",
    ),
    "metadata is an array": (
        frame([2, 2, "add", None, None, []]),
        "the metadata of the other side's request",
    ),
    "depth is text": (frame([2, 2, "add", None, None, {"depth": "1"}]), "depth should be"),
    "depth is 0": (frame([2, 2, "add", None, None, {"depth": 0}]), "depth should be"),
    "depth is far below 0": (
        frame(MessagePack().encode([2, 2, "add", None, None, {"depth": -HUGE}], [])),
        "depth should be",
    ),
    "no result": (frame([3, 3]), "left out the result of its reply"),
    "reply to text": (frame([3, "3", 1]), "the id of the other side's reply"),
    "fault without a code": (frame([4, 3]), "left out the code of its fault"),
    "fault message is binary": (frame([4, 3, 1, b"x"]), "the message of the other side's fault"),
    "progress is text": (frame([64, 3, "half"]), "the done of the other side's progress"),
    "ping without a token": (frame([65]), "left out the token of its ping"),
    "cancel of nothing": (frame([6]), "left out the id of its cancel"),
    "odd id": (frame([2, 3, "add", [1, 2], None]), "the id 3 after 0"),
    "twice the same id": (frame([2, 4, "wait"]) * 2, "the id 4 after 4"),
    "an id gone by": (frame([2, 4, "wait"]) + frame([2, 2, "wait"]), "the id 2 after 4"),
    "too much credit": (frame([13, 0, 1]), "credit for 1 notifications, but 0 were under way"),
    "attached to a request": (frame([2, 2, "add"], b"x"), "attached 1 bytes to a message of kind"),
    "attached to a batch": (frame([[9, 1, [1]], [65, 1]], b"x"), "attached 1 bytes"),
    "part of nothing": (frame([10, 1], b"x"), "transfer 1, which it had not begun"),
    "more than begun": (frame([9, 1, [1]], b"xx"), "of which 1 were missing"),
    "much more than begun": (frame([9, 1, [1]], BIG), "of which 1 were missing"),
    "more than missing": (
        frame([9, 1, [3]], b"xx") + frame([10, 1], b"xx"),
        "of which 1 were missing",
    ),
    "part behind the end": (
        frame([9, 1, [2]], b"\x91\x7f") + frame([10, 1]),
        "transfer 1, which it had not begun",
    ),
    "begun twice": (frame([9, 1, [5]], b"x") * 2, "began transfer 1 twice"),
    "message too large": (frame([9, 1, [200_001]]), "200001 bytes; Limits.max_message is 200000"),
    "messages too large": (
        frame([9, 1, [150_000]], b"x") + frame([9, 2, [50_001]]),
        "beside 1 unfinished ones of 150000",
    ),
    "nothing begun": (frame([9, 1, [0, 5]]), "empty message"),
    "lengths below 0": (frame([9, 1, [5, -5]]), "the lengths of the other side's begin"),
    "no lengths": (frame([9, 1, []]), "the lengths of the other side's begin"),
    "too many segments": (frame([9, 1, [1] * 1026]), "over 1025 segments"),
    "too many transfers": (
        b"".join(frame([9, number, [9]], b"x") for number in range(1, 66)),
        "at most 64",
    ),
    "transfer of no message": (frame([9, 1, [2]], b"\x05\x05"), "sent no message"),
    "items for nobody": (frame([7, 3, [1]]), "items for 3, which is no call that has"),
    "items for no call": (frame([7, 2, [1]]), "items for 2, which is no call that has"),
    "items that are none": (frame([7, 3, 1]), "the items of the other side's items should be an"),
    "the end for nobody": (frame([8, 3]), "the end of items for 3"),
    "credit for nobody": (frame([13, 7, 5]), "credit for items for 7"),
    "a stream that is none": (
        frame([2, 2, "add", [1, 2], None, {"stream": 1}]),
        "whose stream should be true",
    ),
    "items nowhere": (
        frame([2, 2, "add", [1, 2], None, {"items": -1}]),
        "items true, a name or a position",
    ),
    "transfer of half a message": (frame([9, 1, [2]], b"\x93\x02"), "sent no message"),
}


@pytest.mark.parametrize(("data", "shown"), ENDS.values(), ids=ENDS)
async def test_it_ends_the_session(served: Served, data: bytes, shown: str) -> None:
    async with served.session() as (client, session):
        await client.send_bytes(data)
        [*before, (kind, _, code, reason)] = await client.receive_all()
        assert (kind, code) == (12, 1)
        assert shown in reason
        assert not before
    await session.wait_closed()
    assert isinstance(session.close_reason, SessionClosed)
    assert shown in str(session.close_reason)
    await served.goes_on()


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (frame([65, 1])[:5], "5 bytes into a frame"),
        (frame([65, 1])[:-1], "14 bytes into a frame"),
        (frame([9, 1, [100]], b"x" * 50)[:-1], "1 bytes before the end of a frame"),
        (frame([2, 2, "add", [BIG]])[:40_000], "40000 bytes into a frame"),
    ],
)
async def test_a_stream_that_ends_inside_a_frame_is_a_death(
    served: Served, data: bytes, cut: str
) -> None:
    async with served.session() as (client, session):
        await client.send_bytes(data)
        client.finish()
        assert await client.receive_all() == []
    await session.wait_closed()
    assert isinstance(session.close_reason, PeerDied)
    assert cut in str(session.close_reason)
    await served.goes_on()


DROPPED: dict[str, bytes] = {
    "reply to nobody": frame([3, 3, 1]),
    "reply with the other side's bit": frame([3, 2, 1]),
    "fault to nobody": frame([4, 5, 1, "x"]),
    "progress to nobody": frame([64, 3, 1]),
    "cancel of nothing": frame([6, 2]),
    "pong to nobody": frame([66, 5]),
    "retract of nothing": frame([11, 5]),
    "no credit": frame([13, 0, 0]),
    "unknown ignorable kind": frame([1000, "x", {}]),
    "reserved ignorable kind": frame([67, 2, 30]),
    "a very unknown kind": frame(MessagePack().encode([HUGE], [])),
    "fields of a later version": frame([66, 5, "more", {}]),
    "notification for nobody": frame([5, "nobody"]),
    "notification not understood": frame([5, "note", [UNKNOWN_VALUE]]),
    "and with metadata": frame([5, "note", UNKNOWN_VALUE, {}]),
    "notification with one param": frame([5, "note", 5, {}]),
    "notification that fails": frame([5, "note", {"nonsense": 1}]),
    "empty transfer of an unknown kind": frame([9, 1, [2, 0]], b"\x91\x7f"),
}


@pytest.mark.parametrize("data", DROPPED.values(), ids=DROPPED)
async def test_it_is_dropped_and_the_session_goes_on(served: Served, data: bytes) -> None:
    async with served.session() as (client, _):
        await client.send_bytes(data)
        await client.send([65, 7])
        while (message := await client.receive()) != [66, 7]:
            assert message[0] == 13, "credit may be given"
        assert await client.request(2, "add", [1, 2]) == [3, 3, 3]


FAULTS: dict[str, tuple[bytes, int, str]] = {
    "unknown method": (frame([2, 2, "nothing"]), 2, "no handler takes the method 'nothing'"),
    "missing parameter": (frame([2, 2, "add", [1]]), 3, "missing parameter 'b'"),
    "wrong parameter": (frame([2, 2, "add", [1, "x"]]), 3, "parameter 'b': expected int"),
    "huge parameter": (frame(MessagePack().encode([2, 2, "wait", [HUGE]], [])), 3, "parameter"),
    "one param": (frame([2, 2, "add", 5]), 3, "params should be"),
    "one param, and metadata": (frame([2, 2, "add", 5, None, {}]), 3, "params should be"),
    "unknown value": (frame([2, 2, "add", [1, UNKNOWN_VALUE], None]), 3, "params[1]"),
    "unknown value, and metadata": (
        frame([2, 2, "add", [1, UNKNOWN_VALUE], None, {"request_id": 1}]),
        3,
        "params[1]",
    ),
    "unknown params": (frame([2, 2, "add", UNKNOWN_VALUE]), 3, "params"),
    "unknown params, and metadata": (frame([2, 2, "add", UNKNOWN_VALUE, None, {}]), 3, "params"),
    "an array as a key": (frame(b"\x94\x02\x02\xa3add\x81\x90\x01"), 3, "params: a map with an"),
    "unknown critical kind": (frame([40, 2, "item"]), 8, "kind 40"),
    "reserved critical kind": (frame([30, 2]), 8, "kind 30"),
    "deeper than allowed": (frame([2, 2, "add", [1, 2], None, {"depth": 6}]), 9, "max_depth"),
    "far deeper than allowed": (
        frame(MessagePack().encode([2, 2, "add", [1, 2], None, {"depth": HUGE}], [])),
        9,
        "max_depth",
    ),
}


@pytest.mark.parametrize(("data", "code", "shown"), FAULTS.values(), ids=FAULTS)
async def test_it_is_answered_by_a_fault(
    served: Served, data: bytes, code: int, shown: str
) -> None:
    async with served.session() as (client, _):
        await client.send_bytes(data)
        kind, _, came, text, *_ = await client.answer(2)
        assert (kind, came) == (4, code)
        assert shown in text
        assert await client.request(4, "add", [1, 2]) == [3, 5, 3]


async def test_more_requests_than_allowed_are_refused(served: Served) -> None:
    async with served.session() as (client, _):
        await client.send([2, 2, "wait"], [2, 4, "wait"], [2, 6, "wait"])
        assert (await client.answer(6))[2] == 6
        await client.send([2, 8, "add", [1, 2], None, {"depth": 1}])
        assert await client.answer(8) == [3, 9, 3], "another depth has slots of its own"
        await client.send([6, 2])
        assert (await client.answer(2))[2] == 7
        assert await client.request(10, "add", [1, 2]) == [3, 11, 3]


async def test_a_call_that_is_not_understood_ends_once(served: Served) -> None:
    """An unknown critical kind for a call that is being served: the fault is its one end."""
    async with served.session() as (client, _):
        await client.send([2, 2, "wait"], [40, 2, "item"], [6, 2], [65, 1])
        came = []
        while (message := await client.receive()) != [66, 1]:
            came.append(message)
        client.finish()
        came += await client.receive_all()
        assert [message[:3] for message in came if message[1] == 3] == [[4, 3, 8]]


async def test_an_answer_that_is_not_understood_fails_its_call(served: Served) -> None:
    async with served.session() as (client, session):
        calls = [asyncio.create_task(session.request("x")) for _ in range(3)]
        ids = [(await client.receive())[1] for _ in calls]
        await client.send([40, ids[0] + 1, "item"], [3, ids[1] + 1, UNKNOWN_VALUE])
        await client.send([4, ids[2] + 1, 1, "text", {"type": "X", "exception": UNKNOWN_VALUE}])
        with pytest.raises(RemoteProtocolError, match="kind 40"):
            await calls[0]
        assert await client.receive() == [6, ids[0]], "nobody waits for it any longer"
        with pytest.raises(IPCError, match="result: extension 50"):
            await calls[1]
        with pytest.raises(IPCError, match="text"):
            await calls[2]
        assert await client.request(2, "add", [1, 2]) == [3, 3, 3]


async def test_nothing_behind_the_end_is_served(served: Served) -> None:
    """Also not in the same batch."""
    async with served.session() as (client, session):
        await client.send([[12, 0, 1, "bye"], [2, 2, "wait"], [5, "note"], [65, 1]])
        assert await client.receive_all() == []
    await session.wait_closed()
    assert session.statistics().requests_served == 0


async def test_who_asks_on_and_on_and_reads_nothing_is_hung_up_on(served: Served) -> None:
    async with served.session() as (client, session):
        pings = frame([[65, 1]] * 1000)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                await client.send_bytes(pings)
        await session.wait_closed()
    assert "reads no answers" in str(session.close_reason)
    await served.goes_on()


async def test_nothing_is_allocated_because_it_was_announced(tmp_path: Path) -> None:
    path = f"{tmp_path}/socket"
    async with Peer().serve(f"unix:{path}") as server, await RawClient.connect(path) as client:
        await client.say_hello()
        await client.send([65, 0])
        assert await client.receive() == [66, 0]
        [session] = server.sessions
        tracemalloc.start()
        try:
            await client.send([9, 1, [1024**3 - 5, 5]], attached=b"x")
            await client.send_bytes(frame_header(1024**2) + b"\x92")
            client.finish()
            await session.wait_closed()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "13 bytes into a frame" in str(session.close_reason)
    assert peak < 900_000


# Where noise is tolerated


@pytest.mark.parametrize(
    "noise",
    [
        b"text between frames",
        MAGIC + b"text",
        frame_header(0),
        frame_header(100_001),
        frame_header(2**32 - 1, 2**32 - 1),
        frame(b"\x90"),
        frame(pack({"kind": 2})),
        frame(b"\x92\x02"),
        frame(["add", 2]),
        frame([[]]),
    ],
)
async def test_on_pipes_it_is_noise(noise: bytes) -> None:
    reads, other_writes = os.pipe()
    other_reads, writes = os.pipe()
    with open(other_reads, "rb") as output, open(other_writes, "wb", buffering=0) as pipe:
        pipe.write(frame(hello()))
        session = await make_peer().wrap(reads, writes)
        came = bytearray()
        session.on_noise(came.extend)
        pipe.write(noise + frame([2, 2, "add", [1, 2]]))
        pipe.close()
        await session.wait_closed()
        assert bytes(came) == noise
        assert session.statistics().noise_received == len(noise)
        assert frame([3, 3, 3]) in output.read()


# The connecting side meets something that is no peer


@contextlib.asynccontextmanager
async def listening(
    path: str, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    done = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        done.set()

    server = await asyncio.start_unix_server(connected, path)
    yield
    server.close()
    await done.wait()
    await server.wait_closed()


def saying(*frames: bytes) -> Any:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        writer.write(b"".join(frames))

    return talk


async def echoing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    header = await reader.readexactly(12)
    writer.write(header + await reader.readexactly(int.from_bytes(header[4:8], "big")))


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"notification_credit")
    await reader.read(100)
    writer.close()


@pytest.mark.parametrize(
    ("talk", "error", "shown"),
    [
        (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), RemoteProtocolError, "HTTP/1.1 400"),
        (saying(frame(hello(versions=[2, 3]))), RemoteProtocolError, "versions 2 to 3"),
        (saying(frame(hello(codec="json"))), RemoteProtocolError, "answered 'json'"),
        (saying(frame(hello(auth=["hmac-sha256"]))), AuthenticationError, "give token="),
        (saying(frame([12, 0, 4, "full"])), SessionClosed, "full"),
        (saying(frame([12, 0, 3, "who?"])), AuthenticationError, "who?"),
        (saying(frame([12, 0, 99, "later"])), RemoteProtocolError, "later"),
        (saying(frame_header(16385)), FrameTooLarge, "16385"),
        (saying(), HandshakeTimeout, "no hello came within 0.1 s"),
        (saying(MAGIC), HandshakeTimeout, "no hello came within 0.1 s"),
        (echoing, RemoteProtocolError, "echoes what it is sent"),
        (hanging_up, SessionClosed, "during the handshake"),
    ],
)
async def test_what_listens_is_no_peer(
    tmp_path: Path, talk: Any, error: type[IPCError], shown: str
) -> None:
    path = f"{tmp_path}/socket"
    async with listening(path, talk):
        # The others have their time, however busy the machine is.
        patience = 0.1 if error is HandshakeTimeout else 20.0
        peer = make_peer(timeouts=Timeouts(handshake=patience))
        with pytest.raises(error, match=re.escape(shown)):
            await peer.connect(f"unix:{path}")


# What cannot be sent


async def test_what_cannot_be_encoded_fails_before_anything_is_sent(served: Served) -> None:
    session = served.witness
    sent = session.statistics().bytes_sent
    params = {"items": [1, 2, 3, {"when": object()}]}
    with pytest.raises(EncodeError, match=r"^params\.items\[3\]\.when: "):
        await session.request("add", params)
    with pytest.raises(EncodeError, match=r"^params\.items\[3\]\.when: "):
        await session.notify("note", params)
    assert session.statistics().bytes_sent == sent
    await served.goes_on()
