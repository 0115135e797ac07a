"""File descriptors in arguments and results: what arrives, whose it is, and that none is left."""

import asyncio
import gc
import os
import pickle
import resource
import socket
import ssl
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncipc import EncodeError, Fd, FrameTooLarge
from asyncipc.pool.payload import dump, load
from tests.pool import descriptor_functions as functions
from tests.pool.descriptor_functions import pipe_with, read
from tests.pool.support import LIMIT, START_METHODS, Reports, ask, in_workers, open_pool, pid


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_an_fd_is_given_to_a_worker(start_method: str) -> None:
    async with asyncio.timeout(LIMIT), open_pool(start_method=start_method) as pool:
        fd = pipe_with(b"in the pipe")
        assert await pool.run(functions.read, fd) == b"in the pipe"
        assert fd.closed
        fds = [pipe_with(b"%d" % number) for number in range(64)]
        task = pool.submit(functions.read_many, fds)
        assert all(fd.closed for fd in fds)
        assert await task == [b"%d" % number for number in range(64)]


@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
@in_workers
async def test_a_socket_is_lent_and_arrives_as_one(timeout: float | None) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT)
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        with ours, theirs:
            ours.sendall(b"hello")
            theirs.settimeout(timeout)
            assert await pool.run(functions.answer, theirs) == ("socket", timeout)
            assert theirs.fileno() >= 0
            assert ours.recv(100) == b"HELLO"


@in_workers
async def test_what_was_lent_may_be_closed_when_it_was_submitted() -> None:
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(b"hello")
            with theirs:
                task = pool.submit(functions.answer, theirs)
            await task
            assert ours.recv(100) == b"HELLO"


@in_workers
async def test_a_socket_in_two_places_is_one() -> None:
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert await pool.run(functions.same, {"a": theirs, "b": theirs})


@in_workers
async def test_files_arrive_as_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    opened: list[tuple[dict[str, Any], str, Any]] = [
        ({"mode": "w", "encoding": "latin-1"}, "TextIOWrapper", "ä"),
        ({"mode": "a", "encoding": "utf-8"}, "TextIOWrapper", "ä"),
        ({"mode": "wb"}, "BufferedWriter", b"ab"),
        ({"mode": "w+b"}, "BufferedRandom", b"ab"),
        ({"mode": "r+b", "buffering": 0}, "FileIO", b"ab"),
    ]
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        for options, kind, text in opened:
            path.write_bytes(b"old: ")
            before: Any = "" if isinstance(text, str) else b""
            before += "new: " if isinstance(text, str) else b"new: "
            with path.open(**options) as file:
                file.write(before)  # not flushed
                encoding = options.get("encoding", "")
                assert await pool.run(functions.write_behind, file, text) == (kind, encoding)
            content = before + text
            if isinstance(content, str):
                content = content.encode(encoding)
            if options["mode"] == "a":
                content = b"old: " + content
            assert path.read_bytes() == content
        with path.open() as reader:
            assert await pool.run(functions.read_file, reader) == path.read_text()


@in_workers
async def test_a_temporary_file_stays_with_who_made_it() -> None:
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"temporary")
            file.seek(0)
            assert await pool.run(functions.read_file, file) == b"temporary"
            assert Path(file.name).exists()


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_descriptors_as_results(start_method: str) -> None:
    async with asyncio.timeout(LIMIT), open_pool(start_method=start_method) as pool:
        fds = await pool.run(functions.give, 50)
        assert [read(fd) for fd in fds] == [b"%d" % number for number in range(50)]
        with (await pool.run(functions.give_socket))["sock"] as sock:
            assert sock.recv(100) == b"from the worker"
        for function in (functions.give_items, functions.give_items_async):
            number = 0
            async for item in pool.stream(function, 200):
                assert read(item["fd"]) == b"%d" % number
                number += 1
            assert number == 200


@in_workers
async def test_map_over_descriptors() -> None:
    """However quick each is: no chunk has more of them than a message may."""
    async with asyncio.timeout(LIMIT), open_pool(2) as pool:
        fds = [pipe_with(b"%d" % number) for number in range(300)]
        results = [result async for result in pool.map(functions.read, fds)]
        assert results == [b"%d" % number for number in range(300)]
        given = [read(fd) async for fd in pool.map(functions.give_one, range(40), chunk_size=8)]
        assert given == [b"%d" % number for number in range(40)]


