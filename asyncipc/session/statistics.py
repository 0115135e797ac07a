"""What is counted in a session.

Layer 2, inside the session. Above: the session, which collects it from its parts.
"""

from typing import NamedTuple

__all__ = ["Statistics"]


class Statistics(NamedTuple):
    """Counters of a session since it began, and how it stands now.

    :ivar requests_sent: requests this side made
    :ivar requests_served: requests of the other side that were started
    :ivar requests_refused: requests of the other side that were not
    :ivar notifications_sent: notifications this side sent
    :ivar notifications_received: notifications that came
    :ivar notifications_unhandled: of those, the ones that no handler took
    :ivar faults_sent: requests of the other side that ended in a fault
    :ivar timeouts: calls of this side that were not answered in time
    :ivar cancels_sent: calls of this side that it gave up while they were being served
    :ivar late_replies: answers that came when nobody waited any longer, and were dropped
    :ivar ignored_messages: messages of unknown, ignorable kinds
    :ivar bytes_sent: bytes handed to the transport
    :ivar bytes_received: bytes that came
    :ivar noise_received: of those, bytes that were no part of a frame
    :ivar items_sent: items of streams that this side sent
    :ivar items_received: items of streams that came
    :ivar stalls: how often a stream of this side had to wait for the credit of a slow reader
    :ivar pending: calls of this side that are not answered yet
    :ivar queued: calls and notifications of this side that wait for a slot, credit or room
    :ivar running: handlers at work, notifications included
    :ivar outbox_size: bytes that wait to be handed to the transport
    :ivar descriptors_sent: file descriptors that went, those of shared memory included
    :ivar descriptors_received: file descriptors that came
    :ivar shared_bytes_sent: bytes of attachments that went through shared memory
    :ivar shared_bytes_received: bytes of attachments that came through shared memory
    :ivar arena_used: bytes of this side's arena that the other side has not given back
    :ivar progress_dropped: updates that gave way to later ones of the same call. Those of handlers
        here, while the outbox was full or a thread reported faster than the loop could take it;
        those for callers here, while their ``async def`` on_progress was slower than they came.
    """

    requests_sent: int
    requests_served: int
    requests_refused: int
    notifications_sent: int
    notifications_received: int
    notifications_unhandled: int
    faults_sent: int
    timeouts: int
    cancels_sent: int
    late_replies: int
    ignored_messages: int
    bytes_sent: int
    bytes_received: int
    noise_received: int
    items_sent: int
    items_received: int
    stalls: int
    pending: int
    queued: int
    running: int
    outbox_size: int
    descriptors_sent: int = 0
    descriptors_received: int = 0
    shared_bytes_sent: int = 0
    shared_bytes_received: int = 0
    arena_used: int = 0
    progress_dropped: int = 0
