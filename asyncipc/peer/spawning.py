"""Starts a child process with a transport to it.

Layer 3, inside the peer. Below: process, transport.
"""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from asyncipc.process.child import ChildProcess, start_child
from asyncipc.process.stderr import StderrCapture, StderrMode
from asyncipc.transport.base import Transport
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.sockets import SocketTransport
from asyncipc.transport.stdio import CHANNEL_VARIABLE

__all__ = ["Channel", "Spawned", "spawn_child"]

Channel: TypeAlias = Literal["stdio", "socketpair"]


@dataclass(frozen=True, slots=True)
class Spawned:
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


def _start_over_stdio(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: int | None,
) -> tuple[ChildProcess, Transport]:
    child_input, our_output = os.pipe()
    our_input, child_output = os.pipe()
    try:
        process = start_child(
            argv, env=env, cwd=cwd, stdin=child_input, stdout=child_output, stderr=stderr
        )
    except BaseException:
        os.close(our_output)
        os.close(our_input)
        raise
    finally:
        os.close(child_input)
        os.close(child_output)
    return process, PipeTransport(our_input, our_output, description=f"pid {process.pid}")


def _start_over_socketpair(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    stderr: int | None,
) -> tuple[ChildProcess, Transport]:
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        environment = {**(os.environ if env is None else env), CHANNEL_VARIABLE: str(number)}
        try:
            process = start_child(
                argv,
                env=environment,
                cwd=cwd,
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        except BaseException:
            ours.close()
            raise
    return process, SocketTransport(ours, description=f"pid {process.pid}")
