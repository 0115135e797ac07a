"""Whatever comes in, a session goes on or ends in a documented way, and leaves nothing behind.

Valid traffic is recorded as bytes, then cut, repeated and overwritten, or it is made of odd values
to begin with; and is fed to a real session, whole or a byte at a time. Then the stream ends.
Allowed is that the session ends, with one of the library's errors for everybody who waits. Not
allowed: that it hangs, that anything reaches the loop's exception handler, that the library itself
is surprised, or that a task, a descriptor or a thread is left.
"""

import asyncio
import base64
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncipc import (
    JSON,
    Call,
    Codec,
    EncodeError,
    IPCError,
    Limits,
    MessagePack,
    Peer,
    Session,
    SessionClosed,
    Timeouts,
)
from asyncipc.wire.framing import MAGIC, frame_header
from asyncipc.wire.messages import FIELD_NAMES
from tests.raw_client import RawClient, frame, hello
from tests.wire.test_messages import COMPLETE, WRONG

# Seconds in which an example is over; it takes milliseconds.
LIMIT = 10

LIMITS = Limits(max_frame=16384, max_message=40_000, max_requests=3, notification_credit=16384)
TIMEOUTS = Timeouts(handshake=LIMIT)

bounded = settings(
    max_examples=25,
    # The fixtures hold nothing that an example could change.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# What comes in


@dataclass(frozen=True)
class Extension:
    """An extension value, right or wrong."""

    code: int
    payload: Any


CODECS: dict[str, Codec] = {"msgpack": MessagePack(), "json": JSON()}
NAMES = {64: "attachment", 67: "tuple", 70: "int", 71: "datetime", 80: "enum", 81: "message"}
METHODS = ["add", "slow", "fail", "ask", "count", "large", "thread", "log", "unknown"]
METHODS += ["produce", "store", "chat"]


def packed(message: Any, codec: str = "msgpack") -> bytes:
    """A message, or anything, as an envelope; checks nothing."""
    if codec == "json":
        return json.dumps(message, default=_json_escape, ensure_ascii=True).encode()
    data: bytes = msgpack.packb(message, default=_extension)
    return data


def _extension(value: Any) -> Any:
    return msgpack.ExtType(value.code, packed(value.payload))


def _json_escape(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    name = NAMES.get(value.code)
    return {f"${name}": value.payload} if name else {"$ext": [value.code, value.payload]}


# Integers that no codec has a number for, and that Python does not print.
HUGE = Extension(70, "1" + "0" * 5000)
HUGE_NEGATIVE = Extension(70, "-1" + "0" * 5000)

ids = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 100, 101, 2**62, 0, -2, True, None, "2", HUGE])
scalars = (
    st.sampled_from([None, True, 0, 1, -1, 2**31, 0.5, -0.5, 1e300, HUGE, HUGE_NEGATIVE, "a"])
    | st.integers(-5, 300)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "depth", "type", "exception", "$x"]), inner)
        | st.builds(Extension, st.integers(0, 127) | st.sampled_from(sorted(NAMES)), inner)
    ),
    max_leaves=5,
)
requests = st.builds(
    lambda number, method, params, *rest: [2, 2 * number, method, params, *rest],
    st.integers(1, 50),
    st.sampled_from(METHODS),
    st.sampled_from([None, [], [1, 2], {"a": 1}, [b"x"], ["text"]]),
    st.sampled_from([None, 5, 0.1]),
    st.sampled_from([None, {}, {"depth": 1}, {"request_id": "x"}])
    | st.fixed_dictionaries(
        {}, optional={"stream": st.just(True), "items": st.sampled_from([True, 0, "items"])}
    ),
)
# Of what the handlers and `use` have streams for, too.
stream_ids = st.integers(2, 16)
valid_messages = st.one_of(
    requests,
    st.builds(lambda params: [5, "log", params], st.sampled_from([None, [1], {"text": "hi"}])),
    st.builds(lambda number, value: [3, 2 * number + 1, value], st.integers(1, 6), values),
    st.builds(
        lambda number, code: [4, 2 * number + 1, code, "text", {"type": "ValueError"}],
        st.integers(1, 6),
        st.integers(0, 12),
    ),
    st.builds(
        lambda number, done: [64, 2 * number + 1, done], st.integers(1, 6), st.integers(-9, 9)
    ),
    st.builds(lambda number: [6, 2 * number], st.integers(1, 50)),
    st.builds(lambda id_, items: [7, id_, items], stream_ids, st.lists(values, max_size=3)),
    st.builds(lambda id_: [8, id_], stream_ids),
    st.builds(lambda id_, count: [13, id_, count], stream_ids, st.integers(0, 3)),
    st.sampled_from([[65, 1], [66, 1], [13, 0, 1], [11, 9], [12, 2, 0, ""], [12, 0, 1, "bad"]]),
    st.sampled_from([[40, 2], [40, 3], [14, 100, "x"], [63], [67, 2, 30], [1000]]),
)
odd_messages = st.one_of(
    # One field of a valid message is something else, or there is one more.
    st.builds(
        lambda message, place, value: [*message[:place], value, *message[place + 1 :]],
        requests | valid_messages,
        st.integers(0, 5),
        st.sampled_from([HUGE, HUGE_NEGATIVE, {"depth": HUGE_NEGATIVE}]) | ids | values,
    ),
    st.builds(
        lambda kind, id_, fields: [kind, id_, *fields],
        st.integers(-1, 16)
        | st.sampled_from([63, 64, 65, 66, 67, 2**63, True, 2.0, HUGE_NEGATIVE]),
        ids,
        st.lists(st.sampled_from(METHODS) | values, max_size=4),
    ),
    st.lists(values, max_size=4),
    values,
)


