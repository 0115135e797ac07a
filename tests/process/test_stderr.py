"""StderrCapture: nothing a child writes to stderr blocks it, and its last words are kept."""

import asyncio
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc.process.child import start_child
from asyncipc.process.stderr import MAX_LINE, MAX_PIPE, StderrCapture


def write_and_drain(capture: StderrCapture, data: bytes) -> None:
    assert capture.fd is not None
    os.write(capture.fd, data)
    capture.drain()


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_lines_reach_the_callback_without_their_ends() -> None:
    lines: list[str] = []
    capture = StderrCapture(lines.append, 1000)
    write_and_drain(capture, b"one\ntw")
    assert lines == ["one"]
    write_and_drain(capture, b"o\r\n\nthree")
    assert lines == ["one", "two", ""]
    capture.close()
    assert lines == ["one", "two", "", "three"]
    assert capture.tail == "one\ntwo\r\n\nthree"


def test_a_complete_last_line_is_not_followed_by_an_empty_one() -> None:
    lines: list[str] = []
    capture = StderrCapture(lines.append, 1000)
    write_and_drain(capture, b"end\n")
    capture.close()
    capture.close()
    assert lines == ["end"]


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 100))
def test_any_bytes_in_any_portions_give_the_same_text(portions: list[bytes], limit: int) -> None:
    lines: list[str] = []
    capture = StderrCapture(lines.append, limit)
    for portion in portions:
        write_and_drain(capture, portion)
    capture.close()
    written = b"".join(portions)
    text = written.decode("utf-8", "backslashreplace")
    expected = [line.removesuffix("\r") for line in text.split("\n")[:-1]]
    last = text.split("\n")[-1]
    assert lines == expected + ([last] if last else [])
    assert len(capture.tail.encode()) <= 4 * limit  # a byte that is no UTF-8 appears as four
    if len(written) <= limit:
        assert capture.tail == text


@given(st.text(alphabet="aé€😀\n", min_size=1), st.integers(1, 30))
def test_the_tail_is_the_end_of_the_text_and_begins_with_a_whole_character(
    text: str, limit: int
) -> None:
    capture = StderrCapture("capture", limit)
    write_and_drain(capture, text.encode())
    capture.close()
    assert text.endswith(capture.tail)
    assert limit - 3 <= len(capture.tail.encode()) <= limit or capture.tail == text


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    lines: list[str] = []
    capture = StderrCapture(lines.append, 10)
    for _ in range(20):
        write_and_drain(capture, b"\xc3\xa9" * 8192)
    assert [len(line) for line in lines] == [MAX_LINE, MAX_LINE]
    write_and_drain(capture, b"\nnext\n")
    capture.close()
    assert "".join(lines[:-1]) == "é" * 20 * 8192
    assert lines[-1] == "next"


def test_a_long_line_is_passed_on_in_pieces_also_if_it_comes_with_its_end() -> None:
    lines: list[str] = []
    capture = StderrCapture(lines.append, 10)
    write_and_drain(capture, b"x" * (MAX_LINE - 1))
    assert lines == []
    write_and_drain(capture, b"yz\nnext\n")
    assert lines == ["x" * (MAX_LINE - 1) + "y", "z", "next"]
    capture.close()


def test_a_failing_callback_is_logged_and_the_next_line_still_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[str] = []

    def callback(line: str) -> None:
        lines.append(line)
        raise ValueError("broken callback")

    capture = StderrCapture(callback, 100)
    write_and_drain(capture, b"one\ntwo\n")
    capture.close()
    assert lines == ["one", "two"]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_a_callback_may_close_the_capture_and_nothing_is_lost_or_reordered() -> None:
    lines: list[str] = []

    def callback(line: str) -> None:
        lines.append(line)
        capture.close()

    capture = StderrCapture(callback, 100)
    write_and_drain(capture, b"one\ntwo\nthree\nfour")
    assert lines == ["one", "two", "three", "four"]


