"""Programs, run as users run them: for the tests of the examples and of the pages with code."""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

__all__ = ["LIMIT", "ROOT", "environment", "read_until", "run", "run_in_terminal", "start"]

ROOT = Path(__file__).parents[1]

# Seconds that a program gets. They need a tenth of it on a small machine that is busy.
LIMIT = 60


def environment() -> dict[str, str]:
    """Where the library is found, and warnings are errors, also in children."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def start(
    *arguments: str | Path, cwd: Path = ROOT, stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a Python program as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    *arguments: str | Path, cwd: Path = ROOT, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end."""
    return subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def run_in_terminal(*arguments: str | Path, columns: int) -> tuple[int, str, str]:
    """Run a Python program whose output is a terminal: exit code, what it wrote there, stderr."""
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = start(*arguments, stdout=theirs)
        os.close(theirs)
        with process:
            written = read_until(ours, None)
            _, errors = process.communicate(timeout=LIMIT)
    finally:
        os.close(ours)
    return process.returncode, written, errors


def read_until(fd: int, text: str | None) -> str:
    """Read from a descriptor until a text has come; None: to the end.

    :raises TimeoutError: it does not come
    """
    data = b""
    deadline = monotonic() + LIMIT
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while text is None or text.encode() not in data:
        if not poller.poll(max(0, deadline - monotonic()) * 1000):
            raise TimeoutError(f"expected {text!r} within {LIMIT} s, got {data[-1000:]!r}")
        try:
            chunk = os.read(fd, 65536)
        except OSError:  # EIO: nobody has the other end of the terminal any more
            chunk = b""
        if not chunk:
            if text is None:
                break
            raise EOFError(f"expected {text!r} before the end, got {data[-1000:]!r}")
        data += chunk
    return data.decode()
