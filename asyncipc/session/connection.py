"""The engine of a session: one transport, one decoder, and the way of each message.

Owns the life of the session: handshake, open, closing, closed. It takes bytes from the transport,
frames from the decoder and messages from the codec, and hands each message to the part that it
belongs to; it turns every end, wished for or not, into one error for all who wait.

Layer 2. Above: `asyncipc.session.session`, the public face. Below: wire, transport.
"""

import asyncio
import copy
import enum
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from asyncipc.errors import (
    AuthenticationError,
    HandshakeTimeout,
    IPCError,
    PeerDied,
    ProtocolError,
    RemoteProtocolError,
    RequestRefused,
    SessionClosed,
)
from asyncipc.session.calls import Calls
from asyncipc.session.dispatch import Dispatch
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.notifications import NotificationReceiver, NotificationSender
from asyncipc.session.outbox import Outbox
from asyncipc.session.pings import Pings
from asyncipc.session.router import Router
from asyncipc.session.settings import SessionSettings
from asyncipc.transport.base import Transport
from asyncipc.wire import messages
from asyncipc.wire.framing import FrameDecoder, frame_header
from asyncipc.wire.handshake import (
    HANDSHAKE_MAX_FRAME,
    Agreement,
    Handshake,
    HandshakeRejected,
    Role,
    encode_goodbye,
)
from asyncipc.wire.messages import GoodbyeCode

__all__ = ["Companion", "Connection"]

logger = logging.getLogger("asyncipc")

# Of what comes instead of a hello, this much is shown in the error.
MAX_SHOWN = 300

# The bytes that can begin a hello: a MessagePack array of up to 15 elements.
HELLO_LEADING = bytes(range(0x91, 0xA0))


class Companion(Protocol):
    """What lives and dies with a session: a child process."""

    async def obituary(self, error: SessionClosed) -> SessionClosed:
        """Explain the end of the session by what is known of the companion. Bounded in time."""

    async def release(self) -> None:
        """End the companion. Bounded in time; called once, when the session is closed."""


