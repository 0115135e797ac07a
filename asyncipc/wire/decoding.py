"""From what an unpacker made to messages: is it a message or a batch, and which message is broken.

Layer 1. Above: codecs, the session. Below: paths.
"""

from collections.abc import Callable
from typing import Any

from asyncipc.errors import DecodeError
from asyncipc.wire.paths import PathError

__all__ = ["BrokenMessage", "each_message"]


class BrokenMessage(list[Any]):
    """A message with a value that cannot be made into an object here.

    The fields can be read as far as they are plain (the kind, the id); the others are left as
    they came.

    :ivar error: which value it is, and why
    """

    def __init__(self, fields: list[Any], error: DecodeError) -> None:
        super().__init__(fields)
        self.error = error


def each_message(envelope: Any, revive: Callable[[Any], Any] | None = None) -> list[Any]:
    """Check that an unpacked envelope is a message or a batch, and finish each message of it.

    :param envelope: what came out of the unpacker
    :param revive: makes the objects in one message out of what the unpacker left; where it raises
        `PathError`, that message is a `BrokenMessage`
    :raises DecodeError: it is neither a message nor a batch
    """
    if type(envelope) is list and envelope:
        head = type(envelope[0])
        if head is int:
            return envelope if revive is None else _revived(envelope, revive)
        if head is list and all(
            type(message) is list and message and type(message[0]) is int for message in envelope
        ):
            if revive is None:
                return envelope
            return [_revived(message, revive) for message in envelope]
    raise DecodeError(
        "expected a message [kind, ...] or an array of messages, "
        f"got a {type(envelope).__name__} that is neither"
    )


def _revived(message: list[Any], revive: Callable[[Any], list[Any]]) -> list[Any]:
    try:
        return revive(message)
    except PathError as fault:
        error = DecodeError(fault.text(message))
        error.__cause__ = fault.__cause__
        return BrokenMessage(message, error)
    except RecursionError:
        return BrokenMessage(message, DecodeError("nested too deeply"))
