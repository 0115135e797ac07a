"""What the messages of items in one batch cost their sender, as far as the receiver can tell.

The sender counts the bytes of each. Here only the size of the whole is known: the most that any of
them cost. The least that they cost together is known where nothing else is in the batch.

Layer 2, inside the session. Above: the router. Below: wire.
"""

from collections.abc import Sequence
from typing import Any, Final

from asyncipc.session.item_sender import SMALLEST_COST
from asyncipc.wire.messages import ITEMS

__all__ = ["BatchCosts"]

# Bytes that a codec may add for each message that it joins to others, and for the whole.
JOINING: Final = 16


class BatchCosts:
    """The costs of the messages of items in one batch.

    :param batch: its messages, which were not looked at
    :param size: of its envelope, in bytes
    """

    __slots__ = ("_is_one_stream", "_least", "_seen", "_size")

    def __init__(self, batch: Sequence[list[Any]], size: int) -> None:
        self._size = size
        self._seen: list[int] = []
        self._is_one_stream = all(
            message[0] == ITEMS and message[1:2] == batch[0][1:2] for message in batch
        )
        others = len(batch) - 1
        self._least = size - (others + 2) * JOINING - others * SMALLEST_COST

    def next(self, wire_id: int) -> tuple[int, int, int | None]:
        """Of the next message of a stream: what `ItemReceiver.receive` wants to know.

        The first of a stream stands for those behind it, whose credit comes later.
        """
        is_first = wire_id not in self._seen
        if is_first:
            self._seen.append(wire_id)
        if self._is_one_stream:
            return self._size, self._least if is_first else SMALLEST_COST, None
        return self._size, SMALLEST_COST, self._size if is_first else 0
