"""What waits to be read by the side that asked for it, counted.

Requests, notifications, progress and items wait while the outbox is full, so they are bounded by
that. What answers them, and what answers a ping or says that something was taken, is never held
back: it is bounded by what a well-behaved side asks for, and a side that asks on and on and reads
nothing must not fill the memory of this one.

Layer 2, inside the session. Above: dispatch, the outbox.
"""

from collections import deque
from typing import Final

from asyncipc.errors import RemoteProtocolError

__all__ = ["Unread", "check_answers"]

# Answers that may wait to be read, in multiples of `Limits.max_requests`. A side that keeps to the
# limits waits for its answers; more than one multiple takes nested calls.
ANSWERS_SHARE: Final = 4

# Pongs, refusals and credits. Nobody has so many of them under way who reads; and they are small.
MAX_RESPONSES: Final = 100_000


class Unread:
    """What an outbox holds of answers and other responses, while its transport is blocked.

    Each is noted by its place: how many messages will have left when it has. Answers are replies
    and faults, which end a call of the other side. Responses are what else it causes.
    """

    __slots__ = ("_answers", "_responses")

    def __init__(self) -> None:
        self._answers: deque[int] = deque()
        self._responses: deque[int] = deque()

    def note_answer(self, place: int) -> None:
        """An answer was put there."""
        self._answers.append(place)

    def note_response(self, place: int) -> None:
        """Another response was put there."""
        self._responses.append(place)

    def count_answers(self, left: int) -> int:
        """Of the answers, those that have not left.

        :param left: how many messages have
        """
        return _count(self._answers, left)

    def check_responses(self, left: int) -> None:
        """:raises RemoteProtocolError: too many responses have not left"""
        if len(self._responses) > MAX_RESPONSES:
            count = _count(self._responses, left)
            if count > MAX_RESPONSES:
                raise RemoteProtocolError(
                    f"the other side keeps asking but reads no answers: {count} pongs, refusals "
                    f"and credits wait for it, more than {MAX_RESPONSES} allowed"
                )


def check_answers(unread: int, max_requests: int) -> None:
    """:raises RemoteProtocolError: the other side makes one more request, and does not read"""
    if unread > ANSWERS_SHARE * max_requests:
        raise RemoteProtocolError(
            f"the other side keeps asking but does not read: {unread} answers wait for it, "
            f"more than it may ask at once (Limits.max_requests is {max_requests})"
        )


def _count(places: deque[int], left: int) -> int:
    while places and places[0] <= left:
        places.popleft()
    return len(places)
