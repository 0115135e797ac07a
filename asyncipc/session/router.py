"""The way of each message that comes in: from the envelope to the part it belongs to.

Owns the frames of an open session: single messages, batches, transfers. Before the session stands
they are the handshake's.

Layer 2, inside the session. Above: the connection. Below: wire.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from asyncipc.errors import DecodeError, ProtocolError, RemoteProtocolError
from asyncipc.session.arrivals import Arrivals
from asyncipc.session.batch_costs import BatchCosts
from asyncipc.session.calls import Calls
from asyncipc.session.dispatch import Dispatch
from asyncipc.session.item_sender import descriptors_cost
from asyncipc.session.notifications import NotificationReceiver, NotificationSender
from asyncipc.session.pings import Pings
from asyncipc.session.sideband import Sideband
from asyncipc.session.streams import Streams
from asyncipc.wire import messages
from asyncipc.wire.codec import Codec
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.messages import ITEMS, NOTIFY, REPLY, REQUEST, GoodbyeCode, check_fields, shown
from asyncipc.wire.transfers import Assembler, Beside

__all__ = ["Router"]


class Router:
    """Hands messages over; the `FrameSink` of an open session.

    :param tolerates_noise: an envelope that holds no message is noise, not an error
    :param goodbye: called with a goodbye
    :param noise: called with bytes between frames
    :param sideband: what goes and comes beside the stream; None where nothing may
    """

    __slots__ = (
        "_assembler",
        "_calls",
        "_codec",
        "_dispatch",
        "_incoming_notifications",
        "_is_over",
        "_max_message",
        "_notifications",
        "_pings",
        "_receive_goodbye",
        "_sideband",
        "_streams",
        "_tolerates_noise",
        "ignored",
        "noise",
    )

    def __init__(
        self,
        codec: Codec,
        calls: Calls,
        dispatch: Dispatch,
        notifications: NotificationSender,
        incoming_notifications: NotificationReceiver,
        *,
        streams: Streams,
        pings: Pings,
        max_message: int,
        tolerates_noise: bool,
        goodbye: Callable[[list[Any]], None],
        noise: Callable[[bytes], None],
        sideband: Sideband | None,
    ) -> None:
        self._codec = codec
        self._calls = calls
        self._dispatch = dispatch
        self._notifications = notifications
        self._incoming_notifications = incoming_notifications
        self._streams = streams
        self._pings = pings
        self._max_message = max_message
        self._tolerates_noise = tolerates_noise
        self._receive_goodbye = goodbye
        self._assembler: Assembler | None = None  # made when the first transfer comes
        self.noise: Callable[[bytes], None] = noise
        self.ignored: int = 0
        self._sideband = sideband
        self._is_over = False  # what stands behind that goodbye in its batch is not served

    def envelope(self, data: memoryview, attached: int) -> bool:
        """A complete envelope came; see `asyncipc.wire.framing.FrameSink`."""
        try:
            decoded = self._codec.decode(data)
        except DecodeError as error:
            if self._tolerates_noise:
                return False
            raise RemoteProtocolError(f"the other side sent no message: {error}") from error
        kind = decoded[0]
        if not attached:
            # The commonest frames hold one message alone.
            if kind == REPLY:
                self._calls.answered(decoded)
                return True
            if kind == REQUEST:
                self._dispatch.request(decoded)
                return True
        elif kind not in (messages.BEGIN, messages.PART):
            raise RemoteProtocolError(
                f"the other side attached {attached} bytes to a message of kind {shown(kind)}; "
                "only begin and part take any"
            )
        self._route(decoded, len(data))
        if attached and self._assembler is not None:
            self._assembler.expect(attached)
        return True

    def attached(self, data: memoryview) -> None:
        """Bytes of a transfer came; see `asyncipc.wire.framing.FrameSink`."""
        assert self._assembler is not None, "begin or part came before"
        segments = self._assembler.feed(data)
        if segments is None:
            return
        beside, self._assembler.beside = self._assembler.beside, None
        if beside is not None:
            self._route_unloaded(segments, beside)
            return
        self._route(self._decode_segments(segments), sum(map(len, segments)))

    def close(self) -> None:
        """The session is over: drop what is unfinished."""
        if self._assembler is not None:
            self._assembler.close()

    def _decode_segments(self, segments: list[Any]) -> list[Any]:
        try:
            return self._codec.decode(segments[0], segments[1:])
        except DecodeError as error:
            raise RemoteProtocolError(f"the other side sent no message: {error}") from error

    def _route_unloaded(self, segments: list[Any], beside: Beside) -> None:
        """Hand over a message with descriptors or shared memory.

        Descriptors in what nobody takes (a late reply, a request without a handler) are closed.
        """
        assert self._sideband is not None
        arrivals = self._sideband.incoming()
        arrivals.gather_regions()
        try:
            self._route_filled(segments, beside)
        finally:
            segments.clear()
            # Together with the answer, if there is one already.
            arrivals.return_regions()

    def _route_filled(self, segments: list[Any], beside: Beside) -> None:
        size = sum(map(len, segments)) + beside.size
        for at, attached in beside.attached.items():
            segments[at] = attached
        taken = False
        try:
            decoded = self._decode_segments(segments)
            dropped = self._count_dropped()
            self._route(decoded, size, beside)
            taken = self._count_dropped() == dropped and not isinstance(decoded, BrokenMessage)
        finally:
            beside.finish(dropped=not taken)

    def _count_dropped(self) -> int:
        return (
            self._calls.late_replies
            + self._dispatch.refused
            + self._dispatch.not_found
            + self._incoming_notifications.unhandled
            + self.ignored
        )

    def _route(self, decoded: list[Any], size: int, beside: Beside | None = None) -> None:
        """Hand over one message, or each of a batch; the three commonest kinds first.

        :param beside: what came with it, but not in the stream
        """
        incoming = self._incoming_notifications
        before = incoming.received
        batch = decoded if isinstance(decoded[0], list) else (decoded,)
        costs: BatchCosts | None = None
        for message in batch:
            kind = message[0]
            if kind == REPLY:
                self._calls.answered(message)
            elif kind == REQUEST:
                self._dispatch.request(message)
            elif kind == NOTIFY:
                incoming.receive(message)
            elif kind == ITEMS:
                check_fields(message)
                if batch is decoded and beside is None:
                    costs = costs or BatchCosts(batch, size)
                    costs.receive(message, self._streams)
                else:
                    self._receive_items(message, size, beside, alone=batch is not decoded)
            else:
                receive = self._OTHERS.get(kind)
                if receive is not None:
                    check_fields(message)
                    receive(self, message)
                    if self._is_over:
                        return
                else:
                    self._receive_unknown(message)
        if incoming.received != before:
            incoming.settle(size)

    def _receive_items(
        self, message: list[Any], size: int, beside: Beside | None, *, alone: bool
    ) -> None:
        """Items came, alone or with descriptors or in shared memory."""
        if beside is None:
            self._streams.receive(message, size, size, None)
            return
        if not alone or self._sideband is None:
            raise RemoteProtocolError(
                "the other side sent a batch as a transfer, with what does not come in the stream"
            )
        most = self._sideband.limits.max_descriptors
        size = max(size, descriptors_cost(beside.descriptors, self._streams.granted, most))
        self._streams.receive(message, size, size, None, beside.close_descriptors)

    def _receive_fault(self, message: list[Any]) -> None:
        self._calls.failed(message)

    def _receive_progress(self, message: list[Any]) -> None:
        self._calls.progressed(message)

    def _receive_end(self, message: list[Any]) -> None:
        self._streams.receive_end(message[1])

    def _receive_cancel(self, message: list[Any]) -> None:
        self._dispatch.cancel(message[1])

    def _receive_credit(self, message: list[Any]) -> None:
        if message[1] == 0:
            self._notifications.credited(message[2])
        else:
            self._streams.credited(message[1], message[2])

    def _receive_stop(self, message: list[Any]) -> None:
        self._streams.stopped(message[1])

    def _receive_extend(self, message: list[Any]) -> None:
        self._calls.extended(message[1], message[2])

    def _receive_ping(self, message: list[Any]) -> None:
        self._pings.receive_ping(message[1])

    def _receive_pong(self, message: list[Any]) -> None:
        self._pings.receive_pong(message[1])

    def _receive_begin(self, message: list[Any]) -> None:
        if self._assembler is None:
            self._assembler = Assembler(self._max_message)
        lengths, beside = message[2], None
        if not {int}.issuperset(map(type, lengths)):
            if self._sideband is None:
                raise RemoteProtocolError(
                    "the other side sent a transfer with descriptors or shared memory, which was "
                    "not agreed on"
                )
            lengths, beside = self._sideband.incoming().unload(lengths)
        try:
            self._assembler.begin(message[1], lengths, beside)
        except ProtocolError:
            if beside is not None:
                beside.finish(dropped=True)
            raise

    def _receive_part(self, message: list[Any]) -> None:
        if self._assembler is None:
            self._assembler = Assembler(self._max_message)
        self._assembler.part(message[1])
        if len(message) > 2 and message[2] is not None:
            if self._sideband is None:
                raise RemoteProtocolError(
                    "the other side sent a part in shared memory, which was not agreed on"
                )
            arrivals = self._sideband.incoming()
            arrivals.gather_regions()
            self._feed_region(*message[2], arrivals=arrivals)
            arrivals.return_regions()

    def _feed_region(self, *region: int, arrivals: Arrivals) -> None:
        assert self._assembler is not None
        memory = arrivals.region(*region)
        self._assembler.expect(len(memory))
        self.attached(memory.readonly())

    def _receive_retract(self, message: list[Any]) -> None:
        if self._assembler is not None:
            self._assembler.retract(message[1])

    def _receive_descriptors(self, message: list[Any]) -> None:
        if self._sideband is None:
            self._receive_unknown(message)
        elif message[1] == 0:
            self._sideband.incoming().asked()
        else:
            self._sideband.outgoing().credited(message[1])

    def _receive_memory(self, message: list[Any]) -> None:
        if self._sideband is None:
            self._receive_unknown(message)
        else:
            self._sideband.incoming().announced(*message[1:4])

    def _receive_release(self, message: list[Any]) -> None:
        if self._sideband is None:
            self._receive_unknown(message)
        else:
            self._sideband.outgoing().released(*message[1:3])

    def _take_goodbye(self, message: list[Any]) -> None:
        self._receive_goodbye(message)
        self._is_over = message[2] != GoodbyeCode.NORMAL

    def _receive_late(self, _message: list[Any]) -> None:
        raise RemoteProtocolError("the other side sent a second hello, or an auth out of turn")

    def _receive_unknown(self, message: list[Any]) -> None:
        """A kind of a later version: skipped, or answered so that no caller waits for ever."""
        kind = message[0]
        if kind.__class__ is not int or kind < 0:
            raise RemoteProtocolError(
                f"the other side sent a message whose kind should be a number, not {shown(kind)}"
            )
        if kind >= messages.FIRST_IGNORABLE:
            self.ignored += 1
            return
        wire_id = message[1] if len(message) > 1 else None
        if type(wire_id) is not int or wire_id <= 0:
            raise RemoteProtocolError(
                f"the other side sent the unknown critical kind {kind} without the id of a call"
            )
        if wire_id & 1:
            self._calls.not_understood(wire_id, kind)
        else:
            self._dispatch.not_understood(wire_id, kind)

    _OTHERS: ClassVar[dict[int, Callable[["Router", list[Any]], None]]] = {
        messages.FAULT: _receive_fault,
        messages.PROGRESS: _receive_progress,
        messages.CANCEL: _receive_cancel,
        messages.END: _receive_end,
        messages.CREDIT: _receive_credit,
        messages.EXTEND: _receive_extend,
        messages.STOP: _receive_stop,
        messages.PING: _receive_ping,
        messages.PONG: _receive_pong,
        messages.BEGIN: _receive_begin,
        messages.PART: _receive_part,
        messages.RETRACT: _receive_retract,
        messages.GOODBYE: _take_goodbye,
        messages.DESCRIPTORS: _receive_descriptors,
        messages.MEMORY: _receive_memory,
        messages.RELEASE: _receive_release,
        messages.HELLO: _receive_late,
        messages.AUTH: _receive_late,
    }
