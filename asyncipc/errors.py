"""Every exception the library raises, and the table that ties them to fault codes on the wire.

::

    IPCError
    ├── SessionClosed               the session ended; nothing more can be sent or answered
    │   └── PeerDied                ... because the other side died (exit code, signal, stderr)
    ├── RequestTimeout              no answer within the timeout (also a TimeoutError)
    ├── RequestRefused              the request was not started; repeating it is safe
    ├── RequestCancelled            the other side cancelled the call
    ├── RemoteError                 the handler on the other side raised
    │   ├── MethodNotFound          nobody there handles the method
    │   ├── InvalidParams           the parameters do not fit the handler
    │   ├── PermissionDenied        the caller may not do this
    │   └── Busy                    over a rate or capacity limit; try again later
    ├── ProtocolError               the rules of the wire were broken
    │   ├── LocalProtocolError      ... by this side: a bug in the calling code
    │   │   └── CallDepthExceeded   calls nested deeper than ``Limits.max_depth``
    │   ├── RemoteProtocolError     ... by the other side
    │   │   └── HandshakeTimeout    ... which did not say hello in time (also a TimeoutError)
    │   └── FrameTooLarge           a message or frame over a size limit
    ├── EncodeError                 a value cannot be sent (also a TypeError)
    ├── DecodeError                 a value that came cannot be understood (also a ValueError)
    ├── AuthenticationError         the other side did not prove, or did not accept, an identity
    ├── PoolError                   the pool cannot do what is asked
    │   ├── WorkerDied              the worker that ran the task died (exit code, signal, stderr)
    │   ├── TaskTimeout             no result within the timeout (also a TimeoutError)
    │   └── PoolClosed              the pool takes no more tasks
    ├── AddressError                an address cannot be understood (also a ValueError)
    └── AddressInUse                somebody alive is listening there already (also an OSError)

Those of channels are also anyio's, which is a large import: they stand in
`asyncipc.session.channel`.

Layer 0: imports nothing of the library.
"""

import enum
import errno
import signal as signals
from collections.abc import Sequence
from typing import Any

__all__ = [
    "AddressError",
    "AddressInUse",
    "AuthenticationError",
    "Busy",
    "CallDepthExceeded",
    "DecodeError",
    "EncodeError",
    "FaultCode",
    "FrameTooLarge",
    "HandshakeTimeout",
    "IPCError",
    "InvalidParams",
    "LocalProtocolError",
    "MethodNotFound",
    "PeerDied",
    "PermissionDenied",
    "PoolClosed",
    "PoolError",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "RequestCancelled",
    "RequestRefused",
    "RequestTimeout",
    "SessionClosed",
    "TaskTimeout",
    "WorkerDied",
    "fault_code",
    "fault_exception",
]


class IPCError(Exception):
    """The root of everything this library raises on purpose."""


class SessionClosed(IPCError):
    """The session has ended, so the call cannot be sent or its answer cannot come."""


