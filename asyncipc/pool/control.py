"""What the application and the zygote say to each other: named records, and descriptors with them.

They speak over a unix socket that keeps the bounds of messages (``SOCK_SEQPACKET``), so that a
record and its descriptors always arrive together. Both ends are the library's own.

Layer 4, inside the pool. Above: the zygote, and the starter that speaks to it.
"""

import array
import dataclasses
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeAlias

import msgpack

__all__ = [
    "ControlSocket",
    "Exited",
    "Fork",
    "ForkFailed",
    "Forked",
    "Ready",
    "Record",
    "Refused",
    "Setup",
    "Stage",
]

# Bytes of a record and number of its descriptors.
MAX_RECORD: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 4

# Larger records stand in a file that goes along as the first descriptor.
MAX_INLINE: Final = 32 * 1024
_IN_FILE: Final = b"file"


@dataclass(frozen=True, slots=True)
class Setup:
    """To the zygote, first, with one descriptor, the application's pidfd: how to become like it.

    :ivar main: how to import the application's main module; see `asyncipc.pool.main_module`
    :ivar path: its ``sys.path``
    :ivar argv: its ``sys.argv``
    :ivar preload: modules to import
    """

    main: dict[str, str]
    path: list[str]
    argv: list[str]
    preload: list[str]


@dataclass(frozen=True, slots=True)
class Fork:
    """To the zygote: make a worker, with three descriptors: its socket, stderr and lifeline."""

    worker: int


@dataclass(frozen=True, slots=True)
class Stage:
    """From the zygote, before it is ready: what it does next, as `asyncipc.pool.stages` has it."""

    doing: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From the zygote: everything is imported.

    :ivar seconds: how long that took
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """From the zygote, its last words: it cannot make workers."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forked:
    """From the zygote: a worker is there, with one descriptor: its pidfd."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """From the zygote: the worker could not be made."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """From the zygote: it has reaped a worker.

    :ivar returncode: the exit code, or the negative number of the signal that killed it
    """

    worker: int
    returncode: int


Record: TypeAlias = Setup | Fork | Stage | Ready | Refused | Forked | ForkFailed | Exited

_RECORDS: Final[dict[str, type[Record]]] = {
    record.__name__: record
    for record in (Setup, Fork, Stage, Ready, Refused, Forked, ForkFailed, Exited)
}


class ControlSocket:
    """One end of the connection between application and zygote.

    :param end: of a ``SOCK_SEQPACKET`` pair; taken over
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """The descriptor, to be polled."""
        return self._socket.fileno()

    def send(self, record: Record, descriptors: Sequence[int] = ()) -> None:
        """Send a record.

        :raises OSError: the other end is gone
        """
        data = msgpack.packb(
            [type(record).__name__, *_fields(record)], unicode_errors="surrogateescape"
        )
        if len(data) <= MAX_INLINE:
            self._send(data, descriptors)
            return
        # A long command line, above all: more than the socket takes in one piece.
        with _in_memory(data) as file:
            self._send(_IN_FILE, [file.fileno(), *descriptors])

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        rights = array.array("i", descriptors)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        self._socket.sendmsg([data], control)

    def receive(self) -> tuple[Record, list[int]] | None:
        """The next record, and descriptors that are the caller's from now on; None at the end.

        :raises BlockingIOError: there is none yet, and the socket does not wait
        """
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        data, control, _, _ = self._socket.recvmsg(MAX_RECORD, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if not data:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        if data == _IN_FILE:
            with open(descriptors.pop(0), "rb") as file:  # noqa: PTH123 - it is a descriptor
                data = file.read()
        name, *fields = msgpack.unpackb(data, unicode_errors="surrogateescape")
        return _RECORDS[name](*fields), list(descriptors)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _in_memory(data: bytes) -> BinaryIO:
    """A file without a name, to be read from its beginning."""
    file = open(os.memfd_create("asyncipc"), "w+b")  # noqa: PTH123, SIM115 - the caller closes it
    file.write(data)
    file.flush()
    file.seek(0)
    return file


def _fields(record: Record) -> list[Any]:
    return [getattr(record, field.name) for field in dataclasses.fields(record)]
