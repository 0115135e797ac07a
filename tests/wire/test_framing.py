"""Frames come out as they went in, however the bytes are cut, and whatever stands between them."""

import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncipc.errors import FrameTooLarge, ProtocolError, RemoteProtocolError
from asyncipc.wire.framing import (
    HEADER_SIZE,
    MAGIC,
    FrameDecoder,
    frame_header,
    new_read_buffer,
)

MAX_FRAME = 200
LEADING = b"\x91\x92"

# An envelope that begins like this is one that its sink does not understand.
NO_MESSAGE = b"\x92"


class Recorder:
    """A sink that writes down what comes; pieces that belong together become one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes]] = []

    def envelope(self, data: memoryview, attached: int) -> bool:
        if bytes(data).startswith(NO_MESSAGE):
            return False
        self.events.append(("envelope", bytes(data)))
        return True

    def attached(self, data: memoryview) -> None:
        self._add("attached", bytes(data))

    def noise(self, data: bytes) -> None:
        assert data
        self._add("noise", data)

    def _add(self, what: str, data: bytes) -> None:
        if self.events and self.events[-1][0] == what:
            data = self.events.pop()[1] + data
        self.events.append((what, data))

    def all(self, what: str) -> list[bytes]:
        return [data for name, data in self.events if name == what]


def frame(envelope: bytes, attached: bytes = b"") -> bytes:
    return frame_header(len(envelope), len(attached)) + envelope + attached


def make_decoder(
    sink: Recorder, *, buffer: int = 4096, tolerates_noise: bool = False, **options: Any
) -> FrameDecoder:
    options = {"max_frame": MAX_FRAME, "leading": LEADING, **options}
    return FrameDecoder(sink, new_read_buffer(buffer), tolerates_noise=tolerates_noise, **options)


def decode(
    chunks: Iterable[bytes], *, buffer: int = 4096, tolerates_noise: bool = False
) -> tuple[list[tuple[str, bytes]], Any]:
    """Everything that came out, and how it ended: with an error, or with something cut off."""
    sink = Recorder()
    decoder = make_decoder(sink, buffer=buffer, tolerates_noise=tolerates_noise)
    try:
        feed_all(decoder, chunks)
    except ProtocolError as error:
        return sink.events, type(error)
    return sink.events, decoder.finish()


def feed_all(decoder: FrameDecoder, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        decoder.feed(chunk)


def one_by_one(data: bytes) -> Iterator[bytes]:
    return (bytes((byte,)) for byte in data)


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for place in sorted(min(place, len(data)) for place in places):
        yield data[start:place]
        start = place
    yield data[start:]


envelopes = st.binary(max_size=150).map(lambda data: b"\x91" + data)
frames = st.builds(frame, envelopes, st.just(b"") | st.binary(max_size=40))
# Frames inside: what is found when the search goes on behind the first magic number.
refused = st.builds(
    lambda inner, rest: frame(NO_MESSAGE + inner + rest),
    st.just(b"") | st.builds(frame, st.binary(max_size=20).map(lambda data: b"\x91" + data)),
    st.binary(max_size=40),
)
false_magics = st.builds(
    lambda prefix, rest: MAGIC[:prefix] + rest, st.integers(1, 4), st.binary(max_size=12)
)
impossible = st.builds(
    lambda envelope, attached, rest: struct.pack(">4sII", MAGIC, envelope, attached) + rest,
    st.sampled_from([0, 1, 2, 200, 201, 2**32 - 1]),
    st.sampled_from([0, 1, 199, 200, 2**32 - 1]),
    st.binary(max_size=20),
)
noise = st.binary(min_size=1, max_size=30) | false_magics | impossible | refused
streams = st.lists(frames | noise, max_size=8).map(b"".join)


@given(
    st.lists(frames | frames | noise, max_size=8).map(b"".join),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=6),
    st.sampled_from([16, 64, 150, 4096]),
)
def test_the_way_it_is_cut_makes_no_difference(
    data: bytes, tolerates_noise: bool, places: list[int], buffer: int
) -> None:
    whole = decode([data], tolerates_noise=tolerates_noise)
    for chunks in ([data], one_by_one(data), cut(data, places)):
        assert decode(chunks, buffer=buffer, tolerates_noise=tolerates_noise) == whole


@given(st.lists(st.tuples(envelopes, st.binary(max_size=40)), max_size=8), st.booleans())
def test_frames_come_out_as_they_went_in(
    contents: list[tuple[bytes, bytes]], tolerates_noise: bool
) -> None:
    data = b"".join(frame(envelope, attached) for envelope, attached in contents)
    expected = []
    for envelope, attached in contents:
        expected.append(("envelope", envelope))
        if attached:
            expected.append(("attached", attached))
    assert decode([data], tolerates_noise=tolerates_noise) == (expected, "")


@given(streams)
def test_nothing_is_lost_and_nothing_is_invented(data: bytes) -> None:
    """On a stream that tolerates noise, all bytes come out again, in their order."""
    sink = Recorder()
    decoder = make_decoder(sink, tolerates_noise=True)
    decoder.feed(data)
    came = b""
    for position, (what, content) in enumerate(sink.events):
        if what == "envelope":
            attached = b""
            if position + 1 < len(sink.events) and sink.events[position + 1][0] == "attached":
                attached = sink.events[position + 1][1]
            header = data[len(came) : len(came) + HEADER_SIZE]
            assert header.startswith(MAGIC + struct.pack(">I", len(content)))
            assert int.from_bytes(header[8:], "big") >= len(attached)
            came += header
        came += content
    assert data.startswith(came)
    rest = data[len(came) :]
    assert not rest or MAGIC.startswith(rest[:4]), "only what may become a frame is kept"


# Letters are no part of a magic number, so that none can be where it is not put.
texts = st.text("abc \n", max_size=60).map(str.encode)


@given(st.lists(st.tuples(texts, frames), max_size=6), texts)
def test_noise_is_told_and_the_frames_around_it_come(
    pairs: list[tuple[bytes, bytes]], last: bytes
) -> None:
    data = b"".join(text + content for text, content in pairs) + last
    sink = Recorder()
    decoder = make_decoder(sink, tolerates_noise=True)
    decoder.feed(data)
    assert decoder.finish() == ""
    assert len(sink.all("envelope")) == len(pairs)
    assert b"".join(sink.all("noise")) == b"".join(text for text, _ in pairs) + last


@pytest.mark.parametrize("split", range(1, 4))
def test_half_a_magic_number_waits_for_the_rest(split: int) -> None:
    sink = Recorder()
    decoder = make_decoder(sink, tolerates_noise=True)
    data = frame(b"\x91a")
    decoder.feed(b"text" + data[:split])
    assert sink.events == [("noise", b"text")]
    decoder.feed(data[split:])
    assert sink.events[1:] == [("envelope", b"\x91a")]


def test_half_a_magic_number_at_the_end_was_noise() -> None:
    sink = Recorder()
    decoder = make_decoder(sink, tolerates_noise=True)
    decoder.feed(b"text" + MAGIC[:3])
    assert decoder.finish() == ""
    assert b"".join(sink.all("noise")) == b"text" + MAGIC[:3]


@pytest.mark.parametrize(
    "false",
    [
        MAGIC,
        MAGIC + MAGIC,
        MAGIC[:3],
        frame_header(0),
        frame_header(MAX_FRAME + 1),
        frame_header(2**32 - 1, 2**32 - 1),
        frame_header(10) + b"\x05no array ",
        frame(NO_MESSAGE),
        frame(NO_MESSAGE, b"attached"),
        frame(NO_MESSAGE)[:-1],
    ],
)
def test_a_false_magic_number_hides_no_frame(false: bytes) -> None:
    sink = Recorder()
    decoder = make_decoder(sink, tolerates_noise=True)
    decoder.feed(false + frame(b"\x91" + b"x" * 20) * 2)
    assert sink.all("envelope") == [b"\x91" + b"x" * 20] * 2
    assert b"".join(sink.all("noise")) == false


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", RemoteProtocolError, r"got b'GET / HTTP/1\.1"),
        (b"\xf3\x4a\x9d\xe3" + bytes(8), RemoteProtocolError, "does not speak this protocol"),
        (frame(b"\x91") + b"\x00", RemoteProtocolError, "does not speak this protocol"),
        (frame_header(0), RemoteProtocolError, "empty envelope"),
        (frame_header(0, 5), RemoteProtocolError, "empty envelope"),
        (frame(b"\x05"), RemoteProtocolError, "no message"),
        (frame(NO_MESSAGE), RemoteProtocolError, "no message"),
        (frame_header(201), FrameTooLarge, "201 bytes; at most 200 are allowed"),
        (frame_header(100, 101), FrameTooLarge, "201 bytes; at most 200 are allowed"),
        (frame_header(1, 2**32 - 1), FrameTooLarge, "4294967296 bytes"),
        (frame_header(2**32 - 1, 2**32 - 1), FrameTooLarge, "8589934590 bytes"),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_what_is_no_frame_ends_a_stream_without_noise(
    data: bytes, error: type[Exception], text: str, in_pieces: bool
) -> None:
    sink = Recorder()
    decoder = make_decoder(sink)
    with pytest.raises(error, match=None if in_pieces else text):
        feed_all(decoder, one_by_one(data) if in_pieces else [data])
    before = list(sink.events)
    decoder.feed(frame(b"\x91"))
    assert sink.events == before, "after an error it takes no more"
    assert not sink.all("noise")


def test_the_largest_frame_is_taken() -> None:
    for envelope, attached in ((MAX_FRAME, 0), (1, MAX_FRAME - 1)):
        content = b"\x91" + b"x" * (envelope - 1)
        events, end = decode([frame(content, b"y" * attached)])
        assert (events[0], end) == (("envelope", content), "")


@pytest.mark.parametrize(
    ("data", "cut_off"),
    [
        (MAGIC[:2], "2 bytes into a frame"),
        (frame(b"\x91abc")[:-1], "15 bytes into a frame"),
        (frame(b"\x91" * 100)[:-1], "111 bytes into a frame"),
        (frame(b"\x91", b"abc")[:-1], "1 bytes before the end of a frame"),
        (frame(b"\x91", b"abc"), ""),
        (b"", ""),
    ],
)
def test_the_end_says_what_it_cut_off(data: bytes, cut_off: str) -> None:
    for buffer in (16, 4096):
        assert decode([data], buffer=buffer)[1] == cut_off
        assert decode(one_by_one(data), buffer=buffer)[1] == cut_off


def test_a_sink_can_stop_the_decoder() -> None:
    sink = Recorder()
    decoder = make_decoder(sink)

    def envelope(data: memoryview, attached: int) -> bool:
        decoder.stop()
        return Recorder.envelope(sink, data, attached)

    sink.envelope = envelope  # type: ignore[method-assign]
    decoder.feed(frame(b"\x91a", b"attached") + frame(b"\x91b") + b"no frame at all")
    assert sink.events == [("envelope", b"\x91a")]


def test_the_limit_and_the_leading_bytes_may_change_between_frames() -> None:
    """As they do when a hello has come: what stands right behind it follows the new rules."""
    sink = Recorder()
    decoder = make_decoder(sink)

    def envelope(data: memoryview, attached: int) -> bool:
        decoder.max_frame, decoder.leading = 2 * MAX_FRAME, b""
        return Recorder.envelope(sink, data, attached)

    sink.envelope = envelope  # type: ignore[method-assign]
    large = b"[" + b"x" * MAX_FRAME
    decoder.feed(frame(b"\x91") + frame(large))
    assert sink.all("envelope") == [b"\x91", large]


def test_decoders_share_their_memory() -> None:
    buffer = new_read_buffer(64)
    sinks = [Recorder() for _ in range(3)]
    decoders = [
        FrameDecoder(sink, buffer, max_frame=MAX_FRAME, leading=b"", tolerates_noise=False)
        for sink in sinks
    ]
    contents = [bytes((ord("a") + number,)) * 120 for number in range(3)]
    for pieces in zip(*(one_by_one(frame(content)) for content in contents), strict=True):
        for decoder, piece in zip(decoders, pieces, strict=True):
            decoder.feed(piece)
    assert [sink.all("envelope") for sink in sinks] == [[content] for content in contents]


@pytest.mark.parametrize("tolerates_noise", [False, True])
def test_nothing_is_allocated_because_it_was_announced(tolerates_noise: bool) -> None:
    sink = Recorder()
    decoder = make_decoder(
        sink, max_frame=2**32 - 1, tolerates_noise=tolerates_noise, buffer=64 * 1024
    )
    tracemalloc.start()
    try:
        decoder.feed(frame_header(2**32 - 1) + b"\x91")
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1024 * 1024
        decoder.feed(bytes(1024 * 1024))
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 8 * 1024 * 1024, "it grows with what has come"
    finally:
        tracemalloc.stop()


@example(size=10_000, step=1000)
@given(size=st.integers(1, 5000), step=st.integers(1, 700))
def test_an_envelope_larger_than_the_buffer_comes_whole(size: int, step: int) -> None:
    sink = Recorder()
    decoder = make_decoder(sink, max_frame=20_000, buffer=64)
    content = b"\x91" + bytes(number % 251 for number in range(size))
    data = frame(content, b"attached") + frame(b"\x91")
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
    assert sink.events == [
        ("envelope", content),
        ("attached", b"attached"),
        ("envelope", b"\x91"),
    ]


def test_memory_grows_seldom() -> None:
    """What has come is copied when memory doubles, not at each read: the cost stays linear."""
    decoder = make_decoder(Recorder(), max_frame=1_000_000, buffer=64)
    decoder.feed(frame_header(1_000_000) + b"\x91" * 100)
    memories: list[object] = []
    for _ in range(900):
        buffer = decoder.get_buffer()
        if not memories or memories[-1] is not buffer.obj:
            memories.append(buffer.obj)
        count = min(100, len(buffer))
        buffer[:count] = bytes(count)
        decoder.advance(count)
    assert len(memories) < 20


def test_the_magic_number_is_no_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        MAGIC.decode()
