"""Settings: frozen, validated when they are made, each number with its unit and its reason.

Layer 0: imports nothing of the library.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Final

__all__ = ["NETWORK_LIMITS", "Limits", "Timeouts"]

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What the numbers in `Limits` may be, where it is not 1 to 2**48. A hello and a whole part header
# must fit in any frame; lengths on the wire are 32 bits.
_RANGES: Final = {
    "max_frame": (16 * KIB, 2**32 - 1),
    "max_message": (16 * KIB, 2**48),
    "notification_credit": (16 * KIB, 2**48),
    "stream_credit": (16 * KIB, 2**48),
    "outbox": (16 * KIB, 2**48),
    "max_descriptors": (1, 253),  # what the kernel passes with one write (SCM_MAX_FD)
    "shared_memory_above": (0, 2**48),
    "arena": (1 * MIB, 2**48),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a session accepts and holds. The other side learns its part of them in the hello.

    :ivar max_frame: bytes in one frame behind its header. Larger messages travel in parts.
    :ivar max_message: bytes in one message with everything attached to it. The default suits a
        private pair; listeners on a network use `NETWORK_LIMITS`, because a small packed body can
        unpack to 70 times its size.
    :ivar max_requests: requests of the other side being served at once. It queues what is beyond.
    :ivar max_queued: calls that wait on this side for a free slot; one more is `RequestRefused`.
    :ivar max_depth: how deep calls that serve calls of the same session may nest.
    :ivar notification_credit: bytes of notifications the other side may have under way.
    :ivar stream_credit: bytes of items the other side may have under way in each stream, which is
        also what a stream that nobody reads holds. Twice as much as a socket buffers gains nothing.
    :ivar outbox: bytes waiting to be sent above which senders wait.
    :ivar max_noise: bytes of noise between frames handed to ``on_noise`` in one piece.
    :ivar stderr_tail: bytes of a child's stderr kept for error messages.
    :ivar max_descriptors: file descriptors in one message. Of those of the other side twice as
        many may be under way, or held for messages that are not complete; and about as many lie in
        each stream that nobody reads.
    :ivar shared_memory_above: buffers of at least this many bytes are sent through shared memory
        where that is possible; 0: none are. The default is where it becomes quicker (measured).
    :ivar arena: bytes of shared memory that a session sends through, at most. They are taken as
        they are needed, and kept until it ends. What finds no room is sent in the stream. What
        the other side sends through more than this is copied, not mapped.
    :ivar max_sessions: sessions a server holds at once, those still in their handshake included.
    """

    max_frame: int = 1 * MIB
    max_message: int = 1024 * MIB
    max_requests: int = 1024
    max_queued: int = 100_000
    max_depth: int = 128
    notification_credit: int = 1 * MIB
    stream_credit: int = 256 * KIB
    outbox: int = 1 * MIB
    max_noise: int = 64 * KIB
    stderr_tail: int = 16 * KIB
    max_descriptors: int = 64
    shared_memory_above: int = 256 * KIB
    arena: int = 256 * MIB
    max_sessions: int = 10_000

    def __post_init__(self) -> None:
        for field in fields(self):
            lowest, highest = _RANGES.get(field.name, (1, 2**48))
            _check_number(f"Limits.{field.name}", getattr(self, field.name), lowest, highest, int)


# Beyond this, to fall asleep and wake up again is next to nothing.
MAX_BUSY_POLL: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long, in seconds, a step may take before it is given up.

    :ivar handshake: from the connection to the end of hello and authentication.
    :ivar goodbye: what ``aclose()`` leaves running handlers to finish. When the other side has said
        goodbye, and owes no answers, also how long it may be silent before this side hangs up.
    :ivar terminate: between the steps of ending a child: stdin closed, SIGTERM, SIGKILL.
    :ivar busy_poll: for which an event loop stays awake when a message has left alone, where
        answers have come that quickly lately; 0: it never does. Short calls one after the other
        are several times as quick so, for processor time that is lost otherwise (measured; see
        ``docs/performance.md``).
    """

    handshake: float = 10.0
    goodbye: float = 5.0
    terminate: float = 2.0
    busy_poll: float = 0.0001

    def __post_init__(self) -> None:
        for field in fields(self):
            highest = MAX_BUSY_POLL if field.name == "busy_poll" else math.inf
            _check_number(f"Timeouts.{field.name}", getattr(self, field.name), 0, highest, float)


def _check_number(name: str, value: Any, lowest: float, highest: float, kind: type) -> None:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be a number ({kind.__name__}), not {value!r}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, not {value!r}")


# What a listener on a network accepts from strangers unless it is told otherwise.
NETWORK_LIMITS: Final = Limits(
    max_message=16 * MIB,
    max_requests=256,
    notification_credit=256 * KIB,
    stream_credit=64 * KIB,
)