@st.composite
def pieces(draw: st.DrawFn, codec: str) -> bytes:
    """A frame, some frames, or something between frames."""
    messages = draw(st.lists(valid_messages | odd_messages, min_size=1, max_size=3))
    envelopes = [packed(message, codec) for message in messages]
    match draw(st.sampled_from(["frames", "batch", "transfer", "attached", "noise"])):
        case "frames":
            return b"".join(map(frame, envelopes))
        case "batch":
            return frame(CODECS[codec].join(envelopes))
        case "transfer":
            extra = draw(st.lists(st.binary(max_size=20), max_size=2))
            return transfer(draw(st.integers(1, 3)), [envelopes[0], *extra], codec)
        case "attached":
            return frame(envelopes[0], draw(st.binary(max_size=20)))
        case _:  # noise
            return draw(st.binary(max_size=20) | st.sampled_from([MAGIC[:2], MAGIC]))


def transfer(number: int, segments: Sequence[bytes], codec: str, *, part: int = 16) -> bytes:
    data = b"".join(segments)
    frames = [frame(packed([9, number, list(map(len, segments))], codec), data[:part])]
    frames += [
        frame(packed([10, number], codec), data[start : start + part])
        for start in range(part, len(data), part)
    ]
    return b"".join(frames)


edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["overwrite", "insert", "delete", "repeat"]),
        st.binary(min_size=1, max_size=4),
        st.integers(1, 40),
    ),
    max_size=3,
)


def edited(data: bytes, changes: Iterable[tuple[float, str, bytes, int]]) -> bytes:
    for place, what, new, size in changes:
        start = int(place * len(data))
        match what:
            case "overwrite":
                data = data[:start] + new + data[start + len(new) :]
            case "insert":
                data = data[:start] + new + data[start:]
            case "delete":
                data = data[:start] + data[start + size :]
            case _:  # repeat
                data = data[: start + size] + data[start:]
    return data


traffic = st.sampled_from(["msgpack", "json"]).flatmap(
    lambda codec: st.tuples(
        st.just(codec),
        st.builds(
            edited,
            st.lists(pieces(codec), min_size=1, max_size=5).map(b"".join),
            st.just([]) | edits,
        ),
    )
)


# Where it comes in


class OtherEnd:
    """The ends of the streams that are not the session's: writes, and throws away what comes."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._loop.add_reader(read_fd, self._read)
        self.came = b""

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = os.read(self._read_fd, 1 << 20)
        self.came += data
        if not data:
            self._loop.remove_reader(self._read_fd)

    async def write(self, data: bytes, *, bytewise: bool) -> None:
        """All of it fits into the kernel's buffer. What the session does not want is dropped."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Of much data, a few bytes at a time: what is long is one value, the same all through.
            step = 1 + len(data) // 1000 if bytewise else max(len(data), 1)
            for chunk in (data[at : at + step] for at in range(0, len(data), step)):
                assert os.write(self._write_fd, chunk) == len(chunk)
                await asyncio.sleep(0)

    async def finish(self) -> None:
        """The end of input, for a moment before the end of everything."""
        if self._write_fd == self._read_fd:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._read_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        else:
            os.close(self._write_fd)
            self._write_fd = -1
        for _ in range(3):
            await asyncio.sleep(0)

    def close(self) -> None:
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        if self._write_fd not in (-1, self._read_fd):
            os.close(self._write_fd)