def test_drain_does_not_wait_for_a_writer_that_never_stops() -> None:
    taken = 0

    def callback(line: str) -> None:
        nonlocal taken
        taken += len(line) + 1
        if taken < 2 * MAX_PIPE:
            os.write(writer, line.encode() + b"\n")

    capture = StderrCapture(callback, 100)
    assert capture.fd is not None
    writer = os.dup(capture.fd)
    write_and_drain(capture, b"x" * 8191 + b"\n")
    assert taken == MAX_PIPE
    capture.close()
    os.close(writer)


def test_a_logger_gets_each_line_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.helper")
    capture = StderrCapture(logging.getLogger("app.helper"), 100)
    write_and_drain(capture, b"100 %s\n")
    capture.close()
    assert caplog.record_tuples == [("app.helper", logging.INFO, "100 %s")]
    assert capture.tail == "100 %s\n"


async def test_inherited_stderr_needs_nothing() -> None:
    before = open_descriptors()
    capture = StderrCapture(None, 100)
    assert capture.fd is None
    capture.start()
    capture.drain()
    capture.close()
    assert capture.tail == ""
    assert open_descriptors() == before


async def coroutine_function(line: str) -> None:
    raise AssertionError(line)


@pytest.mark.parametrize("mode", ["inherit", 2])
def test_another_mode_is_refused(mode: object) -> None:
    with pytest.raises(TypeError, match="capture") as caught:
        StderrCapture(mode, 100)  # type: ignore[arg-type]
    assert repr(mode) in str(caught.value)


def test_an_async_def_is_refused() -> None:
    with pytest.raises(TypeError, match="stderr must be a plain function, not the async def"):
        StderrCapture(coroutine_function, 100)


async def test_a_mebibyte_without_newline_does_not_block_the_child() -> None:
    pieces: list[str] = []
    capture = StderrCapture(pieces.append, 2000)
    code = "import sys; sys.stderr.write('x' * 2**20 + 'end'); sys.stderr.flush(); sys.exit(5)"
    child = start_child([sys.executable, "-c", code], stderr=capture.fd)
    capture.start()
    async with asyncio.timeout(10):
        assert await child.wait() == 5
    capture.close()
    assert "".join(pieces) == "x" * 2**20 + "end"
    assert all(len(piece) <= MAX_LINE for piece in pieces)
    assert capture.tail == "x" * 1997 + "end"


async def test_last_words_can_be_read_in_the_exit_callback() -> None:
    capture = StderrCapture("capture", 100)
    tails: list[str] = []
    child = start_child(["sh", "-c", "echo last words >&2"], stderr=capture.fd)
    capture.start()

    def read_tail(_: object) -> None:
        capture.drain()
        tails.append(capture.tail)

    child.on_exit(read_tail)
    async with asyncio.timeout(5):
        await child.wait()
    capture.close()
    assert tails == ["last words\n"]


async def test_the_end_of_the_pipe_delivers_the_last_line_and_frees_everything() -> None:
    before = open_descriptors()
    lines: asyncio.Queue[str] = asyncio.Queue()
    capture = StderrCapture(lines.put_nowait, 100)
    assert capture.fd is not None
    writer = os.dup(capture.fd)
    capture.start()
    assert capture.fd is None
    os.write(writer, b"unfinished")
    os.close(writer)
    async with asyncio.timeout(5):
        assert await lines.get() == "unfinished"
    opened = open_descriptors()
    capture.close()
    assert opened - before == set()


async def test_a_survivor_of_the_child_does_not_keep_the_capture_open() -> None:
    before = open_descriptors()
    capture = StderrCapture("capture", 100)
    assert capture.fd is not None
    survivor = os.dup(capture.fd)
    capture.start()
    os.write(survivor, b"still here")
    capture.close()
    assert capture.tail == "still here"
    with pytest.raises(BrokenPipeError):
        os.write(survivor, b"nobody listens")
    os.close(survivor)
    assert open_descriptors() == before


def test_a_capture_that_is_dropped_unclosed_warns_and_leaks_nothing() -> None:
    before = open_descriptors()
    with pytest.warns(ResourceWarning, match="unclosed"):
        StderrCapture("capture", 100)
    assert open_descriptors() == before
