"""The life of a session: greeting, open, closing, closed.

It takes bytes from the transport and has them looked through; it turns every end, wished for or
not, into one error for all who wait.

Layer 2. Above: `asyncipc.session.session`, the public face. Below: wire, transport.
"""

import asyncio
import copy
import enum
import logging
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Final

from asyncipc.errors import (
    IPCError,
    LocalProtocolError,
    PeerDied,
    ProtocolError,
    RequestRefused,
    SessionClosed,
)
from asyncipc.session.companion import Companion
from asyncipc.session.exchange import Exchange
from asyncipc.session.greeting import Greeting
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.settings import SessionSettings
from asyncipc.transport.base import Transport
from asyncipc.wire.framing import FrameDecoder
from asyncipc.wire.handshake import HANDSHAKE_MAX_FRAME, Agreement, Role
from asyncipc.wire.messages import GoodbyeCode

__all__ = ["Connection"]

logger: logging.Logger = logging.getLogger("asyncipc")

# Of noise that nobody asked for, this much is logged.
MAX_LOGGED: Final = 300

# Seconds that the reason for an end may take to leave. It is a courtesy: waiters wait for it.
PARTING_TIME: Final = 0.5

# The bytes that can begin a hello: a MessagePack array of up to 15 elements.
HELLO_LEADING: Final = bytes(range(0x91, 0xA0))