class State(enum.Enum):
    """The life of a session, in this order."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Connection:
    """A session without its public face; implements the transport's ``Receiver``.

    :param session: the public face, given to handlers
    """

    __slots__ = (
        "_clean",
        "_closing",
        "_codec",
        "_decoder",
        "_end",
        "_ending",
        "_handshake",
        "_heard",
        "_refusal",
        "_router",
        "_timer",
        "bytes_received",
        "calls",
        "closed",
        "companion",
        "dispatch",
        "established",
        "get_buffer",
        "incoming_notifications",
        "loop",
        "noise_received",
        "notifications",
        "on_close",
        "on_noise",
        "outbox",
        "pings",
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
        limits = settings.limits
        self.loop = loop
        self.transport = transport
        self.settings = settings
        self.state = State.HANDSHAKE
        self.companion: Companion | None = None
        self.outbox = Outbox(loop, transport, limits.outbox, self._room_again)
        self.calls = Calls(
            loop,
            self.outbox,
            session,
            limits=limits,
            timeout=settings.timeout,
            request_ids=settings.request_ids,
            ended=self.ended,
        )
        self.dispatch = Dispatch(
            loop,
            self.outbox,
            session,
            handlers,
            limits=limits,
            tracebacks=settings.tracebacks,
        )
        self.notifications = NotificationSender(loop, self.outbox, self.ended)
        self.incoming_notifications = NotificationReceiver(
            self.dispatch, self.outbox, handlers, limits, self.dispatch.set_idle
        )
        self.dispatch.also_running = self.incoming_notifications.running
        self.pings = Pings(loop, self.outbox)
        self.established: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.on_close: list[Callable[[SessionClosed | None], object]] = []
        self.on_noise: list[Callable[[bytes], object]] = []
        self.bytes_received = 0
        self.noise_received = 0
        self._handshake: Handshake | None = Handshake(
            role,
            codec=settings.codec.name,
            codecs=settings.codecs,
            limits=limits,
            token=token,
        )
        self._decoder = FrameDecoder(
            self,
            settings.read_buffer,
            max_frame=HANDSHAKE_MAX_FRAME,
            leading=HELLO_LEADING,
            tolerates_noise=transport.tolerates_noise,
        )
        self.get_buffer = self._decoder.get_buffer
        self._router: Router | None = None  # when the session stands
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._end: SessionClosed | None = None
        self._refusal: str | None = None  # the other side says goodbye
        self._clean = False  # a goodbye was sent or came
        self._heard = b""  # what came instead of a hello

    # -- opening ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with the handshake; `established` tells its outcome."""
        assert self._handshake is not None
        timeout = self.settings.timeouts.handshake
        self._timer = self.loop.call_later(timeout, self._handshake_timed_out, timeout)
        self.transport.start(self)
        self._write_raw(self._handshake.start())

    def _receive_handshake(self, envelope: bytes) -> None:
        assert self._handshake is not None
        try:
            self._write_raw(self._handshake.receive(envelope))
        except IPCError as error:
            self._handshake_failed(error)
            return
        agreement = self._handshake.agreement
        if agreement is not None:
            self._handshake = None
            self._open(agreement)

    def _open(self, agreement: Agreement) -> None:
        if self._timer is not None:
            self._timer.cancel()
        limits = agreement.limits
        codec = self.settings.codecs[agreement.codec]
        self._codec = codec
        self._router = Router(
            codec,
            self.calls,
            self.dispatch,
            self.notifications,
            self.incoming_notifications,
            self.pings,
            max_message=self.settings.limits.max_message,
            tolerates_noise=self.transport.tolerates_noise,
            goodbye=self._receive_goodbye,
            noise=self.noise,
        )
        self._decoder.max_frame = self.settings.limits.max_frame
        self._decoder.leading = codec.leading
        self._decoder.sink = self._router
        self.dispatch.open(codec)
        self.incoming_notifications.open(codec)
        self.pings.open(codec)
        self.calls.open(codec, limits.max_requests)
        self.notifications.open(codec, limits.notification_credit)
        self.state = State.OPEN
        self.outbox.open(
            encode=lambda message: codec.encode(message, []),
            join=codec.join,
            max_frame=limits.max_frame,
            max_message=limits.max_message,
        )
        if not self.established.done():
            self.established.set_result(None)

    def _write_raw(self, envelopes: list[bytes]) -> None:
        """Send before the session stands. It is little, and the transport takes it whole."""
        for envelope in envelopes:
            self.transport.write((frame_header(len(envelope)) + envelope,))

    def _handshake_timed_out(self, timeout: float) -> None:
        what = "the other side did not finish the handshake"
        if not self._heard_hello:
            what = "no hello came"
        if self._heard:
            what += f"; instead it sent {self._heard[:MAX_SHOWN]!r}"
        self._handshake_failed(HandshakeTimeout(f"{what} within {timeout:g} s"))

    @property
    def _heard_hello(self) -> bool:
        return self._handshake is not None and self._handshake.heard

    def _handshake_failed(self, error: IPCError) -> None:
        code = GoodbyeCode.PROTOCOL_ERROR
        if isinstance(error, HandshakeRejected):
            code = error.code
        elif isinstance(error, AuthenticationError):
            code = GoodbyeCode.AUTHENTICATION
        if self._heard_hello and not isinstance(error, SessionClosed):
            self._write_raw([encode_goodbye(code, str(error))])
        self._fail(error)

    # -- receiving -------------------------------------------------------------------------

    def buffer_updated(self, count: int) -> None:
        """Bytes came: look through them, and answer in one go."""
        self.bytes_received += count
        self.dispatch.now = monotonic()
        outbox = self.outbox
        outbox.corked = True
        try:
            self._decoder.advance(count)
        except ProtocolError as error:
            self._protocol_failed(error)
        outbox.uncork()

    def envelope(self, data: memoryview, attached: int) -> bool:
        """An envelope of the handshake came; see `asyncipc.wire.framing.FrameSink`."""
        if attached:
            raise RemoteProtocolError(
                f"the other side attached {attached} bytes before the session stood"
            )
        self._receive_handshake(bytes(data))
        return True

    def attached(self, data: memoryview) -> None:
        """Bytes of a transfer came: never before the session stands."""
        raise AssertionError("`envelope` takes none")

    def noise(self, data: bytes) -> None:
        """Bytes between frames came; see `asyncipc.wire.framing.FrameSink`."""
        self.noise_received += len(data)
        if self.state is State.HANDSHAKE:
            self._heard = (self._heard + data)[: MAX_SHOWN + 1]
        limit = self.settings.limits.max_noise
        if not self.on_noise:
            logger.warning("noise on %s: %r", self.transport.description, data[:MAX_SHOWN])
        for start in range(0, len(data), limit):
            for callback in list(self.on_noise):
                self._call_back(callback, data[start : start + limit])

    def writable(self) -> None:
        """The transport has taken what it kept."""
        self.outbox.written()

    def _receive_goodbye(self, message: list[Any]) -> None:
        _, last_id, code, reason = message[:4]
        self._clean = True
        if code != GoodbyeCode.NORMAL:
            self._fail(SessionClosed(f"the other side ended the session: {reason}"))
            return
        self._refusal = "the other side is closing the session"
        self.calls.refuse_after(last_id)
        self.notifications.gate.fail(self._make_refusal)
        self.calls.update_gates()

    # -- ending ----------------------------------------------------------------------------

    def ended(self) -> IPCError | None:
        """Why nothing more can be asked, or None while it can."""
        if self.state is State.OPEN and self._refusal is None:
            return None
        return self._make_end() if self._refusal is None else self._make_refusal()

    def _make_refusal(self) -> IPCError:
        if self.state is State.CLOSED:
            return self._make_end()
        return RequestRefused(self._refusal or "the session is closing")

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
            self._end = SessionClosed("the other side sends no more, so no answer can come")
            self.calls.close(self._make_end)
            self.pings.close(self._make_end)
            self.notifications.gate.fail(self._make_end)
        self._begin_closing(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The transport is gone."""
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
        elif self.state is State.OPEN:
            self._begin_closing(self.settings.timeouts.goodbye)
        await asyncio.shield(self.closed)

    def begin_close(self) -> None:
        """`close` for who must not wait for it: a handler that the closing waits for."""
        if self.state is State.OPEN:
            self._begin_closing(self.settings.timeouts.goodbye)

    def _begin_closing(self, grace: float | None) -> None:
        if self.state is not State.OPEN:
            return
        self.state = State.CLOSING
        self._closing = self.loop.create_task(self._close_gracefully(grace))

    async def _close_gracefully(self, grace: float | None) -> None:
        if self._end is None:
            self._end = SessionClosed("this side closed the session")
        self.dispatch.refusal = "the session is closing"
        self.calls.abandon_all(self._make_end)
        self.notifications.gate.fail(self._make_end)
        goodbye = [messages.GOODBYE, self.dispatch.last_accepted, int(GoodbyeCode.NORMAL), ""]
        self.outbox.put_now(self._codec.encode(goodbye, []))
        self._clean = True
        try:
            async with asyncio.timeout(grace):
                await self.dispatch.drain()
                await self.outbox.drained()
        except TimeoutError:
            logger.debug("%s: the goodbye took too long", self.transport.description)
        finally:
            self._fail(self._end)

    def _lost_reason(self, error: Exception | None, cut: str) -> SessionClosed:
        """What to tell those who wait when the transport has gone."""
        if self._end is not None:
            return self._end
        if self._clean and error is None:
            return SessionClosed("the other side closed the session")
        reason = "the other side hung up without a goodbye"
        if self.state is State.HANDSHAKE:
            reason = "the other side hung up during the handshake"
            if self._heard:
                reason += f"; instead of a hello it had sent {self._heard[:MAX_SHOWN]!r}"
        if cut:
            reason += f", {cut}"
        if error is not None:
            reason = f"the connection was lost: {error}"
        lost = PeerDied(reason)
        lost.__cause__ = error
        return lost

    def _protocol_failed(self, error: ProtocolError) -> None:
        if self.state is State.HANDSHAKE:
            self._handshake_failed(error)
            return
        if self.state is not State.CLOSED:
            goodbye = [
                messages.GOODBYE,
                self.dispatch.last_accepted,
                int(GoodbyeCode.PROTOCOL_ERROR),
                str(error),
            ]
            self.outbox.put_now(self._codec.encode(goodbye, []))
        self._fail(error)

    def _fail(self, error: IPCError) -> None:
        """The end: close the transport now, and tell all who wait as soon as the reason is known."""
        if self.state is State.CLOSED or self._ending is not None:
            return
        self._decoder.stop()
        if self._timer is not None:
            self._timer.cancel()
        self.transport.close()
        end = error
        if not isinstance(end, SessionClosed):
            end = SessionClosed(f"the session was ended: {error}")
            end.__cause__ = error
        if self.companion is None:
            self._tell(end, error)
            self._set_closed()
        else:
            self._ending = self.loop.create_task(self._finish_with_companion(end, error))

    async def _finish_with_companion(self, end: SessionClosed, error: IPCError) -> None:
        companion = self.companion
        assert companion is not None
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
        self.calls.close(self._make_end)
        self.notifications.gate.fail(self._make_end)
        self.pings.close(self._make_end)
        self.dispatch.close()
        self.incoming_notifications.close()
        self.outbox.close()
        if not self.established.done():
            self.established.set_exception(end if isinstance(error, SessionClosed) else error)
            self.established.exception()  # somebody may have stopped waiting for it

    def _set_closed(self) -> None:
        if self._closing is not None and self._closing is not asyncio.current_task():
            self._closing.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        callbacks, self.on_close = self.on_close, []
        for callback in callbacks:
            self._call_back(callback, self.close_reason)

    @property
    def ignored(self) -> int:
        """Messages of unknown kinds that were skipped."""
        return self._router.ignored if self._router is not None else 0

    @property
    def close_reason(self) -> SessionClosed | None:
        """Why the session ended; None while it has not, and when it ended in good order."""
        return None if self._clean or self._end is None else self._make_end()

    def _call_back(self, callback: Callable[[Any], object], argument: Any) -> None:
        try:
            callback(argument)
        except Exception:
            logger.exception("a callback of the session on %s failed", self.transport.description)

    def _room_again(self) -> None:
        self.dispatch.room_again()
        self.calls.update_gates()
        self.notifications.gate.update()
