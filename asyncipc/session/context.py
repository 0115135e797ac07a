"""What a handler can see of its call, and do about it, wherever it is in the call stack.

Layer 2. Knows the session and the machinery of incoming calls only as Protocols: both import
this module.
"""

import asyncio
import math
import threading
from concurrent.futures import Executor
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from asyncipc.errors import EncodeError, InvalidParams, LocalProtocolError

if TYPE_CHECKING:  # brings anyio along
    from asyncipc.session.channel import Channel

__all__ = ["Call", "CallOwner", "Progress", "current_call", "progress", "serving"]


class Progress:
    """How far a call has come.

    :ivar done: units done, in whatever unit the handler counts
    :ivar total: units in all, or None where that is not known
    :ivar message: a text for people, or None
    """

    __slots__ = ("done", "message", "total")

    def __init__(self, done: float, total: float | None = None, message: str | None = None) -> None:
        self.done: float = done
        self.total: float | None = total
        self.message: str | None = message

    @property
    def fraction(self) -> float | None:
        """``done / total``, or None where the total is unknown or zero."""
        return self.done / self.total if self.total else None

    def __repr__(self) -> str:
        return f"Progress(done={self.done!r}, total={self.total!r}, message={self.message!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Progress):
            return NotImplemented
        return (self.done, self.total, self.message) == (other.done, other.total, other.message)

    def __hash__(self) -> int:
        return hash((self.done, self.total, self.message))


class Reports(Protocol):
    """Where the progress of calls goes."""

    def send(self, call: "Call", update: Progress) -> None:
        """Send, or keep the latest where the outbox is full. On the loop's thread only."""

    def send_from_thread(self, call: "Call", update: Progress) -> None:
        """The same for all other threads."""

    async def room(self) -> None:
        """Wait until the outbox is no longer full."""


class CallOwner(Protocol):
    """What a call needs of the machinery that serves it."""

    loop: asyncio.AbstractEventLoop
    thread_id: int
    session: Any

    @property
    def progress(self) -> Reports:
        """Where the progress of its calls goes."""
        ...

    def threads(self) -> Executor:
        """Where handlers run that want a thread."""
        ...

    def extend(self, call: "Call", seconds: float) -> None:
        """Tell the caller to wait longer. On the loop's thread only."""

    def look(self) -> None:
        """See what has come for the running code, where it keeps the loop from reading."""


class Cancellable(Protocol):
    """Work that can be told to stop: a task, above all."""

    def cancel(self) -> object:
        """Tell it."""
        ...


