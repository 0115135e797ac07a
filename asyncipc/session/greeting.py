"""The time before a session stands: hello, authentication, and what came instead of them.

Takes the frames of the handshake, keeps its time, and says goodbye when no session comes of it.

Layer 2, inside the session. Above: the connection. Below: wire.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

from asyncipc.errors import (
    AuthenticationError,
    HandshakeTimeout,
    IPCError,
    RemoteProtocolError,
    SessionClosed,
)
from asyncipc.session.outbox import Outbox
from asyncipc.session.settings import SessionSettings
from asyncipc.wire.handshake import (
    Agreement,
    Handshake,
    HandshakeRejected,
    Role,
    encode_goodbye,
)
from asyncipc.wire.messages import GoodbyeCode

__all__ = ["Greeting"]

# Of what comes instead of a hello, this much is shown in the error.
MAX_SHOWN: Final = 300


class Greeting:
    """The handshake of one session; the `FrameSink` until it stands.

    :param features: what this side can do beyond the rest of the protocol
    :param agreed: called with what was settled
    :param failed: called with the reason, once, when no session comes of it
    :param noise: called with bytes between frames
    """

    __slots__ = ("_agreed", "_failed", "_handshake", "_heard", "_noise", "_outbox", "_timer")

    def __init__(
        self,
        role: Role,
        settings: SessionSettings,
        token: bytes | None,
        outbox: Outbox,
        *,
        features: Sequence[str],
        agreed: Callable[[Agreement], None],
        failed: Callable[[IPCError], None],
        noise: Callable[[bytes], None],
    ) -> None:
        self._handshake = Handshake(
            role,
            codec=settings.codec,
            codecs=settings.codecs,
            limits=settings.limits,
            instance=os.urandom(16),
            features=features,
            token=token,
        )
        self._outbox = outbox
        self._agreed = agreed
        self._failed = failed
        self._noise = noise
        self._heard = b""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        """Say hello, if it is this side's turn, and wait ``timeout`` seconds for the session."""
        self._timer = loop.call_later(timeout, self._time_out, timeout)
        for envelope in self._handshake.start():
            self._outbox.send_raw(envelope)

    def stop(self) -> None:
        """It is decided, one way or the other."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def instead(self) -> str:
        """What came instead of a hello, for error messages; empty if nothing did."""
        return f"; instead of a hello it sent {self._heard[:MAX_SHOWN]!r}" if self._heard else ""

    def envelope(self, data: memoryview, attached: int) -> bool:
        """See `asyncipc.wire.framing.FrameSink`."""
        if attached:
            raise RemoteProtocolError(
                f"the other side attached {attached} bytes before the session stood"
            )
        try:
            for reply in self._handshake.receive(bytes(data)):
                self._outbox.send_raw(reply)
        except IPCError as error:
            self.fail(error)
            return True
        if self._handshake.agreement is not None:
            self._agreed(self._handshake.agreement)
        return True

    def attached(self, data: memoryview) -> None:
        """See `asyncipc.wire.framing.FrameSink`."""
        raise AssertionError(f"`envelope` let a frame with {len(data)} attached bytes pass")

    def noise(self, data: bytes) -> None:
        """See `asyncipc.wire.framing.FrameSink`."""
        self._heard = (self._heard + data)[: MAX_SHOWN + 1]
        self._noise(data)

    def fail(self, error: IPCError) -> None:
        """No session comes of it: tell the other side, if it speaks the protocol at all."""
        code = GoodbyeCode.PROTOCOL_ERROR
        if isinstance(error, HandshakeRejected):
            code = error.code
        elif isinstance(error, AuthenticationError):
            code = GoodbyeCode.AUTHENTICATION
        if self._handshake.heard and not isinstance(error, SessionClosed):
            self._outbox.send_raw(encode_goodbye(code, str(error)))
        self._failed(error)

    def _time_out(self, timeout: float) -> None:
        what = "the handshake was not finished" if self._handshake.heard else "no hello came"
        self.fail(HandshakeTimeout(f"{what} within {timeout:g} s{self.instead}"))
