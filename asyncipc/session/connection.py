"""The life of a session: greeting, open, closing, closed.

It opens the session, takes bytes from the transport, and has them looked through.

Layer 2, inside the session. Above: `asyncipc.session.session`, the public face. Below: its ending,
wire, transport.
"""

import logging
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Final

from asyncipc.errors import LocalProtocolError, ProtocolError
from asyncipc.session.ending import Ending, State
from asyncipc.session.exchange import Exchange
from asyncipc.session.greeting import Greeting
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.settings import SessionSettings
from asyncipc.transport.base import Transport
from asyncipc.wire.framing import FrameDecoder
from asyncipc.wire.handshake import HANDSHAKE_MAX_FRAME, Agreement, Role

__all__ = ["Connection"]

logger: logging.Logger = logging.getLogger("asyncipc")

# Of noise that nobody asked for, this much is logged.
MAX_LOGGED: Final = 300

# The bytes that can begin a hello: a MessagePack array of up to 15 elements.
HELLO_LEADING: Final = bytes(range(0x91, 0xA0))


class Connection(Ending):
    """A session without its public face; implements the transport's ``Receiver``.

    How it ends is the business of what it derives from.

    :param session: the public face, given to handlers
    """

    __slots__ = ("_on_open", "get_buffer", "noise_received", "on_noise")

    bytes_received: int  # counted here

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
        super().__init__(transport, settings)
        self.exchange: Exchange = Exchange(
            self.loop, transport, settings, handlers, session, ended=self.ended
        )
        self.on_noise: tuple[Callable[[bytes], object], ...] = ()
        self.noise_received: int = 0
        self._greeting = greeting = Greeting(
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
            greeting,
            settings.read_buffer,
            max_frame=HANDSHAKE_MAX_FRAME,
            leading=HELLO_LEADING,
            tolerates_noise=transport.tolerates_noise,
        )
        self.get_buffer: Callable[[], memoryview] = self._decoder.get_buffer
        self._on_open: Callable[[], object] | None = None

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
            self.call_back(on_open)
        self._establish(None)

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
                self.call_back(callback, data[start : start + size])