@in_workers
async def test_a_task_that_is_tried_again_has_its_descriptor_again(reports: Reports) -> None:
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        fd = pipe_with(b"still there")
        task = pool.submit(functions.read_unless_first, fd, reports.address, retries=1)
        reports.answer(await reports.next(), "die")
        reports.answer(await reports.next(), "live")
        assert await task == b"still there"


@in_workers
async def test_nothing_is_left_of_what_nobody_takes(reports: Reports) -> None:
    """In the worker; here the test of leftovers looks."""
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        await pool.run(functions.read, pipe_with(b"x"))
        opened = await pool.run(functions.count_open)
        waiting = [pool.submit(functions.read, pipe_with(b"x")) for _ in range(20)]
        for task in waiting:
            task.cancel()
        for giving in [pool.submit(functions.give, 3) for _ in range(20)]:
            giving.cancel()
        with pytest.raises(Exception, match="not to be loaded"):
            await pool.run(functions.read, [pipe_with(b"x"), functions.Unloadable()])
        stream = pool.stream(functions.give_items, 1000)
        (await anext(stream))["fd"].close()
        await stream.aclose()
        await pool.run(gc.collect)
        assert await pool.run(functions.count_open) == opened


@in_workers
async def test_what_cannot_be_given_to_a_worker() -> None:
    async with asyncio.timeout(LIMIT), open_pool() as pool:
        closed = pipe_with(b"x")
        closed.close()
        with pytest.raises(EncodeError, match="this Fd was closed"):
            await pool.run(functions.read, closed)
        sock = socket.socket()
        sock.close()
        with pytest.raises(EncodeError, match="this socket is closed"):
            await pool.run(functions.answer, sock)
        left, right = socket.socketpair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with left, right:
            tls = context.wrap_socket(left, do_handshake_on_connect=False)
            with tls, pytest.raises(EncodeError, match=r"SSLSocket would not arrive as itself"):
                await pool.run(functions.answer, tls)
        with pipe_with(b"x") as fd:
            with pytest.raises(EncodeError, match="lock"):
                await pool.run(functions.read, [fd, threading.Lock()])
            assert not fd.closed
        with pytest.raises(FrameTooLarge, match=r"65 file descriptors; .*max_descriptors is 64"):
            await pool.run(functions.read_many, [pipe_with(b"x") for _ in range(65)])
        assert await pool.run(pid)


@in_workers
async def test_many_tasks_that_wait_and_cannot_be_sent(reports: Reports) -> None:
    """Each is over when its turn comes, and the next has its turn: not one inside of the other."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    depth = sys.getrecursionlimit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 8192), limits[1]))
    try:
        async with asyncio.timeout(LIMIT), open_pool() as pool:
            first = pool.submit(ask, reports.address)
            report = await reports.next("started")
            with tempfile.TemporaryFile() as file:
                fds = [[Fd(os.dup(file.fileno())) for _ in range(65)] for _ in range(60)]
                tasks = [pool.submit(functions.read_many, many) for many in fds]
            sys.setrecursionlimit(300)
            reports.answer(report)
            failures = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(failure) for failure in failures} == {FrameTooLarge}
            assert await first == "go"
            assert await pool.run(pid)
    finally:
        sys.setrecursionlimit(depth)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_values_without_descriptors_are_pickled_as_ever() -> None:
    value = {"a": [1, bytearray(100_000)], "b": pickle.PickleBuffer(bytearray(100_000))}
    dumped = dump(value)
    assert len(dumped) == 2
    assert load(dumped)["a"] == value["a"]


def test_descriptors_stand_behind_the_buffers() -> None:
    number = len(os.listdir("/proc/self/fd"))
    fds = [pipe_with(b"x"), pipe_with(b"y")]
    buffer = pickle.PickleBuffer(bytearray(100_000))
    data, large, *carried = dump([fds[0], buffer, fds[1], fds[0]])
    assert len(large) == 100_000
    assert all(fd.closed for fd in fds)
    came = load([data, large, *(Fd(os.dup(each.fileno())) for each in carried)])
    assert came[0] is came[3]
    assert [read(came[0]), read(came[2]), bytes(came[1])] == [b"x", b"y", bytes(100_000)]
    del carried
    assert len(os.listdir("/proc/self/fd")) == number
