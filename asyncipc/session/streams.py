"""The streams of one session: which call has which, and who gets what comes for them.

A call has at most two, one in each direction. In the messages that come, both go by the same id,
that of the call: items and their end are for its receiver, credit is for its sender.

Layer 2, inside the session. Above: the router; the public ends. Below: the two ends of a stream.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from asyncipc.errors import DecodeError, RemoteProtocolError
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.item_sender import CallOver, ItemSender
from asyncipc.session.outbox import Outbox
from asyncipc.wire.codec import Codec
from asyncipc.wire.decoding import BrokenMessage

__all__ = ["Streams"]


# Most sessions have no streams, and there may be thousands of sessions.
NO_SENDERS: Final[dict[int, ItemSender]] = {}
NO_RECEIVERS: Final[dict[int, ItemReceiver]] = {}


class KnownCalls(Protocol):
    """What is known of the calls of a session, in both directions."""

    def may_come_late(self, wire_id: int) -> bool:
        """Whether a call was made and is over, so that what comes for it only crossed its end."""
        ...


class Streams:
    """The streams of one session.

    :param granted: bytes of items that the other side may have under way in each stream
    :param calls: knows which calls there are
    :ivar window: bytes of items that this side may have under way in each stream
    :ivar items_sent: items that were sent
    :ivar items_received: items that came
    :ivar stalls: how often a sender had to wait for credit
    """

    __slots__ = (
        "_calls",
        "_receivers",
        "_senders",
        "_waiting_for_room",
        "codec",
        "granted",
        "items_received",
        "items_sent",
        "loop",
        "outbox",
        "stalls",
        "window",
    )

    codec: Codec

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        granted: int,
        calls: KnownCalls,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.outbox: Outbox = outbox
        self.granted: int = granted
        self.window: int = 0
        self._calls = calls
        self._senders: dict[int, ItemSender] = NO_SENDERS
        self._receivers: dict[int, ItemReceiver] = NO_RECEIVERS
        self._waiting_for_room: tuple[ItemSender, ...] = ()
        self.items_sent: int = 0
        self.items_received: int = 0
        self.stalls: int = 0

    def open(self, codec: Codec, window: int) -> None:
        """Begin, with the window that the other side grants."""
        self.codec = codec
        self.window = window

    # -- which there are -------------------------------------------------------------------

    def add_sender(self, wire_id: int) -> ItemSender:
        """The sending end for a call.

        :param wire_id: the call, as it stands in messages of the other side
        """
        if self._senders is NO_SENDERS:
            self._senders = {}
        sender = self._senders[wire_id] = ItemSender(self, wire_id ^ 1)
        return sender

    def add_receiver(self, wire_id: int, broken: Callable[[DecodeError], None]) -> ItemReceiver:
        """The receiving end for a call.

        :param wire_id: the call, as it stands in messages of the other side
        :param broken: called when items came that cannot be understood here
        """
        if self._receivers is NO_RECEIVERS:
            self._receivers = {}
        receiver = self._receivers[wire_id] = ItemReceiver(self, wire_id ^ 1, broken)
        return receiver

    def remove(self, wire_id: int) -> None:
        """A call is over: what still comes for it is late."""
        self._senders.pop(wire_id, None)
        self._receivers.pop(wire_id, None)

    def __len__(self) -> int:
        return len(self._senders.keys() | self._receivers.keys())

    # -- what comes ------------------------------------------------------------------------

    def receive(
        self,
        message: list[Any],
        most: int,
        least: int,
        doubt: int | None,
        drop: Callable[[], None] | None = None,
    ) -> None:
        """Items came; see `ItemReceiver.receive`."""
        wire_id = message[1]
        receiver = self._receivers.get(wire_id)
        if receiver is None:
            self._check_late(wire_id, "items")
            if drop is not None:
                drop()
        elif isinstance(message, BrokenMessage):
            receiver.broken(message.error)
        else:
            values = message[2]
            self.items_received += len(values)
            receiver.receive(values, most, least, doubt, drop)

    def received_together(self, wire_id: int, count: int, beyond: int) -> None:
        """See `ItemReceiver.received_together`."""
        receiver = self._receivers.get(wire_id)
        if receiver is not None:
            receiver.received_together(count, beyond)

    def receive_end(self, wire_id: int) -> None:
        """The end of the items of a call came."""
        receiver = self._receivers.get(wire_id)
        if receiver is None:
            self._check_late(wire_id, "the end of items")
        else:
            receiver.end()

    def credited(self, wire_id: int, count: int) -> None:
        """The other side has finished with so many messages of items."""
        sender = self._senders.get(wire_id)
        if sender is None:
            self._check_late(wire_id, "credit for items")
        else:
            sender.credited(count)

    def stopped(self, wire_id: int) -> None:
        """The other side takes no more items of a call; late or unasked for, that is ignored."""
        sender = self._senders.get(wire_id)
        if sender is not None:
            sender.close(CallOver())
            sender.retract()

    def _check_late(self, wire_id: int, what: str) -> None:
        if not self._calls.may_come_late(wire_id):
            raise RemoteProtocolError(
                f"the other side sent {what} for {wire_id}, which is no call that has such a stream"
            )

    # -- the session -----------------------------------------------------------------------

    def wait_for_room(self, sender: ItemSender) -> None:
        """Wake a sender when the outbox is no longer full."""
        self._waiting_for_room += (sender,)

    def room_again(self) -> None:
        """The outbox is no longer full."""
        waiting, self._waiting_for_room = self._waiting_for_room, ()
        for sender in waiting:
            sender.wake()

    def close(self, make_error: Callable[[], Exception]) -> None:
        """Nothing more comes from the other side, neither items nor credit."""
        for receiver in self._receivers.values():
            if not receiver.over:
                receiver.finish(make_error())
        for sender in self._senders.values():
            sender.close(make_error())
