"""What exchanges messages in a session: made together, opened together, ended together.

Layer 2, inside the session. Above: the connection, which decides when. Below: its parts.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from asyncipc.errors import IPCError
from asyncipc.session.busy_poll import BusyPoll
from asyncipc.session.calls import Calls
from asyncipc.session.dispatch import Dispatch
from asyncipc.session.handlers import HandlerChain
from asyncipc.session.notifications import NotificationReceiver, NotificationSender
from asyncipc.session.outbox import Outbox
from asyncipc.session.pings import Pings
from asyncipc.session.router import Router
from asyncipc.session.settings import SessionSettings
from asyncipc.session.sideband import Sideband
from asyncipc.session.streams import Streams
from asyncipc.transport.base import HAS_SHARED_MEMORY, DescriptorCarrier, Transport
from asyncipc.wire.attachments import Attachment
from asyncipc.wire.codec import Codec
from asyncipc.wire.handshake import DESCRIPTORS_FEATURE, MEMORY_FEATURE, Agreement
from asyncipc.wire.messages import GOODBYE, GoodbyeCode

__all__ = ["Exchange"]

MakeError = Callable[[], Exception]

# That of the message that announces shared memory: nothing waits behind it but what refers to it.
ANNOUNCEMENT_LANE: Final = -2


class Exchange:
    """The parts of one session.

    :param session: the public face, given to handlers
    :param ended: says why no more calls are accepted
    :ivar features: what this side can do beyond the rest of the protocol
    :ivar sideband: what goes and comes beside the stream, where the two sides have agreed on that
    """

    __slots__ = (
        "_codec",
        "_loop",
        "_settings",
        "_transport",
        "busy_poll",
        "calls",
        "dispatch",
        "features",
        "incoming_notifications",
        "notifications",
        "outbox",
        "pings",
        "router",
        "sideband",
        "streams",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        settings: SessionSettings,
        handlers: HandlerChain,
        session: Any,
        *,
        ended: Callable[[], IPCError],
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._transport = transport
        self.features: tuple[str, ...] = ()
        if transport.can_carry_descriptors:
            self.features = (DESCRIPTORS_FEATURE, MEMORY_FEATURE)
            if not (HAS_SHARED_MEMORY and settings.limits.shared_memory_above):
                self.features = (DESCRIPTORS_FEATURE,)
        self.sideband: Sideband | None = None
        self.busy_poll: BusyPoll = BusyPoll(loop, settings.timeouts.busy_poll)
        outbox = Outbox(
            loop, transport, settings.limits.outbox, self._room_again, busy_poll=self.busy_poll
        )
        self.outbox: Outbox = outbox
        self.calls: Calls = Calls(loop, outbox, session, settings, ended)
        self.dispatch: Dispatch = Dispatch(loop, outbox, session, handlers, settings)
        self.notifications: NotificationSender = NotificationSender(loop, outbox, ended)
        self.incoming_notifications: NotificationReceiver = NotificationReceiver(
            self.dispatch, outbox, handlers, settings.limits, self.dispatch.set_idle
        )
        self.dispatch.also_running = self.incoming_notifications.running
        self.pings: Pings = Pings(loop, outbox)
        self.streams: Streams = Streams(loop, outbox, settings.limits.stream_credit, self)
        self.calls.streams = self.dispatch.streams = self.streams
        self.router: Router | None = None  # when the session stands

    def open(
        self,
        codec: Codec,
        agreement: Agreement,
        *,
        goodbye: Callable[[list[Any]], None],
        noise: Callable[[bytes], None],
    ) -> Router:
        """Begin, as the handshake has settled it; the router takes what comes from now on.

        :param goodbye: called with a goodbye of the other side
        :param noise: called with bytes between frames
        """
        self._codec = codec
        limits = agreement.limits
        if DESCRIPTORS_FEATURE in agreement.features.intersection(self.features):
            self._carry_descriptors(agreement)
        self.router = Router(
            codec,
            self.calls,
            self.dispatch,
            self.notifications,
            self.incoming_notifications,
            streams=self.streams,
            pings=self.pings,
            max_message=self._settings.limits.max_message,
            tolerates_noise=self._transport.tolerates_noise,
            goodbye=goodbye,
            noise=noise,
            sideband=self.sideband,
        )
        self.dispatch.open(codec)
        self.incoming_notifications.open(codec)
        self.pings.open(codec)
        self.streams.open(codec, limits.stream_credit)
        self.calls.open(codec, limits.max_requests)
        self.notifications.open(codec, limits.notification_credit)
        self.outbox.open(codec, max_frame=limits.max_frame, max_message=limits.max_message)
        return self.router

    def _carry_descriptors(self, agreement: Agreement) -> None:
        """Both sides can pass descriptors, and perhaps shared memory."""
        shares = MEMORY_FEATURE in agreement.features.intersection(self.features)
        self.sideband = self.outbox.sideband = Sideband(
            self._loop,
            cast("DescriptorCarrier", self._transport),
            self,
            self._settings.limits,
            agreement.limits.max_descriptors,
            shares=shares,
        )

    def send(self, message: list[Any]) -> None:
        """See `asyncipc.session.sideband.Messenger`."""
        self.outbox.respond(self._codec.encode(message, []))

    def announce(self, message: list[Any]) -> Callable[[], bool]:
        """See `asyncipc.session.sideband.Messenger`."""
        attachments: list[Attachment] = []
        data = self._codec.encode(message, attachments)
        outgoing = self.outbox.put_large([data, *attachments], ANNOUNCEMENT_LANE).outgoing
        return lambda: outgoing.finished

    def serve_with(self, handlers: HandlerChain) -> None:
        """From now on, ask these."""
        self.dispatch.serve_with(handlers)
        self.incoming_notifications.serve_with(handlers)

    def say_goodbye(self, code: GoodbyeCode, reason: str) -> None:
        """Tell the other side that this one ends the session, and what it has taken."""
        goodbye = [GOODBYE, self.dispatch.last_accepted, int(code), reason]
        self.outbox.put_now(self._codec.encode(goodbye, []))

    def refuse_after(self, last_id: int, make_error: MakeError) -> None:
        """The other side closes: what it has not taken by ``last_id`` it will not start."""
        self.outbox.accepts_calls = False
        self.calls.refuse_after(last_id)
        self.calls.slots.fail_waiting(make_error)
        self.notifications.gate.fail(make_error)

    def lose_answers(self, make_error: MakeError) -> None:
        """The other side sends no more: no answer can come."""
        self.outbox.accepts_calls = False
        self.calls.close(make_error)
        self.streams.close(make_error)
        self.pings.close(make_error)
        self.notifications.gate.fail(make_error)

    def stop(self, make_error: MakeError) -> None:
        """This side closes: give up its own calls, start none of the other side's."""
        self.outbox.accepts_calls = False
        self.dispatch.refusal = "the session is closing"
        self.calls.abandon_all(make_error)
        self.notifications.gate.fail(make_error)

    async def drain(self) -> None:
        """Wait until the handlers are done and all has been handed to the kernel."""
        await self.dispatch.drain()
        await self.outbox.drained()

    def close(self, make_error: MakeError) -> None:
        """The session is over: wake every waiter, cancel what runs, drop what was not sent."""
        self.lose_answers(make_error)
        self.dispatch.close()
        self.incoming_notifications.close()
        self.outbox.close()
        if self.router is not None:
            self.router.close()
        if self.sideband is not None:
            self.sideband.close_incoming()

    def _room_again(self) -> None:
        self.dispatch.progress.room_again()
        self.calls.slots.update()
        self.notifications.gate.update()
        self.streams.room_again()

    def may_come_late(self, wire_id: int) -> bool:
        """Of a call of either side; see `asyncipc.session.streams.KnownCalls`."""
        of_this_side = self.calls if wire_id & 1 else self.dispatch
        return of_this_side.may_come_late(wire_id)