class PeerDied(SessionClosed):
    """The other side died without saying goodbye.

    :ivar exit_code: exit status of the process if this side spawned it and it exited by itself
    :ivar signal: number of the signal that killed it, if one did
    :ivar stderr_tail: the last text it wrote to stderr, where stderr was captured (else empty)
    """

    def __init__(
        self,
        message: str = "the other side died",
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        self.reason = message
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail
        super().__init__(message)

    def __str__(self) -> str:
        return _obituary(self.reason, self.exit_code, self.signal, self.stderr_tail)


class RequestTimeout(IPCError, TimeoutError):
    """No answer came within the timeout. A cancel message was sent to the other side."""


class RequestRefused(IPCError):
    """The other side did not start the request (it is going away, or is over a limit).

    Nothing of it was executed, so it may safely be sent again.
    """


class RequestCancelled(IPCError):
    """The call was cancelled on the other side, not by its caller."""


class RemoteError(IPCError):
    """The handler on the other side raised an exception.

    :ivar type: qualified name of the remote exception's class (``ValueError``, ``app.Broken``)
    :ivar message: ``str()`` of the remote exception
    :ivar traceback: the remote traceback as text; empty where the other side withholds it
    :ivar notes: the remote exception's ``__notes__``
    """

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the public name of the field
        traceback: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.type: str = type if type is not None else self.__class__.__name__
        self.message: str = str(message)
        self.traceback = traceback
        self.notes: tuple[str, ...] = tuple(notes)

    def __str__(self) -> str:
        text = (
            self.message if self.type == self.__class__.__name__ else f"{self.type}: {self.message}"
        )
        if self.notes:
            text += "\n" + "\n".join(self.notes)
        if self.traceback:
            text += f"\n\nremote traceback:\n{self.traceback.rstrip()}"
        return text


class MethodNotFound(RemoteError):
    """No handler on the other side takes this method."""


class InvalidParams(RemoteError):
    """The parameters do not fit the handler; the message names the parameter."""


class PermissionDenied(RemoteError):
    """The other side knows who is asking and says no."""


class Busy(RemoteError):
    """A capacity or rate limit on the other side was reached; try again later."""


class ProtocolError(IPCError):
    """The rules of the wire were broken; the subclass says by whom."""


class LocalProtocolError(ProtocolError):
    """This side used the library against its rules: a bug in the calling code."""


class CallDepthExceeded(LocalProtocolError):
    """Calls that serve calls of the same session are nested deeper than ``Limits.max_depth``."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow."""


class HandshakeTimeout(RemoteProtocolError, TimeoutError):
    """No session stood within ``Timeouts.handshake``; the text shows what came instead."""


class FrameTooLarge(ProtocolError):
    """A frame or message is larger than a limit; the text names the limit and the size."""


class EncodeError(IPCError, TypeError):
    """A value cannot be sent; the text gives its path (``params.items[3].when``)."""


class DecodeError(IPCError, ValueError):
    """A value that came cannot be turned into an object here; the text says which and why."""


class AuthenticationError(IPCError):
    """A side could not prove who it is. Never contains the token or anything made from it."""


class AddressError(IPCError, ValueError):
    """The address is not one that can be used; the text says what was expected."""


class AddressInUse(IPCError, OSError):
    """A live server owns the address; it was left alone."""

    def __init__(self, message: str) -> None:
        OSError.__init__(self, errno.EADDRINUSE, message)

    def __str__(self) -> str:
        return str(self.args[1])


class PoolError(IPCError):
    """The pool cannot do what is asked of it; the text says why. See also its subclasses."""


class WorkerDied(PoolError):
    """The worker died while it ran the task, which may have been executed in part.

    :ivar exit_code: its exit status, if it exited by itself and that is known
    :ivar signal: number of the signal that killed it, if one did
    :ivar stderr_tail: the last text it wrote to stderr
    """

    def __init__(
        self,
        message: str = "the worker died",
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        self.reason = message
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail
        super().__init__(message)

    def __str__(self) -> str:
        return _obituary(self.reason, self.exit_code, self.signal, self.stderr_tail)


class TaskTimeout(PoolError, TimeoutError):
    """No result came within the timeout. The task is being stopped, with its worker if need be."""


class PoolClosed(PoolError):
    """The pool is closing or closed, or was never opened: it takes no tasks."""


class FaultCode(enum.IntEnum):
    """The published numbers of faults on the wire (``docs/errors.md``)."""

    ERROR = 1
    METHOD_NOT_FOUND = 2
    INVALID_PARAMS = 3
    PERMISSION_DENIED = 4
    BUSY = 5
    REFUSED = 6
    CANCELLED = 7
    UNSUPPORTED = 8
    TOO_DEEP = 9


# One table, read both ways. A subclass of RemoteError travels as its nearest listed ancestor.
_REMOTE_ERRORS: dict[int, type[RemoteError]] = {
    FaultCode.ERROR: RemoteError,
    FaultCode.METHOD_NOT_FOUND: MethodNotFound,
    FaultCode.INVALID_PARAMS: InvalidParams,
    FaultCode.PERMISSION_DENIED: PermissionDenied,
    FaultCode.BUSY: Busy,
}
_PLAIN_ERRORS: dict[int, type[IPCError]] = {
    FaultCode.REFUSED: RequestRefused,
    FaultCode.CANCELLED: RequestCancelled,
    FaultCode.UNSUPPORTED: RemoteProtocolError,
    FaultCode.TOO_DEEP: CallDepthExceeded,
}
_CODES: dict[type[IPCError], int] = {
    exception: code
    for table in (_REMOTE_ERRORS, _PLAIN_ERRORS)
    for code, exception in table.items()
}


def fault_code(error: BaseException) -> int:
    """The code under which a handler's exception travels.

    Only what a handler may say about its own call keeps its code: the `RemoteError` family,
    `RequestRefused` and `RequestCancelled`. Everything else is `FaultCode.ERROR`.
    """
    for ancestor in type(error).__mro__:
        code = _CODES.get(ancestor)
        if code is not None and code not in (FaultCode.UNSUPPORTED, FaultCode.TOO_DEEP):
            return code
    return FaultCode.ERROR


def fault_exception(code: int, message: str, details: dict[str, Any]) -> IPCError:
    """The exception the caller gets for a fault; an unknown code becomes a `RemoteError`."""
    plain = _PLAIN_ERRORS.get(code)
    if plain is not None:
        return plain(message)
    remote = _REMOTE_ERRORS.get(code, RemoteError)
    kind = details.get("type")
    notes = details.get("notes", ())
    return remote(
        message,
        type=kind if isinstance(kind, str) else None,
        traceback=str(details.get("traceback", "")),
        notes=[str(note) for note in notes] if isinstance(notes, list | tuple) else (),
    )


def _obituary(reason: str, exit_code: int | None, signal: int | None, stderr_tail: str) -> str:
    """How a process died, for people."""
    text = reason
    if signal is not None:
        text += f" (killed by {_signal_name(signal)})"
    elif exit_code is not None:
        text += f" (exit code {exit_code})"
    if stderr_tail:
        text += f"; its last words on stderr:\n{stderr_tail.rstrip()}"
    return text


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
