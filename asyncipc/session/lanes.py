"""Large messages on their way, and what stands behind them: lanes, turns, and when one may begin.

Layer 2, inside the session. Above: the outbox. Below: wire.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from asyncipc.session.placing import Cargo, Placing
from asyncipc.transport.base import Buffer
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.framing import frame_header
from asyncipc.wire.messages import BEGIN, PART
from asyncipc.wire.transfers import MAX_TRANSFERS, Outgoing

__all__ = ["Lanes", "Transfer"]

# Bytes of one part. Measured: smaller parts cost bulk throughput, larger ones make a ping wait.
PART_SIZE: Final = 256 * 1024


class Transfer:
    """A large message in the outbox.

    :ivar number: what it goes by on the wire; 0 until its first part leaves
    :ivar done: called when it has left or was dropped
    :ivar cargo: what goes beside it
    :ivar descriptors: how many of that are file descriptors
    :ivar retracted: it was dropped, but its turn to leave its lane has not come
    """

    __slots__ = ("_callbacks", "cargo", "descriptors", "lane", "number", "outgoing", "retracted")

    def __init__(self, lane: int, segments: Sequence[Buffer], cargo: Cargo | None) -> None:
        self.lane: int = lane
        self.outgoing: Outgoing = Outgoing(segments)
        self.number: int = 0
        self._callbacks: list[Callable[[], object]] = []
        self.cargo: Cargo | None = cargo
        self.descriptors: int = 0 if cargo is None else len(cargo.descriptors)
        self.retracted: bool = False

    def share_some(self, placing: Placing | None) -> tuple[int, list[int] | None]:
        """Copy the next bytes that go through shared memory, if any do.

        :returns: how many; and where they are, if they are the next part of the transfer
        """
        if placing is None:
            return 0, None
        if self.number:
            return placing.carry(self.outgoing)
        return (0 if self.cargo is None else self.cargo.copy_some()), None

    def end(self) -> None:
        """It has left, or was dropped: nobody needs what belongs to it any longer."""
        if self.cargo is not None:
            self.cargo.close(begun=self.number > 0)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Call back when it has left, or was dropped."""
        self._callbacks.append(callback)


class Lanes(dict[int, deque[bytes | Transfer]]):
    """The lanes in which a transfer is under way or waits, in the order of their turns.

    First in each stands a transfer, behind it what must not pass it: messages and transfers. A
    lane without a transfer is not here. This is a dict, so that the outbox learns at no cost that
    nothing stands in the way of a message, which is nearly always.
    """

    __slots__ = ("_begun_size", "_last_number")

    def __init__(self) -> None:
        super().__init__()
        self._last_number = 0
        self._begun_size = 0  # bytes of the transfers that have begun, what has left included

    def add(self, transfer: Transfer) -> None:
        """Put a transfer at the end of its lane."""
        line = self.get(transfer.lane)
        if line is None:
            self[transfer.lane] = deque((transfer,))
        else:
            line.append(transfer)

    def next_transfer(self, max_message: int) -> Transfer | None:
        """The transfer that may send a part now: the lanes take turns.

        One is begun only while the other side, which takes messages of ``max_message`` bytes, can
        hold it beside those already begun, and takes what goes beside it. None: all that there are
        wait for the latter.
        """
        for lane in list(self):
            line = self[lane] = self.pop(lane)  # to the end: others come first now
            transfer = _first(line)
            if transfer.number or self._may_begin(transfer, max_message):
                return transfer
        return None

    def begin(self, transfer: Transfer) -> int:
        """The number of a transfer whose first part leaves."""
        self._last_number += 1
        self._begun_size += transfer.outgoing.size
        transfer.number = self._last_number
        return transfer.number

    def next_frame(
        self,
        transfer: Transfer,
        region: list[int] | None,
        encode: Callable[[list[Any], list[Attachment]], bytes],
        max_frame: int,
    ) -> tuple[list[Buffer], int, Sequence[int]]:
        """The frame with the next part of a transfer.

        :param region: where the part is, if not in the stream
        :returns: the pieces of the frame, how many bytes of the transfer are in it, and the
            descriptors that go with it
        """
        outgoing = transfer.outgoing
        descriptors: Sequence[int] = ()
        if transfer.number:
            head: list[Any] = [PART, transfer.number, *([] if region is None else [region])]
        else:
            head = [BEGIN, self.begin(transfer), outgoing.lengths]
            if transfer.cargo is not None:
                head[2], descriptors = transfer.cargo.lengths, transfer.cargo.leaves()
        envelope = encode(head, [])
        part: list[memoryview] = []
        if region is None:
            part = outgoing.next_part(min(PART_SIZE, max_frame - len(envelope)))
        size = sum(map(len, part))
        return [frame_header(len(envelope), size) + envelope, *part], size, descriptors

    def drop(self, message: bytes, lane: int) -> bool:
        """Take away a message that waits behind a transfer; False if it does so no longer."""
        for position, waiting in enumerate(self.get(lane, ())):
            if waiting is message:
                del self[lane][position]
                return True
        return False

    def carrier(self, item: bytes | Transfer, lane: int) -> Transfer | None:
        """The transfer that an item of a lane is, or stands behind; None if it has left."""
        found = None
        for waiting in self.get(lane, ()):
            if isinstance(waiting, Transfer) and not waiting.retracted:
                found = waiting
            if waiting is item:
                return found
        return None

    def when_left(self, item: bytes | Transfer, lane: int, callback: Callable[[], object]) -> None:
        """Call back when nothing holds back any longer what may still be retracted.

        That it has left or that it was dropped; whoever may drop it knows which.
        """
        transfer = self.carrier(item, lane)
        if transfer is None:
            callback()
        else:
            # Asked again then: what was dropped may have stood behind others.
            transfer.when_ended(partial(self.when_left, item, lane, callback))

    def leave(self, transfer: Transfer) -> list[bytes]:
        """Take away the first transfer of a lane, which has left or was dropped.

        :returns: the messages behind it that nothing holds back any longer
        """
        if transfer.number:
            self._begun_size -= transfer.outgoing.size
        line = self[transfer.lane]
        line.popleft()
        freed = []
        while line:
            item = line[0]
            if isinstance(item, bytes):
                freed.append(item)
            elif not item.retracted:
                return freed
            line.popleft()
        del self[transfer.lane]
        return freed

    def transfers(self) -> Iterator[Transfer]:
        """All transfers, in no particular order."""
        for line in self.values():
            for item in line:
                if isinstance(item, Transfer):
                    yield item

    def _may_begin(self, transfer: Transfer, max_message: int) -> bool:
        if transfer.cargo is not None and not transfer.cargo.may_leave:
            return False
        if not self._begun_size:
            return True
        begun = sum(1 for line in self.values() if _first(line).number)
        return begun < MAX_TRANSFERS and self._begun_size + transfer.outgoing.size <= max_message


def _first(line: deque[bytes | Transfer]) -> Transfer:
    transfer = line[0]
    assert isinstance(transfer, Transfer)
    return transfer