class Call:
    """One request or notification that is being served.

    :ivar method: the name it was sent to
    :ivar metadata: what the caller sent along (``request_id`` among it), an empty dict otherwise
    :ivar deadline: when the caller stops waiting, on the clock of ``time.monotonic()``; None: never
    :ivar depth: how many calls of this session are being served around this one, 0 for none
    """

    # Defaults stand on the class, because a call is made for every request and most are never
    # touched.
    given_up = False  # by the caller
    depth = 0
    finished = False  # the answer is on its way; nothing may follow it
    started = False  # its task has made its first step
    in_thread = False  # it runs where it can't be interrupted
    task: Cancellable | None = None
    streams: Any = None  # its `ServedStreams`, if the caller sends or takes items

    def __init__(
        self,
        owner: CallOwner,
        wire_id: int,
        method: str,
        deadline: float | None,
        metadata: dict[str, Any],
    ) -> None:
        self._owner = owner
        self.wire_id = wire_id
        self.method = method
        self.deadline = deadline
        self.metadata = metadata

    def threads(self) -> Executor:
        """Where its handler runs if it wants a thread."""
        return self._owner.threads()

    @property
    def cancelled(self) -> bool:
        """True as soon as the caller has given the call up.

        An ``async def`` handler also gets `asyncio.CancelledError`; a plain ``def`` that runs in a
        thread, or in a pool's worker, has to look.
        """
        if not self.given_up:
            self._owner.look()
        return self.given_up

    @property
    def session(self) -> Any:
        """The `asyncipc.Session` it came in on; requests on it go back to the caller."""
        return self._owner.session

    @property
    def remaining(self) -> float | None:
        """Seconds until the caller stops waiting, 0.0 when it has; None: no limit."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - monotonic())

    def channel(self) -> "Channel":
        """This side's end of the channel that the caller has opened; always the same object.

        :raises InvalidParams: the caller opened none, but made another kind of call; left alone,
            the exception tells the caller to use ``session.channel()``
        """
        if self.streams is None:
            raise InvalidParams(
                f"{self.method}() talks through a channel: call it with session.channel()"
            )
        channel: Channel = self.streams.open_channel()
        return channel

    def extend_deadline(self, seconds: float) -> None:
        """Ask the caller to wait for at least ``seconds`` from now, if it would give up sooner.

        Nothing happens where it waits without a limit anyway, once the call has ended, and for
        notifications. May be called from any thread, and repeatedly. Calls that the caller itself
        serves, and for which it made this one, keep their deadlines.

        :raises TypeError: ``seconds`` is no number
        :raises ValueError: it is negative, or not finite
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"extend_deadline() takes seconds, not {seconds!r:.60}")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"extend_deadline() takes finite seconds from 0, not {seconds!r}")
        if self.deadline is None or self.wire_id == 0 or self.finished:
            return
        self.deadline = max(self.deadline, monotonic() + seconds)
        owner = self._owner
        if threading.get_ident() == owner.thread_id:
            owner.extend(self, seconds)
        else:
            owner.loop.call_soon_threadsafe(owner.extend, self, seconds)

    async def progress(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell the caller how far the call has come; waits while the outbox is full.

        Updates arrive in order and before the result. Ignored once the call has ended, and for
        notifications.

        :raises TypeError: a number is not a number, or the message not a string
        :raises ValueError: an integer has more than 64 bits
        :raises EncodeError: the message is no valid Unicode text
        :raises FrameTooLarge: the message is larger than the caller takes
        """
        self.report(done, total, message)
        await self._owner.progress.room()

    def report(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """`progress` for plain functions, from any thread.

        Never waits: while the outbox is full, or the loop too busy to look after its threads, only
        the latest update is kept; `Statistics.progress_dropped` counts the others. (From a thread,
        a message larger than the caller takes is dropped with a warning.)
        """
        update = _checked_progress(done, total, message)
        if self.wire_id == 0 or self.finished:
            return
        owner = self._owner
        if threading.get_ident() == owner.thread_id:
            owner.progress.send(self, update)
        else:
            owner.progress.send_from_thread(self, update)

    def __repr__(self) -> str:
        return f"<Call {self.method!r}{' cancelled' if self.given_up else ''}>"


serving: ContextVar[Call | None] = ContextVar("asyncipc_serving", default=None)


def current_call() -> Call:
    """The call that the running code serves.

    :raises LocalProtocolError: it serves none
    """
    call = serving.get()
    if call is None:
        raise LocalProtocolError("no call is being served here; current_call() is for handlers")
    return call


def progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Tell the caller of the current call how far it has come; see `Call.report`.

    :raises LocalProtocolError: no call is being served here
    """
    current_call().report(done, total, message)


def _checked_progress(done: object, total: object, message: object) -> Progress:
    """An update of exactly the types that the wire has for it."""
    checked_total = None if total is None else _checked_number("total", total, " or None")
    if not isinstance(message, str | None):
        raise TypeError(f"progress() message must be a string or None, not {message!r:.60}")
    if message is not None:
        message = str.__str__(message)
        try:
            message.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(f"progress() message is no valid Unicode text: {error}") from error
    return Progress(_checked_number("done", done), checked_total, message)


def _checked_number(name: str, value: object, alternative: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"progress() {name} must be a number{alternative}, not {value!r:.60}")
    if isinstance(value, float):
        return float(value)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"progress() {name} must fit into 64 bits")
    return int(value)