@contextlib.contextmanager
def streams(kind: str) -> Iterator[tuple[OtherEnd, Any]]:
    """The other end, and what to open the session with."""
    if kind == "pipes":  # noise is tolerated
        session_reads, other_writes = os.pipe()
        other_reads, session_writes = os.pipe()
        other = OtherEnd(other_reads, other_writes)
        ours: Any = (session_reads, session_writes)
    else:
        sock, theirs = socket.socketpair()
        fd = theirs.detach()
        other = OtherEnd(fd, fd)
        ours = (sock,)
    try:
        yield other, ours
    finally:
        other.close()


def make_peer() -> Peer:
    peer = Peer(limits=LIMITS, timeouts=TIMEOUTS, timeout=None)

    @peer.on_request
    def add(a: int, b: int = 0) -> int:
        return a + b

    @peer.on_request
    async def slow() -> None:
        await asyncio.Event().wait()

    @peer.on_request
    def fail(why: Any = None) -> None:
        raise ValueError(why)

    @peer.on_request
    async def ask(call: Call) -> Any:
        return await call.session.request("back")

    @peer.on_request
    async def count(call: Call) -> int:
        for done in range(3):
            await call.progress(done, 3)
        return 3

    @peer.on_request
    def large() -> bytes:
        return bytes(20_000)

    @peer.on_request(thread=True)
    def thread() -> None:
        pass

    @peer.on_notification
    async def log(text: Any = None) -> None:
        await asyncio.sleep(0)

    serve_streams(peer)
    return peer


def serve_streams(peer: Peer) -> None:
    @peer.on_request
    async def produce(call: Call) -> AsyncIterator[int]:
        for number in range(100):
            yield number

    @peer.on_request
    async def store(items: Any = None) -> int:
        return sum([1 async for _ in items])

    @peer.on_request
    async def chat(call: Call) -> None:
        async for item in call.channel():
            await call.channel().send(item)


