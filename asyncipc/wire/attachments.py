"""Bulk bytes that stand beside the envelope instead of in it.

A buffer of at least ``attach_above`` bytes is not copied into the envelope: it goes along as an
attachment, and the envelope holds a placeholder ``[index, kind]``. Indices count from 0 in the
order in which the buffers are met; each attachment belongs to exactly one placeholder.

Layer 1. Above: codecs. Below: errors.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from asyncipc.errors import DecodeError

__all__ = [
    "ATTACH_ABOVE",
    "BUFFER_TYPES",
    "MAX_ATTACHMENTS",
    "AttachmentError",
    "Attachments",
    "Buffer",
    "as_attachment",
    "check_attach_above",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

BUFFER_TYPES: Final = frozenset({bytes, bytearray, memoryview})

# Below this, copying the bytes into the envelope is cheaper than handling one more buffer.
ATTACH_ABOVE: Final = 16 * 1024

# Of one message; what more there is stays in the envelope. See docs/protocol.md.
MAX_ATTACHMENTS: Final = 1024


def check_attach_above(size: int) -> int:
    """The threshold for attachments, if it can be one.

    :raises ValueError: it is no positive integer
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"attach_above is a positive number of bytes, not {size!r}")
    return size


class AttachmentError(DecodeError):
    """A placeholder and the attachments do not fit together: the sender broke the rules."""


def as_attachment(buffer: Buffer) -> Buffer:
    """The same bytes in a form that can be sent as they lie in memory.

    A memoryview that is contiguous becomes a flat one over the same memory, another is copied.
    Bytes and bytearrays are returned as they are.
    """
    if not isinstance(buffer, memoryview):
        return buffer
    if buffer.c_contiguous:
        try:
            return buffer.cast("B")
        except ValueError:  # a format with no native size ("<i"), or an empty shape
            pass
    return buffer.tobytes()


class Attachments:
    """The attachments of one message that came, each taken once."""

    __slots__ = ("_attached", "_taken")

    def __init__(self, attached: Sequence[bytes]) -> None:
        self._attached = attached
        self._taken: set[int] = set()

    def take(self, placeholder: Any) -> Buffer:
        """The value that a placeholder ``[index, kind]`` stands for.

        Bytes are the attachment itself, a memoryview is a read-only look at it, a bytearray is a
        copy.

        :raises AttachmentError: there is no such attachment or kind, or it was taken before
        """
        match placeholder:
            case [int(index), "bytes" | "bytearray" | "memoryview" as kind]:
                pass
            case _:
                raise AttachmentError("a placeholder for an attachment is not [index, kind]")
        count = len(self._attached)
        if not 0 <= index < count:
            raise AttachmentError(f"attachment {index} does not exist; {count} came along")
        if index in self._taken:
            raise AttachmentError(f"attachment {index} is used twice")
        self._taken.add(index)
        attached = self._attached[index]
        if kind == "bytes":
            return attached
        return bytearray(attached) if kind == "bytearray" else memoryview(attached)
