"""What is special about pairs of descriptors: files, FIFOs, terminals, flags, and hang-ups."""

import asyncio
import errno
import fcntl
import os
import pty
import socket
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncipc.transport.pipes import PipeTransport
from tests.transport.recorder import MIB, End, pattern, turns


def is_blocking(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def made(read_fd: int, write_fd: int) -> Iterator[End]:
    end = End(PipeTransport(read_fd, write_fd, description="test"))
    try:
        yield end
    finally:
        end.call("close")
    assert end.heard.violations == []


@pytest.fixture
def pipes() -> Iterator[tuple[End, int, int]]:
    """A transport, and the raw ends of the other side: to read from and to write to."""
    (read, their_write), (their_read, write) = os.pipe(), os.pipe()
    with made(read, write) as end:
        yield end, their_read, their_write
    for fd in their_read, their_write:
        if is_open(fd):
            os.close(fd)


# Hang-ups


async def test_the_reader_is_gone(pipes: tuple[End, int, int]) -> None:
    end, their_read, their_write = pipes
    end.start()
    os.write(their_write, b"reply")
    os.close(their_read)  # nothing is written: noticed all the same
    assert await end.lost() is None
    assert end.heard.data == b"reply"


@pytest.mark.parametrize("paused", [False, True])
async def test_the_reply_behind_a_failed_write(pipes: tuple[End, int, int], paused: bool) -> None:
    end, their_read, their_write = pipes
    end.start()
    if paused:
        end.call("pause_reading")
    os.write(their_write, b"reply")
    os.close(their_read)
    os.close(their_write)
    assert end.write(b"too late") is False
    assert isinstance(await end.lost(), BrokenPipeError)
    assert end.heard.data == b"reply"


async def test_the_reader_is_gone_before_it_read_all(pipes: tuple[End, int, int]) -> None:
    end, their_read, _ = pipes
    end.start()
    assert end.write(bytes(4 * MIB)) is False
    os.close(their_read)
    assert isinstance(await end.lost(), BrokenPipeError)


async def test_the_writer_is_done(pipes: tuple[End, int, int]) -> None:
    end, their_read, their_write = pipes
    end.start()
    os.close(their_write)
    await end.heard.heard("end_of_input")
    await end.send(b"answer")
    assert os.read(their_read, 100) == b"answer"
    os.close(their_read)
    assert await end.lost() is None
    assert end.heard.events == ["end_of_input", "lost"]


async def test_write_eof_reaches_the_other_side(pipes: tuple[End, int, int]) -> None:
    end, their_read, their_write = pipes
    end.start()
    await end.send(b"all")
    end.call("write_eof")
    assert os.read(their_read, 100) == b"all"
    assert os.read(their_read, 100) == b""
    os.write(their_write, b"answer")
    os.close(their_write)
    assert await end.lost() is None
    assert end.heard.data == b"answer"


# Files and devices


async def test_from_file_to_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = pattern(3 * MIB)
    source.write_bytes(data)
    with made(os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT)) as end:
        end.start()
        assert end.write(data, b"tail") is True
        await end.heard.heard("end_of_input")
        assert end.heard.data == data
    assert target.read_bytes() == data + b"tail"
    await end.lost()


async def test_a_file_can_be_paused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    data = pattern(3 * MIB)
    source.write_bytes(data)
    with made(os.open(source, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)) as end:
        end.start()
        await end.heard.received(1)
        loop = asyncio.get_running_loop()

        def pause(event: str) -> None:
            if event == "data":
                end.transport.pause_reading()
                end.transport.pause_reading()
                loop.call_soon(end.transport.resume_reading)
                loop.call_soon(end.transport.resume_reading)

        end.heard.on_event = pause
        await end.heard.heard("end_of_input")
        assert end.heard.data == data
    await end.lost()


async def test_dev_null_ends_at_once() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    with made(null, null) as end:
        end.start()
        await end.heard.heard("end_of_input")
        assert end.write(b"into the void") is True
    assert await end.lost() is None
    assert end.heard.data == b""


async def test_a_full_disk_is_an_error() -> None:
    with made(os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)) as end:
        end.start()
        assert end.write(b"x") is False
        error = await end.lost()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


async def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with made(os.open(tmp_path, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)) as end:
        end.start()
        assert isinstance(await end.lost(), IsADirectoryError)


# Flags that others share


async def test_the_flags_of_a_pipe_are_left_alone() -> None:
    (read, their_write), (their_read, write) = os.pipe(), os.pipe()
    shared = os.dup(read), os.dup(write)
    with made(read, write) as end:
        end.start()
        await turns()
        assert all(map(is_blocking, shared))
    await end.lost()
    assert all(map(is_blocking, shared))
    for fd in *shared, their_read, their_write:
        os.close(fd)


async def test_the_flags_of_a_socket_are_put_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with made(os.dup(ours.fileno()), os.dup(ours.fileno())) as end:
            end.start()
            theirs.send(b"x")
            await end.heard.received(1)
        await end.lost()
        assert is_blocking(ours.fileno())


async def test_a_named_fifo(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(read, True)
    shared = os.dup(read)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"all of it")
    os.close(writer)  # before anybody polls
    with made(read, os.open(os.devnull, os.O_WRONLY)) as end:
        end.start()
        await end.heard.heard("end_of_input")
        assert end.heard.data == b"all of it"
    await end.lost()
    assert is_blocking(shared)
    os.close(shared)


async def test_both_ends_of_a_pseudo_terminal() -> None:
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    shared = os.dup(terminal)
    with made(controller, controller) as left, made(terminal, terminal) as right:
        left.start()
        right.start()
        await left.send(b"from the controller")
        await right.heard.received(19)
        await right.send(b"from the terminal")
        await left.heard.received(17)
        assert is_blocking(shared)
    await left.lost()
    await right.lost()
    assert right.heard.data == b"from the controller"
    assert left.heard.data == b"from the terminal"
    os.close(shared)


# Owning


def closed_descriptor() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd


def test_a_descriptor_that_is_not_open() -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PipeTransport(closed_descriptor(), fd, description="test")
    assert not is_open(fd)
    fd = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PipeTransport(fd, closed_descriptor(), description="test")
    assert not is_open(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PipeTransport(fd, fd, description="test")


@pytest.mark.parametrize("noisy", [True, False])
def test_noise_is_a_matter_of_the_pair(noisy: bool) -> None:
    transport = PipeTransport(*os.pipe(), description="test", tolerates_noise=noisy)
    assert transport.tolerates_noise is noisy
    transport.close()
