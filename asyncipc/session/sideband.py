"""What one session sends and receives beside its stream: each half is made when it is first used.

Most sessions could pass descriptors and shared memory, and never do; many of them are idle, and
what an idle session costs is counted.

Layer 2, inside the session. Above: the exchange, the outbox, the router. Below: placing, arrivals.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from asyncipc.config import Limits
from asyncipc.session.arrivals import Arrivals
from asyncipc.session.placing import Placing
from asyncipc.transport.base import DescriptorCarrier

__all__ = ["Messenger", "Sideband"]


class Messenger(Protocol):
    """Sends the messages by which the two sides speak about what goes beside the stream."""

    def send(self, message: list[Any]) -> None:
        """Send one in the stream."""

    def announce(self, message: list[Any]) -> Callable[[], bool]:
        """Send one with a descriptor, in a lane of its own.

        :returns: tells whether it has left
        """
        ...


class Sideband:
    """What the two sides have agreed to carry beside the stream.

    :ivar limits: of this side
    :ivar max_descriptors: of the other side, for one message
    :param shares: shared memory, and not only descriptors
    :ivar placing: the outgoing half, if it was used
    :ivar arrivals: the incoming half, if it was used
    """

    __slots__ = (
        "_is_closed",
        "_loop",
        "_messenger",
        "_shares",
        "_transport",
        "arrivals",
        "limits",
        "max_descriptors",
        "placing",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: DescriptorCarrier,
        messenger: Messenger,
        limits: Limits,
        max_descriptors: int,
        *,
        shares: bool,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._messenger = messenger
        self.limits: Limits = limits
        self.max_descriptors: int = max_descriptors
        self._shares = shares
        self._is_closed = False
        self.placing: Placing | None = None
        self.arrivals: Arrivals | None = None

    def outgoing(self) -> Placing:
        """The outgoing half."""
        if self.placing is None:
            self.placing = Placing(
                self.limits,
                self.max_descriptors,
                shares=self._shares,
                send=self._messenger.send,
                announce=self._messenger.announce,
            )
            if self._is_closed:
                self.placing.close()
        return self.placing

    def incoming(self) -> Arrivals:
        """The incoming half."""
        if self.arrivals is None:
            self.arrivals = Arrivals(
                self._loop,
                self.limits.max_descriptors,
                max_mapped=self.limits.arena,
                shares=self._shares,
                accept=self._transport.accept_descriptors,
                send=self._messenger.send,
            )
        return self.arrivals

    def close_outgoing(self) -> None:
        """The session is over: nothing is sent any more."""
        self._is_closed = True
        if self.placing is not None:
            self.placing.close()

    def close_incoming(self) -> None:
        """The session is over: nothing comes any more."""
        if self.arrivals is not None:
            self.arrivals.close()
