"""What the messages of items in one batch cost their sender, as far as the receiver can tell.

The sender counts the bytes of each. Here only the size of the whole is known: the most that any of
them cost. The least that they cost together is known where nothing else is in the batch.

Layer 2, inside the session. Above: the router. Below: the streams, wire.
"""

from collections.abc import Sequence
from typing import Any, Final

from asyncipc.session.item_sender import SMALLEST_COST
from asyncipc.session.streams import Streams
from asyncipc.wire.messages import ITEMS

__all__ = ["BatchCosts"]

# Bytes that a codec may add for each message that it joins to others, and for the whole.
JOINING: Final = 16


class BatchCosts:
    """The costs of the messages of items in one batch.

    :param batch: its messages, which were not looked at
    :param size: of its envelope, in bytes
    """

    __slots__ = ("_beyond", "_count", "_missing", "_seen", "_size")

    def __init__(self, batch: Sequence[list[Any]], size: int) -> None:
        self._size = size
        self._seen: list[int] = []
        self._count = self._missing = len(batch)
        # What they all cost beyond the least of each, where nothing else is in the batch.
        self._beyond = 0
        if all(message[0] == ITEMS and message[1:2] == batch[0][1:2] for message in batch):
            self._beyond = max(0, size - JOINING - len(batch) * (JOINING + SMALLEST_COST))

    def receive(self, message: list[Any], streams: Streams) -> None:
        """Hand over the next message of items.

        :raises RemoteProtocolError: see `Streams.receive`
        """
        wire_id = message[1]
        if self._beyond:
            streams.receive(message, self._size, SMALLEST_COST, None)
            self._missing -= 1
            if not self._missing:
                streams.received_together(wire_id, self._count, self._beyond)
            return
        doubt = 0
        if wire_id not in self._seen:  # the first of a stream stands for the doubt about all
            self._seen.append(wire_id)
            doubt = self._size
        streams.receive(message, self._size, SMALLEST_COST, doubt)
