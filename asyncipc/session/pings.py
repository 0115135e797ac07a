"""Pings: is the other side alive, and how far away. Never held back by anything.

Layer 2, inside the session.
"""

import asyncio
import time
from collections.abc import Callable

from asyncipc.errors import RequestTimeout
from asyncipc.session.outbox import Outbox
from asyncipc.wire.codec import Codec
from asyncipc.wire.messages import PING, PONG

__all__ = ["Pings"]


class Pings:
    """The pings of one session, in both directions."""

    __slots__ = ("_codec", "_loop", "_next", "_outbox", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._waiting: dict[int, asyncio.Future[None]] | None = None  # made for the first ping
        self._next = 0

    def open(self, codec: Codec) -> None:
        """Begin to send."""
        self._codec = codec

    async def ping(self, timeout: float | None) -> float:
        """Ask for a sign of life; see `asyncipc.Session.ping`."""
        self._next += 1
        token = self._next
        if self._waiting is None:
            self._waiting = {}
        self._waiting[token] = pong = self._loop.create_future()
        started = time.perf_counter()
        self._outbox.put_now(self._codec.encode([PING, token], []))
        try:
            async with asyncio.timeout(timeout):
                await pong
        except TimeoutError as error:
            raise RequestTimeout(f"no answer to a ping within {timeout:g} s") from error
        finally:
            self._waiting.pop(token, None)
        return time.perf_counter() - started

    def receive_ping(self, token: int) -> None:
        """The other side asks."""
        self._outbox.respond(self._codec.encode([PONG, token], []))

    def receive_pong(self, token: int) -> None:
        """The other side answers; late, it is dropped."""
        pong = self._waiting.get(token) if self._waiting else None
        if pong is not None and not pong.done():
            pong.set_result(None)

    def close(self, make_error: Callable[[], Exception]) -> None:
        """The session is over."""
        for pong in (self._waiting or {}).values():
            if not pong.done():
                pong.set_exception(make_error())
