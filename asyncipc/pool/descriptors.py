"""File descriptors in what is pickled: put beside the pickle, and made objects of again.

A pickle cannot hold a descriptor, only its number, which means something else in another process.
So `Fd`, sockets and file objects have a persistent id in it, the position of a descriptor among
those that travel beside it. What travels is a copy made when the value was pickled: it is there
also for a second attempt, and whoever lent a socket may close it at once.

Layer 4, inside the pool. Above: payload. Below: transport.
"""

import io
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from asyncipc.transport.fd import Fd

__all__ = [
    "Carried",
    "DescriptorPickler",
    "DescriptorUnpickler",
    "carries_descriptors",
    "drop_descriptors",
]

BUFFERED: Final = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)


class Carried:
    """A copy of a descriptor on its way, closed when nobody needs it any longer.

    (Not an `Fd`, which sending gives away: a task may be sent again.)
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor, which stays the object's."""
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


class DescriptorPickler(pickle.Pickler):
    """Pickles what holds descriptors."""

    def __init__(self, file: io.BytesIO, protocol: int, **options: Any) -> None:
        super().__init__(file, protocol, **options)
        self._found: dict[int, tuple[Any, tuple[Any, ...]]] = {}  # by id: holder, persistent id

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        """What stands for a value in the pickle; None for one without a descriptor."""
        known = self._found.get(id(value))
        if known is not None:
            return known[1]
        description = _description(value)
        if description is None:
            return None
        holder, *what = description
        if holder.fileno() < 0:
            raise ValueError(f"this {type(value).__qualname__} is closed")
        persistent_id = (len(self._found), *what)
        self._found[id(value)] = holder, persistent_id
        return persistent_id

    def carried(self) -> list[Carried]:
        """The descriptors, in their order; each `Fd` is given away.

        :raises OSError: the process has too many descriptors
        """
        holders = [holder for holder, _ in self._found.values()]
        copies = [Carried(os.dup(holder.fileno())) for holder in holders]
        for holder in holders:
            if isinstance(holder, Fd):
                holder.close()
        return copies


class DescriptorUnpickler(pickle.Unpickler):
    """The reverse of `DescriptorPickler`.

    :param descriptors: as they came; they are its own from now on
    """

    def __init__(self, file: io.BytesIO, descriptors: Sequence[Fd], **options: Any) -> None:
        super().__init__(file, **options)
        self._descriptors = descriptors
        self._made: dict[int, Any] = {}

    def persistent_load(self, persistent_id: tuple[Any, ...]) -> Any:
        """The object that a persistent id stands for."""
        index, kind, *options = persistent_id
        if index not in self._made:
            self._made[index] = _MAKERS[kind](self._descriptors[index], *options)
        return self._made[index]

    def close(self) -> None:
        """Close what the descriptors became, or those that became nothing."""
        for value in (*self._made.values(), *self._descriptors):
            value.close()


def carries_descriptors(dumped: Sequence[Any]) -> bool:
    """Whether what was pickled holds descriptors, which stand last."""
    return bool(dumped) and type(dumped[-1]) is Carried


def drop_descriptors(values: Sequence[Any]) -> None:
    """Close the descriptors among values that came and that nobody takes."""
    for value in values:
        if type(value) is Fd:
            value.close()


def _description(value: Any) -> tuple[Any, ...] | None:
    """What has the descriptor of a value, what it is, and what else makes it the same again."""
    kind = type(value)
    if kind is Fd:
        return value, "fd"
    if isinstance(value, socket.socket):
        if kind is not socket.socket:
            raise TypeError(
                f"a {kind.__module__}.{kind.__qualname__} would not arrive as itself: give "
                "asyncipc.Fd(sock.detach())"
            )
        return value, "socket", value.gettimeout()
    if kind.__name__ == "_TemporaryFileWrapper" and kind.__module__ == "tempfile":
        return _description(value.file)  # the file; removing it stays with who made it
    return _file_description(value, kind)


def _file_description(value: Any, kind: type) -> tuple[Any, ...] | None:
    """`_description` of what `open` makes."""
    buffered = value.buffer if kind is io.TextIOWrapper else value
    raw = buffered.raw if isinstance(buffered, BUFFERED) else buffered
    if type(raw) is not io.FileIO:
        return None
    value.flush()  # what was written before is to stand before
    mode = raw.mode.replace("x", "w")  # "x" would be for a new file
    if kind is io.TextIOWrapper:
        return value, "text", mode, value.encoding, value.errors
    return value, "file", mode, 0 if value is raw else -1


def _make_socket(fd: Fd, timeout: float | None) -> socket.socket:
    sock = fd.as_socket()
    sock.settimeout(timeout)
    return sock


_MAKERS: Final[dict[str, Callable[..., Any]]] = {
    "fd": lambda fd: fd,
    "socket": _make_socket,
    "file": lambda fd, mode, buffering: fd.as_file(mode, buffering=buffering),
    "text": lambda fd, mode, encoding, errors: fd.as_file(
        mode.replace("b", ""), encoding=encoding, errors=errors
    ),
}
