"""`Fd`: a file descriptor as a value, with an owner.

Above: the session, which makes one of each descriptor that comes. Below: the kernel.

Layer 1.
"""

import os
import socket
import warnings
from types import TracebackType
from typing import IO, Any, NoReturn, Self

__all__ = ["Fd"]


class Fd:
    """A file descriptor that belongs to this object: it is closed with it.

    What arrives in place of a descriptor is one of these, whatever was sent. It can be sent too:
    **sending an `Fd` gives it away**, it is closed here as soon as the message was handed over.
    (A socket or a file object that is sent stays open, and its owner's.)

    It can be neither copied nor pickled, since its number means nothing elsewhere. The calls of a
    pool carry it all the same.

    Use it as a context manager, or take the descriptor over with `detach`, `as_socket` or
    `as_file`. One that is dropped while it is open is closed, with a `ResourceWarning`.

    :param fd: the number of an open descriptor, which the object owns from now on
    :raises TypeError: it is no number
    :raises ValueError: it is negative
    """

    __slots__ = ("__weakref__", "_fd")

    _fd: int

    def __init__(self, fd: int) -> None:
        if isinstance(fd, bool) or not isinstance(fd, int):
            raise TypeError(f"a file descriptor is a number, not {fd!r:.60}")
        if fd < 0:
            raise ValueError(f"a file descriptor is not negative, but {fd}")
        self._fd = fd

    @property
    def closed(self) -> bool:
        """It was closed, or taken over by somebody else."""
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor, which stays the object's.

        :raises ValueError: it was closed, or taken over by somebody else
        """
        if self._fd < 0:
            raise ValueError("this Fd was closed, sent or taken over")
        return self._fd

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on.

        :raises ValueError: it was closed, or taken over by somebody else
        """
        fd = self.fileno()
        self._fd = -1
        return fd

    def dup(self) -> "Fd":
        """A second descriptor for the same thing.

        :raises ValueError: it was closed, or taken over by somebody else
        :raises OSError: the process has too many descriptors
        """
        return Fd(os.dup(self.fileno()))

    def as_socket(self) -> socket.socket:
        """A socket, which is the caller's; family and type are read off the descriptor.

        :raises ValueError: it was closed, or taken over by somebody else
        :raises OSError: it is no socket; the object still owns it
        """
        sock = socket.socket(fileno=self.fileno())
        self._fd = -1
        return sock

    def as_file(self, mode: str = "rb", **options: Any) -> IO[Any]:
        """A file object, which is the caller's.

        :param mode: and ``options``: as for `open`
        :raises ValueError: it was closed, or taken over by somebody else
        :raises OSError: there can be no file object for it (a folder); the object still owns it
        """
        file = os.fdopen(self.fileno(), mode, **options)
        self._fd = -1
        return file

    def close(self) -> None:
        """Close the descriptor, unless it is not the object's any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # By its number it would be another file there, or a second owner here.
        raise TypeError(
            "an Fd is neither pickled nor copied: dup() makes a second one, and another process "
            "gets it as a value in a message of a session, or in the arguments of a pool's call"
        )

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(0)

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce_ex__(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without the attribute where `__init__` refused its argument.
        if getattr(self, "_fd", -1) >= 0:
            try:  # this raises where warnings are errors
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()

    def __repr__(self) -> str:
        return "<Fd closed>" if self._fd < 0 else f"<Fd {self._fd}>"
