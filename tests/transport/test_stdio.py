"""Claiming 0 and 1, and the inherited socket: real processes, real descriptors."""

import asyncio
import fcntl
import os
import pty
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import asyncipc
from asyncipc.errors import AddressError
from asyncipc.transport import stdio

WAIT = 20

# A child that sends back what it reads, until the end of its input.
CHILD = """
import asyncio, ctypes, os, subprocess, sys, uvloop
from asyncipc.transport import stdio

class Echo:
    def __init__(self, transport):
        self.transport = transport
        self.memory = memoryview(bytearray(1000))
        self.waiting = []
        self.writes = False
        self.ended = False
        self.lost = asyncio.get_running_loop().create_future()
    def get_buffer(self):
        return self.memory
    def buffer_updated(self, count):
        self.waiting.append(bytes(self.memory[:count]))
        self.send()
    def send(self):
        while self.waiting and not self.writes:
            batch, self.waiting = self.waiting, []
            self.writes = not self.transport.write(batch)
        if self.ended and not self.writes:
            self.transport.close()
    def writable(self):
        self.writes = False
        self.send()
    def end_of_input(self):
        self.ended = True
        self.send()
    def connection_lost(self, error):
        self.lost.set_result(error)

async def serve(transport):
    echo = Echo(transport)
    transport.start(echo)
    async with asyncio.timeout(15):
        await echo.lost

async def main():
{body}

while os.open(os.devnull, os.O_RDWR) < 2:
    pass  # uvloop aborts a process in which one of 0, 1 and 2 is closed
if sys.argv[1] == "uvloop":
    uvloop.run(main())
else:
    asyncio.run(main(), debug=True)
"""
ECHO = "await serve(stdio.claim())"


@pytest.fixture
async def loop_name() -> str:
    return "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "asyncio"


def command(loop_name: str, body: str = ECHO) -> list[str]:
    program = CHILD.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    return [sys.executable, "-W", "error", "-c", program, loop_name]


def environment() -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return inherited | {"PYTHONPATH": str(Path(asyncipc.__file__).parent.parent)}


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(arguments, env=environment(), timeout=WAIT, check=False, **options)


# Stray output


async def test_nothing_else_gets_into_the_stream(loop_name: str) -> None:
    body = """
    libc = ctypes.CDLL(None)
    print("printed before", end=" ")
    libc.printf(b"C before ")
    transport = stdio.claim()
    print("printed")
    sys.stdout.write("written\\n")
    libc.printf(b"from C\\n")
    libc.fflush(None)
    os.write(1, b"straight\\n")
    subprocess.run(["echo", "a child's"], check=True)
    assert subprocess.run(["cat"], check=True, timeout=5).returncode == 0  # does not eat input
    assert sys.stdin.read() == ""
    await serve(transport)
    print("printed after")
    os.write(1, b"and straight")
    """
    done = run(command(loop_name, body), input=b"the stream")
    assert done.stdout == b"the stream", done.stderr.decode()
    for text in (
        *(b"printed before", b"C before", b"printed\n", b"written\n", b"from C\n"),
        *(b"straight\n", b"a child's\n", b"printed after\n", b"and straight"),
    ):
        assert text in done.stderr, text
    assert done.returncode == 0