class State(enum.Enum):
    """The life of a session, in this order."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Connection:
    """A session without its public face; implements the transport's ``Receiver``.

    :param session: the public face, given to handlers
    :ivar established: done when the session stands, or will not; None from then on
    :ivar closed: done when all is over
    """

    __slots__ = (
        "_clean",
        "_closing",
        "_decoder",
        "_end",
        "_ending",
        "_greeting",
        "_left_calls",
        "_limit",
        "_on_open",
        "_parting",
        "_refusal",
        "_verdict",
        "bytes_received",
        "closed",
        "companion",
        "established",
        "exchange",
        "get_buffer",
        "loop",
        "noise_received",
        "on_close",
        "on_noise",
        "settings",
        "state",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        role: Role,
        settings: SessionSettings,
        handlers: HandlerChain,
        session: Any,
        *,
        token: bytes | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loop: asyncio.AbstractEventLoop = loop
        self.transport: Transport = transport
        self.settings: SessionSettings = settings
        self.state: State = State.HANDSHAKE
        self.companion: Companion | None = None
        self.exchange: Exchange = Exchange(
            loop, transport, settings, handlers, session, ended=self.ended
        )
        self.established: asyncio.Future[None] | None = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.on_close: tuple[Callable[[SessionClosed | None], object], ...] = ()
        self.on_noise: tuple[Callable[[bytes], object], ...] = ()
        self.bytes_received: int = 0
        self.noise_received: int = 0
        self._greeting: Greeting | None = Greeting(
            role,
            settings,
            token,
            self.exchange.outbox,
            features=self.exchange.features,
            agreed=self._open,
            failed=self._fail_after_goodbye,
            noise=self._noise,
        )
        self._decoder = FrameDecoder(
            self._greeting,
            settings.read_buffer,
            max_frame=HANDSHAKE_MAX_FRAME,
            leading=HELLO_LEADING,
            tolerates_noise=transport.tolerates_noise,
        )
        self.get_buffer: Callable[[], memoryview] = self._decoder.get_buffer
        self._closing: asyncio.Task[None] | None = None
        self._parting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._on_open: Callable[[], object] | None = None
        self._end: SessionClosed | None = None
        self._refusal: str | None = None  # the other side says goodbye
        self._verdict: IPCError | None = None  # why this side ends the session
        self._clean = False  # a goodbye was sent or came
        self._left_calls = False  # the input ended while answers were owed
        self._limit: asyncio.TimerHandle | None = None  # of a closing that had none at first

    # -- opening ---------------------------------------------------------------------------

    def start(self, on_open: Callable[[], object] | None = None) -> None:
        """Begin with the handshake; `established` tells its outcome.

        :param on_open: called when the session stands, before any message is served
        """
        assert self._greeting is not None
        self._on_open = on_open
        # What the loop calls from now on serves nobody's call, whoever opened the session.
        context = Context()
        context.run(self.transport.start, self)
        context.run(self._greeting.start, self.loop, self.settings.timeouts.handshake)

    def _open(self, agreement: Agreement) -> None:
        if self._greeting is not None:
            self._greeting.stop()
            self._greeting = None
        codec = self.settings.codecs[agreement.codec]()
        self._decoder.max_frame = self.settings.limits.max_frame
        self._decoder.leading = codec.leading
        self._decoder.sink = self.exchange.open(
            codec, agreement, goodbye=self._receive_goodbye, noise=self._noise
        )
        self.state = State.OPEN
        on_open, self._on_open = self._on_open, None
        if on_open is not None:
            self._call_back(on_open)
        self._establish(None)

    def _establish(self, error: IPCError | None) -> None:
        """Tell who waits for the session that it stands, or will not."""
        established, self.established = self.established, None
        if established is None or established.done():
            return
        if error is None:
            established.set_result(None)
        else:
            established.set_exception(error)
            established.exception()  # somebody may have stopped waiting for it

    # -- receiving -------------------------------------------------------------------------

    def buffer_updated(self, count: int) -> None:
        """Bytes came: look through them, and answer in one go."""
        self.bytes_received += count
        exchange = self.exchange
        exchange.dispatch.now = monotonic()
        if exchange.busy_poll.is_waiting:
            exchange.busy_poll.came()
        outbox = exchange.outbox
        outbox.corked = True
        try:
            self._decoder.advance(count)
            if outbox.size:
                outbox.uncork()
        except ProtocolError as error:
            self._protocol_failed(error)
        except BaseException as error:
            # A codec, a callback or this library itself failed, and what came is half looked at.
            logger.exception("the session on %s broke", self.transport.description)
            self._protocol_failed(LocalProtocolError(f"{type(error).__name__} while reading"))
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            outbox.corked = False

    def descriptors_received(self, descriptors: list[int], *, lost: bool) -> None:
        """Descriptors came, with the bytes that `buffer_updated` will tell of."""
        assert self.exchange.sideband is not None, "it asked the transport for them"
        self.exchange.sideband.incoming().put(descriptors, lost=lost)
        self.loop.call_soon(self._check_descriptors)

    def _check_descriptors(self) -> None:
        """The read that brought descriptors is over: their message has begun, if there is one."""
        if self.exchange.sideband is None or self.state is State.CLOSED:
            return
        arrivals = self.exchange.sideband.incoming()
        try:
            arrivals.check_unclaimed(between_frames=self._decoder.between_frames)
        except ProtocolError as error:
            self._protocol_failed(error)

    def writable(self) -> None:
        """The transport has taken what it kept."""
        self.exchange.outbox.written()

    def _noise(self, data: bytes) -> None:
        self.noise_received += len(data)
        if not self.on_noise and self.noise_received - len(data) < self.settings.limits.max_noise:
            # Beyond that it is only counted: a program that prints must not fill the log.
            logger.warning("noise on %s: %r", self.transport.description, data[:MAX_LOGGED])
        size = self.settings.limits.max_noise
        for start in range(0, len(data), size):
            for callback in self.on_noise:
                self._call_back(callback, data[start : start + size])

    def _receive_goodbye(self, message: list[Any]) -> None:
        _, last_id, code, reason = message[:4]
        self._clean = True
        if code != GoodbyeCode.NORMAL:
            self._clean = False
            self._fail(SessionClosed(f"the other side ended the session: {reason}"))
            return
        self._refusal = "the other side is closing the session"
        self.exchange.refuse_after(last_id, self.ended)

    # -- ending ----------------------------------------------------------------------------

    def ended(self) -> IPCError:
        """Why nothing more can be asked."""
        if self._refusal is not None and self.state is not State.CLOSED:
            return RequestRefused(self._refusal)
        return self._make_end()

    def _make_end(self) -> SessionClosed:
        """The end of the session as an exception of one's own: each carries its own traceback."""
        end = self._end
        if end is None:
            return SessionClosed("the session is not open")
        mine = copy.copy(end)
        mine.__cause__ = end.__cause__
        return mine

    def end_of_input(self) -> None:
        """The other side sends no more: finish what runs, flush, go."""
        cut = self._decoder.finish()
        if self.companion is not None or self.state is State.HANDSHAKE or cut:
            self._fail(self._lost_reason(None, cut))
            return
        if not self._clean:
            self._end = PeerDied("the other side sends no more and said no goodbye")
            self._left_calls = bool(self.exchange.calls.pending)
            self.exchange.lose_answers(self._make_end)
        self._begin_closing(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        if error is not None and isinstance(self._end, PeerDied):
            self._clean = False
        if self.state is not State.CLOSED:
            self._fail(self._lost_reason(error, self._decoder.finish()))

    def companion_exited(self) -> None:
        """The process at the other end is dead: what it sent before is still read."""
        if self._ending is None:
            self.transport.read_available()
            self._fail(self._lost_reason(None, self._decoder.finish()))

    async def close(self) -> None:
        """End the session in good order; see `asyncipc.Session.aclose`."""
        if self.state is State.HANDSHAKE:
            self._fail(SessionClosed("this side closed the session"))
        else:
            self.begin_close()
        await asyncio.shield(self.closed)

    def begin_close(self) -> None:
        """`close` for who must not wait for it: a handler that the closing waits for."""
        grace = self.settings.timeouts.goodbye
        if self.state is State.CLOSING and self._limit is None:
            # It was the other side that ended its input, and the closing may take its time; now
            # this side wants to go.
            self._limit = self.loop.call_later(grace, self._close_now)
        self._begin_closing(grace)

    def _close_now(self) -> None:
        self._fail(self._end or SessionClosed("this side closed the session"))

    def _begin_closing(self, grace: float | None) -> None:
        if self.state is State.OPEN and self._parting is None:
            self.state = State.CLOSING
            # Not eagerly: a handler that closes its own session has an answer to give first.
            self._closing = asyncio.Task(self._close_gracefully(grace), loop=self.loop)

    async def _close_gracefully(self, grace: float | None) -> None:
        if self._end is None:
            self._end = SessionClosed("this side closed the session")
        self._refusal = None
        self.exchange.stop(self._make_end)
        self.exchange.say_goodbye(GoodbyeCode.NORMAL, "")
        # Who only wanted to ask ends its input and reads on: that is a good end. Who owed an
        # answer has died, though over TCP it looks the same.
        self._clean = not self._left_calls
        try:
            async with asyncio.timeout(grace):
                await self.exchange.drain()
                if self.transport.drops_on_close:
                    self.transport.write_eof()
                    await asyncio.shield(self.closed)
        except TimeoutError:
            logger.debug("%s: the goodbye took too long", self.transport.description)
        finally:
            self._fail(self._end)

    def _lost_reason(self, error: Exception | None, cut: str) -> SessionClosed:
        """What to tell those who wait when the transport has gone."""
        if self._end is not None:
            return self._end
        if self._clean:
            return SessionClosed("the other side closed the session")
        reason = "the other side hung up without a goodbye"
        if self._greeting is not None:
            reason = f"the other side hung up during the handshake{self._greeting.instead}"
        if cut:
            reason += f", {cut}"
        if error is not None:
            reason = f"the connection was lost: {error}"
        lost = PeerDied(reason)
        lost.__cause__ = error
        return lost

    def _protocol_failed(self, error: ProtocolError) -> None:
        self._clean = False  # also where a goodbye came before
        if self._greeting is not None:
            self._greeting.fail(error)
            return
        if self.state is not State.CLOSED:
            self.exchange.say_goodbye(GoodbyeCode.PROTOCOL_ERROR, str(error))
        self._fail_after_goodbye(error)

    def _fail_after_goodbye(self, error: IPCError) -> None:
        """End the session; a goodbye that the transport has not taken yet gets a moment."""
        self._decoder.stop()
        self._verdict = self._verdict or error
        if self.exchange.outbox.empty or self.state is State.CLOSED:
            self._fail(error)
        elif self._parting is None:
            self.exchange.outbox.accepts_calls = False
            self._parting = self.loop.create_task(self._part(error))

    async def _part(self, error: IPCError) -> None:
        try:
            async with asyncio.timeout(PARTING_TIME):
                await self.exchange.outbox.drained()
        except TimeoutError:
            logger.debug("%s: the goodbye could not be sent", self.transport.description)
        finally:
            self._fail(error)

    def _fail(self, error: IPCError) -> None:
        """The end: close the transport, and tell all who wait as soon as the reason is known."""
        if self.state is State.CLOSED or self._ending is not None:
            return
        error = self._verdict or error  # not how the goodbye failed, but what it was to tell
        self._decoder.stop()
        if self._greeting is not None:
            self._greeting.stop()
        self.transport.close()
        end = error
        if not isinstance(end, SessionClosed):
            end = SessionClosed(f"the session was ended: {error}")
            end.__cause__ = error
        if self.companion is None:
            self._tell(end, error)
            self._set_closed()
        else:
            self._ending = self.loop.create_task(
                self._end_with_companion(self.companion, end, error)
            )

    async def _end_with_companion(
        self, companion: Companion, end: SessionClosed, error: IPCError
    ) -> None:
        try:
            if self._end is None:
                end = await companion.obituary(end)
        finally:
            self._tell(end, error)
            try:
                await companion.release()
            finally:
                self._set_closed()

    def _tell(self, end: SessionClosed, error: IPCError) -> None:
        """Wake every waiter with the reason."""
        self._end = end
        self.state = State.CLOSED
        self.exchange.close(self._make_end)
        self._establish(end if isinstance(error, SessionClosed) else error)

    def _set_closed(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        for task in (self._closing, self._parting):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        callbacks, self.on_close = self.on_close, ()
        for callback in callbacks:
            self._call_back(callback, self.close_reason)

    @property
    def close_reason(self) -> SessionClosed | None:
        """Why the session ended; None while it has not, and when it ended in good order."""
        return None if self._clean or self._end is None else self._make_end()

    def _call_back(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            callback(*arguments)
        except (Exception, asyncio.CancelledError):
            logger.exception("a callback of the session on %s failed", self.transport.description)