class Surprises(logging.Handler):
    """What the library did not expect of itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "broke" in record.msg:
            self.found.append(record.exc_info)


@contextlib.asynccontextmanager
async def no_surprises() -> AsyncIterator[None]:
    loop, surprises = asyncio.get_running_loop(), Surprises()
    logger = logging.getLogger("asyncipc")
    logger.addHandler(surprises)
    loop.set_exception_handler(lambda _, context: surprises.found.append(context))
    try:
        async with asyncio.timeout(LIMIT):
            yield
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=LIMIT)
        assert not left
    finally:
        loop.set_exception_handler(None)
        logger.removeHandler(surprises)
    assert not surprises.found


async def outcome(work: Coroutine[Any, Any, Any]) -> Any:
    """A value or an error of the library; everything else fails the test."""
    try:
        return await work
    except IPCError as error:
        return error


async def use(session: Session) -> None:
    """Wait for the other side in every way there is."""
    waiting = [
        session.request("anything", [1]),
        session.request("anything", on_progress=lambda _: None),
        session.request("bulk", bytes(20_000)),
        session.notify("something", "text"),
        session.ping(),
        read(session),
        session.request("store", [numbers()]),
        talk(session),
    ]
    await asyncio.gather(*map(outcome, waiting))


async def numbers() -> AsyncIterator[int]:
    for number in range(100):
        yield number


async def read(session: Session) -> None:
    async for _ in session.stream("produce"):
        pass


async def talk(session: Session) -> None:
    async with session.channel("chat") as channel:
        await channel.send(1)
        await channel.send_eof()
        async for _ in channel:
            pass


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("kind", ["socket", "pipes"])
@bounded
@given(traffic=traffic)
async def test_an_open_session(kind: str, bytewise: bool, traffic: tuple[str, bytes]) -> None:
    codec, data = traffic
    async with no_surprises():
        with streams(kind) as (other, ours):
            await other.write(frame(hello(codec=codec)), bytewise=False)
            session = await make_peer().wrap(*ours)
            session.on_noise(lambda _: None)
            using = asyncio.create_task(use(session))
            await asyncio.sleep(0)
            await other.write(data, bytewise=bytewise)
            await other.finish()
        await session.wait_closed()
        await using
        reason = session.close_reason
        assert reason is None or isinstance(reason, SessionClosed)
        assert await outcome(session.request("add", [1])) is not None


hellos = st.builds(
    lambda changes, *more: packed([0, {**hello()[1], **changes}, *more]),
    st.dictionaries(
        st.sampled_from(["versions", "instance", "codec", "features", "limits", "auth", "more"]),
        values,
        max_size=3,
    ),
)
first_pieces = st.one_of(
    st.just(frame(hello())),
    st.just(frame(hello(auth=["hmac-sha256"]))),
    hellos.map(frame),
    st.builds(lambda data: frame(packed([1, data])), st.binary(min_size=32, max_size=32)),
    pieces("msgpack"),
    st.binary(max_size=30),
    st.sampled_from([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frame_header(2**31), frame(b"\x90")]),
)
beginnings = st.builds(
    edited, st.lists(first_pieces, max_size=3).map(b"".join), st.just([]) | edits
)


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("kind", ["socket", "pipes", "connected"])
@bounded
@given(data=beginnings, token=st.sampled_from([None, "secret"]))
async def test_a_handshake(kind: str, bytewise: bool, data: bytes, token: str | None) -> None:
    async with no_surprises():
        with streams(kind) as (other, ours):
            if kind == "connected":
                [sock] = ours
                opening = make_peer().connect(f"fd:{sock.detach()}", token=token)
            else:
                opening = make_peer().wrap(*ours)

            async def open_it() -> Session:
                return await opening

            session = asyncio.create_task(outcome(open_it()))
            await asyncio.sleep(0)
            await other.write(data, bytewise=bytewise)
            await other.finish()
        opened = await session
        if isinstance(opened, Session):
            await opened.wait_closed()


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@bounded
@given(data=beginnings, token=st.sampled_from([None, "secret"]))
async def test_a_listener_goes_on_serving(
    tmp_path: Path, bytewise: bool, data: bytes, token: str | None
) -> None:
    async with no_surprises():
        path = f"{tmp_path}/socket"
        async with make_peer().serve(f"unix:{path}", token=token):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            fd = sock.detach()
            other = OtherEnd(fd, fd)
            await other.write(data, bytewise=bytewise)
            await other.finish()
            async with make_peer().connect(f"unix:{path}", token=token) as session:
                assert await session.request("add", [1, 2]) == 3
            other.close()


def wrong_messages() -> Iterator[list[Any]]:
    """Each kind with each of its fields wrong in each way, and each kind cut off at each field."""
    for kind, (whole, _) in COMPLETE.items():
        for size in range(1, len(whole) + 1):
            yield whole[:size]
            for place in range(1, size):
                for value in WRONG.get(FIELD_NAMES[kind][place - 1], []):
                    yield [*whole[:place], value, *whole[place + 1 : size]]


async def test_every_field_of_every_message_wrong() -> None:
    """What chance would take long to find."""
    for message in wrong_messages():
        try:
            data = frame(CODECS["msgpack"].encode(message, []))
        except EncodeError:
            continue  # nothing that can stand on a wire
        async with no_surprises():
            with streams("socket") as (other, ours):
                await other.write(frame(hello()), bytewise=False)
                session = await make_peer().wrap(*ours)
                await other.write(data, bytewise=False)
                await other.finish()
            await session.wait_closed()


@pytest.mark.parametrize("codec", CODECS)
async def test_without_edits_it_is_understood(codec: str) -> None:
    """What is fed to the sessions is not mere noise."""
    sock, theirs = socket.socketpair()
    async with RawClient(theirs) as client:
        await client.send(hello(codec=codec))
        async with make_peer().wrap(sock) as session:
            before = [packed([2, 2, "add", [1, 2]], codec), packed([5, "log", ["x"]], codec)]
            inside = [packed([2, 4, "add", [HUGE, Extension(70, "-1")]], codec)]
            await client.send_bytes(frame(CODECS[codec].join(before)) + transfer(1, inside, codec))
            await client.send(packed([2, 6, "unknown"], codec))
            answers: list[Any] = []
            await client.receive()  # its hello
            while len(answers) < 3:
                envelope, _ = await client.receive_frame()
                decoded = CODECS[codec].decode(envelope)
                answers += decoded if isinstance(decoded[0], list) else [decoded]
            sum_of_all = 16**5000 - 1
            assert [answer[:3] for answer in answers] == [[3, 3, 3], [3, 5, sum_of_all], [4, 7, 2]]
            assert session.statistics().notifications_received == 1