async def test_print_appears_at_once(loop_name: str) -> None:
    body = """
    transport = stdio.claim()
    print("now")
    await serve(transport)
    """
    with subprocess.Popen(
        command(loop_name, body),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        assert child.stderr.readline() == b"now\n"  # while it waits for its input
        child.stdin.close()
        assert child.wait(WAIT) == 0


# What 0 and 1 may be


@pytest.mark.parametrize("size", [0, 10, 300_000])
async def test_stdin_is_a_file(loop_name: str, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = os.urandom(size)
    source.write_bytes(data)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        done = run(command(loop_name), stdin=stdin, stdout=stdout)
    assert done.stderr == b""
    assert target.read_bytes() == data


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("</dev/null", b""),
        ("<<END\nfrom a heredoc\nEND", b"from a heredoc\n"),
        ("<<END\n" + "long " * 16_000 + "\nEND", b"long " * 16_000 + b"\n"),
        ("<<<'from a string'", b"from a string\n"),
        ("< <(echo from a process)", b"from a process\n"),
        ("2>&-", b""),
    ],
    ids=["null", "heredoc", "long_heredoc", "string", "process", "stderr_closed"],
)
async def test_redirections(loop_name: str, redirection: str, expected: bytes) -> None:
    script = f'exec "$@" {redirection}\n'
    done = run(["bash", "-c", script, "bash", *command(loop_name)], input=b"")
    assert (done.stdout, done.stderr) == (expected, b"")
    assert done.returncode == 0


async def test_stderr_closed_and_much_printed(loop_name: str) -> None:
    body = """
    transport = stdio.claim()
    print("x" * 100_000)
    os.write(1, b"y" * 100_000)
    await serve(transport)
    """
    script = 'exec "$@" 2>&-'
    done = run(["bash", "-c", script, "bash", *command(loop_name, body)], input=b"clean")
    assert done.stdout == b"clean"
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("redirection", "complaint"),
    [
        ("<&-", "standard input (descriptor 0) was closed when this process started"),
        (">&-", "standard output (descriptor 1) was closed when this process started"),
        ("0>/dev/null", "standard input (descriptor 0) is a device open for writing only"),
        ("1</dev/null", "standard output (descriptor 1) is a device open for reading only"),
    ],
)
async def test_what_cannot_work_says_why(loop_name: str, redirection: str, complaint: str) -> None:
    script = f'exec "$@" {redirection}\n'
    done = run(["bash", "-c", script, "bash", *command(loop_name)], input=b"")
    assert done.returncode == 1
    assert complaint in done.stderr.decode()
    assert "AddressError" in done.stderr.decode()


async def test_claiming_twice(loop_name: str) -> None:
    body = """
    transport = stdio.claim()
    for _ in range(2):
        try:
            stdio.claim()
        except stdio.LocalProtocolError as error:
            assert "claimed before" in str(error)
        else:
            raise AssertionError
        await serve(transport) if _ == 0 else None
    """
    done = run(command(loop_name, body), input=b"still works")
    assert (done.stdout, done.stderr) == (b"still works", b"")


