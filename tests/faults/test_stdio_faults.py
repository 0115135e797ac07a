"""Ways in which standard streams go wrong.

The rows are those of `docs/faults.md` that this library was built against; each was a bug
in one that people trust.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import pty
import shlex
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from asyncipc import Limits, Peer, PeerDied
from tests.child import CHILD, python
from tests.peer.support import GOODBYE, HELLO, REPLY, SAYS_WHY, SESSION, run
from tests.processes import watched

MIB = 1024 * 1024

Channel = Literal["stdio", "socketpair"]


# Row 13: who else writes to the standard output, or reads the standard input


async def test_row_13_what_handlers_print_is_on_stderr() -> None:
    lines: list[str] = []
    async with Peer().spawn(CHILD, stderr=lines.append) as session:
        echoes = [session.request("echo", [number]) for number in range(100)]
        printing = [session.request("print_everywhere") for _ in range(3)]
        assert await asyncio.gather(*echoes) == list(range(100))
        assert await asyncio.gather(*printing) == [""] * 3
        assert session.statistics().noise_received == 0
    for line in ("by print", "by os.write", "by printf", "by a subprocess"):
        assert lines.count(line) == 3


async def test_row_13_what_was_printed_before_is_noise() -> None:
    """Also where it comes in pieces, and looks like a message."""
    argv = python(
        "import os; os.write(1, b'Welcome! \\xf3\\x4a\\x9d'); os.write(1, b'\\xe2\\0\\0');"
        "from tests.child import main; main()"
    )
    async with Peer().spawn(argv) as session:
        assert await session.request("echo", [1]) == 1
        assert session.statistics().noise_received == 15


# Row 14: much on stderr, and nobody who reads it

FLOOD = python("import os; os.write(2, b'x' * 2**20 + b'end');from tests.child import main; main()")


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
async def test_row_14_a_megabyte_before_the_hello(channel: Channel) -> None:
    peer = Peer(limits=Limits(stderr_tail=1000))
    async with peer.spawn(FLOOD, stderr="capture", channel=channel) as session:
        assert await session.request("echo", [1]) == 1
        with pytest.raises(PeerDied) as caught:
            await session.request("leave", [1])
    assert caught.value.stderr_tail == "x" * 997 + "end"


async def test_row_14_one_long_line() -> None:
    pieces: list[str] = []
    async with Peer().spawn(FLOOD, stderr=pieces.append) as session:
        assert await session.request("echo", [1]) == 1
    assert "".join(pieces) == "x" * MIB + "end"
    assert max(map(len, pieces)) < MIB


async def test_row_14_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.flood")
    with caplog.at_level(logging.INFO):
        async with Peer().spawn(FLOOD, stderr=logger) as session:
            assert await session.request("echo", [1]) == 1
    text = "".join(record.getMessage() for record in caplog.records if record.name == "tests.flood")
    assert text == "x" * MIB + "end"


async def test_row_14_while_it_serves() -> None:
    async with Peer().spawn(CHILD, stderr="capture") as session:
        async with asyncio.timeout(10):
            await session.request("write_stderr", ["x" * MIB])
            assert await session.request("echo", [1]) == 1


# Row 15: a grandchild keeps the streams of a child that has exited


def with_a_leftover() -> list[str]:
    """The grandchild leaves the group, says its process id, and keeps all it inherited."""
    child = shlex.join(CHILD)
    return ["sh", "-c", f"setsid sh -c 'echo $$ >&2; exec sleep 1000' & exec {child}"]


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
@pytest.mark.parametrize("end", ["exit", "kill", "close"])
async def test_row_15_the_exit_is_noticed_at_once(end: str, channel: Channel) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    async with Peer().spawn(with_a_leftover(), stderr=lines.put_nowait, channel=channel) as session:
        assert session.process is not None
        with watched(int(await lines.get())) as grandchild:
            async with asyncio.timeout(5):  # the grandchild would keep it open for longer
                if end == "close":
                    await session.aclose()
                    assert session.process.returncode == 0
                else:
                    method, argument = ("leave", 3) if end == "exit" else ("kill", signal.SIGKILL)
                    with pytest.raises(PeerDied) as caught:
                        await session.request(method, [argument])
                    assert caught.value.exit_code == (3 if end == "exit" else None)
                    assert caught.value.signal == (None if end == "exit" else signal.SIGKILL)
                await session.wait_closed()
            assert grandchild.is_running


# Row 16: what the standard input may be


@pytest.mark.parametrize("kind", ["file", "heredoc"])
def test_row_16_a_whole_session_as_input(kind: str, tmp_path: Any) -> None:
    """Dash makes a heredoc a pipe, bash may make it a file; what matters is that it ends."""
    (tmp_path / "input").write_bytes(SESSION)
    with open(tmp_path / "input", "rb") as file:
        argv = CHILD if kind == "file" else ["sh", "-c", f"cat | {shlex.join(CHILD)}"]
        outcome = run(argv, stdin=file)
    assert [message[0] for message in outcome.messages] == [HELLO, REPLY, REPLY, GOODBYE]
    assert (outcome.status, outcome.stderr) == (0, "")


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-", ">&-", "</dev/null >/dev/null"])
def test_row_16_it_says_why(redirection: str) -> None:
    outcome = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *python(SAYS_WHY)])
    assert outcome.status == 1
    assert outcome.stderr.startswith(("AddressError: standard ", "PeerDied: the other side hung"))
    assert outcome.stderr.count("\n") == 1


ON_A_TERMINAL = python("""
import asyncio, os, sys, asyncipc
async def main():
    peer = asyncipc.Peer(timeouts=asyncipc.Timeouts(handshake=0.2))
    opening = asyncio.create_task(peer.stdio())
    for _ in range(5): await asyncio.sleep(0)
    os.write(2, b"reading\\n")
    try:
        await opening
    except asyncipc.HandshakeTimeout:
        os.write(2, b"nobody there\\n")
asyncipc.run(main())
""")


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_row_16_a_terminal_shared_with_a_shell() -> None:
    with terminal() as (_, shared):
        with subprocess.Popen(
            ON_A_TERMINAL, stdin=shared, stdout=shared, stderr=subprocess.PIPE
        ) as program:
            assert program.stderr is not None
            assert program.stderr.readline() == b"reading\n"
            assert not fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_NONBLOCK
            assert program.stderr.readline() == b"nobody there\n"
        assert program.returncode == 0
        assert not fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_NONBLOCK
