"""Starts a child process with a transport to it.

Layer 3, inside the peer. Below: process, transport.
"""

import fcntl
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from asyncipc.process.child import ChildProcess, start_child
from asyncipc.process.stderr import StderrCapture, StderrMode
from asyncipc.transport.base import Transport
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.stdio import CHANNEL_VARIABLE

__all__ = ["Channel", "Spawned", "spawn_child"]

Channel: TypeAlias = Literal["stdio", "socketpair"]


class Spawned(NamedTuple):
    """A child that runs, and the way to it."""

    process: ChildProcess
    stderr: StderrCapture
    transport: Transport


def spawn_child(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: StderrMode,
    channel: Channel,
    stderr_tail: int,
) -> Spawned:
    """Start a program; see `asyncipc.Peer.spawn`."""
    if channel not in ("stdio", "socketpair"):
        raise ValueError(f"channel must be 'stdio' or 'socketpair', not {channel!r}")
    capture = StderrCapture(stderr, stderr_tail)
    try:
        start = _start_over_stdio if channel == "stdio" else _start_over_socketpair
        process, transport = start(argv, env, cwd, capture.fd)
    except BaseException:
        capture.close()
        raise
    capture.start()
    return Spawned(process, capture, transport)


# Our end of the channel is made before the child is started: what can fail fails without a child.


def _start_over_stdio(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: int | None,
) -> tuple[ChildProcess, Transport]:
    child_input, our_output = os.pipe()
    try:
        our_input, child_output = os.pipe()
    except BaseException:
        os.close(child_input)
        os.close(our_output)
        raise
    try:
        transport = PipeTransport(our_input, our_output, description="child")
        try:
            process = start_child(
                argv, env=env, cwd=cwd, stdin=child_input, stdout=child_output, stderr=stderr
            )
        except BaseException:
            transport.close()
            raise
    finally:
        os.close(child_input)
        os.close(child_output)
    transport.description = f"pid {process.pid}"
    return process, transport


def _start_over_socketpair(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: int | None,
) -> tuple[ChildProcess, Transport]:
    ours, theirs = socket.socketpair()
    with theirs:
        transport = SocketTransport(ours, description="child")
        try:
            process = _start_with_socket(argv, env, cwd, stderr, theirs)
        except BaseException:
            transport.close()
            raise
    transport.description = f"pid {process.pid}"
    return process, transport


def _start_with_socket(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: int | None,
    sock: socket.socket,
) -> ChildProcess:
    # Not below 3, where the child's standard streams would take its place.
    number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return start_child(
            argv,
            env={**(os.environ if env is None else env), CHANNEL_VARIABLE: str(number)},
            cwd=cwd,
            pass_fds=(number,),
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    finally:
        os.close(number)