async def test_closing_while_a_large_file_is_read(loop_name: str, tmp_path: Path) -> None:
    body = """
    transport = stdio.claim()
    echo = Echo(transport)
    echo.buffer_updated = lambda count: transport.close()
    transport.start(echo)
    async with asyncio.timeout(5):
        await echo.lost
    """
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**30)
    with large.open("rb") as stdin:
        done = run(command(loop_name, body), stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Descriptors shared with others


def is_blocking(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


async def test_a_terminal_stays_as_it_was(loop_name: str) -> None:
    body = """
    transport = stdio.claim()
    print(transport.description)
    await serve(transport)
    """
    controller, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            command(loop_name, body),
            env=environment(),
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stderr is not None
            assert child.stderr.readline() == b"stdio (terminal)\n"
            os.write(controller, b"typed\n")
            seen = b""
            while seen.count(b"typed") < 2:  # the terminal's echo and ours
                seen += os.read(controller, 1000)
            assert is_blocking(terminal), "while it runs"
            os.write(controller, b"\x04")  # ^D
            assert child.wait(WAIT) == 0
            assert is_blocking(terminal), "afterwards"
            assert child.stderr.read() == b""
    finally:
        os.close(controller)
        os.close(terminal)


async def test_a_killed_child_leaves_a_terminal_as_it_was(loop_name: str) -> None:
    controller, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            command(loop_name), env=environment(), stdin=terminal, stdout=terminal
        ) as child:
            os.write(controller, b"typed\n")
            seen = b""
            while seen.count(b"typed") < 2:
                seen += os.read(controller, 1000)
            child.kill()
            child.wait(WAIT)
            assert is_blocking(terminal)
    finally:
        os.close(controller)
        os.close(terminal)


async def test_shared_pipes_stay_as_they_were(loop_name: str) -> None:
    (read, write), (read_back, write_back) = os.pipe(), os.pipe()
    with subprocess.Popen(
        command(loop_name), env=environment(), stdin=read, stdout=write_back
    ) as child:
        os.write(write, b"x")
        assert os.read(read_back, 10) == b"x"
        assert is_blocking(read)
        assert is_blocking(write_back)
        os.close(write)
        assert child.wait(WAIT) == 0
    for fd in read, read_back, write_back:
        os.close(fd)


async def test_sockets_as_node_gives_them(loop_name: str) -> None:
    (parent_in, stdin), (parent_out, stdout) = socket.socketpair(), socket.socketpair()
    with parent_in, stdin, parent_out, stdout:
        parent_out.settimeout(WAIT)
        with subprocess.Popen(
            command(loop_name), env=environment(), stdin=stdin.fileno(), stdout=stdout.fileno()
        ) as child:
            parent_in.sendall(b"over sockets")
            assert parent_out.recv(100) == b"over sockets"
            parent_in.shutdown(socket.SHUT_WR)
            assert child.wait(WAIT) == 0
        assert is_blocking(stdin.fileno())
        assert is_blocking(stdout.fileno())


async def test_the_parent_closes_the_output(loop_name: str) -> None:
    with subprocess.Popen(
        command(loop_name), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        child.stdout.close()  # nothing is written: noticed all the same
        assert child.wait(WAIT) == 0


# The inherited socket


async def test_an_inherited_socket_leaves_stdio_alone(loop_name: str) -> None:
    body = """
    sock = stdio.inherited_socketpair()
    assert stdio.CHANNEL_VARIABLE not in os.environ
    assert stdio.inherited_socketpair() is None
    assert not sock.get_inheritable()
    print("print is free:", sys.stdin.read())
    from asyncipc.transport.sockets import SocketTransport
    await serve(SocketTransport(sock, description="channel"))
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(WAIT)
        ours.sendall(b"through the socket")
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            command(loop_name, body),
            env={**environment(), stdio.CHANNEL_VARIABLE: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            input=b"so is input",
            capture_output=True,
            timeout=WAIT,
            check=False,
        )
        theirs.close()
        assert (done.stdout, done.stderr) == (b"print is free: so is input\n", b"")
        assert ours.recv(100) == b"through the socket"
        assert ours.recv(100) == b""


def test_no_inherited_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stdio.CHANNEL_VARIABLE, raising=False)
    assert stdio.inherited_socketpair() is None


@pytest.mark.parametrize("value", ["", "three", "-1", "1.5", "\N{SUPERSCRIPT TWO}"])
def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(stdio.CHANNEL_VARIABLE, value)
    with pytest.raises(AddressError, match="must name an inherited unix stream socket, not"):
        stdio.inherited_socketpair()
    assert stdio.CHANNEL_VARIABLE not in os.environ


@pytest.mark.parametrize("value", ["987654", "99999999999999999999"])
def test_a_descriptor_that_is_not_open(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(stdio.CHANNEL_VARIABLE, value)
    with pytest.raises(AddressError, match=f"descriptor {value} is not open"):
        stdio.inherited_socketpair()


def test_a_descriptor_that_is_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setenv(stdio.CHANNEL_VARIABLE, str(read))
    with pytest.raises(AddressError, match=f"descriptor {read} is a pipe"):
        stdio.inherited_socketpair()
    os.close(read)  # still ours: it was not taken
    os.close(write)


def test_a_socket_of_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        monkeypatch.setenv(stdio.CHANNEL_VARIABLE, str(sock.fileno()))
        with pytest.raises(AddressError, match="a socket of type AF_INET SOCK_DGRAM"):
            stdio.inherited_socketpair()
        assert sock.getsockname()
