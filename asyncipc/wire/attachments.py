"""What stands beside the envelope instead of in it: bulk bytes, and file descriptors.

A buffer of at least ``attach_above`` bytes is not copied into the envelope: it goes along as an
attachment, and the envelope holds a placeholder ``[index, kind]``. So does every file descriptor.
Indices count from 0 in the order in which the attachments are met; each belongs to exactly one
placeholder. How an attachment travels (in the stream, as a descriptor, in shared memory) is not
known here.

Layer 1. Above: codecs. Below: errors.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from asyncipc.errors import DecodeError
from asyncipc.lazy import LazyModule

if TYPE_CHECKING:
    from asyncipc.wire import large_bytes
else:
    large_bytes = LazyModule("asyncipc.wire.large_bytes")

__all__ = [
    "ATTACH_ABOVE",
    "BUFFER_TYPES",
    "DESCRIPTOR",
    "MAX_ATTACHMENTS",
    "Attached",
    "Attachment",
    "AttachmentError",
    "Attachments",
    "Buffer",
    "HasFileno",
    "NoDescriptors",
    "SharedMemory",
    "Writable",
    "as_attachment",
    "check_attach_above",
]

Buffer: TypeAlias = bytes | bytearray | memoryview


class HasFileno(Protocol):
    """A socket, a file object, an `asyncipc.Fd`: what a file descriptor stands behind."""

    def fileno(self) -> int:
        """The descriptor; ValueError or -1 where there is none any more."""
        ...


class SharedMemory(Protocol):
    """Bytes that came in shared memory, for whoever makes a value of them."""

    def __len__(self) -> int: ...

    def readonly(self) -> memoryview:
        """The bytes, not to be written to."""
        ...

    def writable(self) -> memoryview:
        """The bytes; what is written is seen here alone."""
        ...


# What goes along with a message, and what came.
Attachment: TypeAlias = Buffer | HasFileno
Attached: TypeAlias = bytes | HasFileno | SharedMemory

# The kind of the placeholders for file descriptors; the others are names of types.
DESCRIPTOR: Final = "descriptor"

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


class NoDescriptors(list[Attachment]):
    """A list for attachments in which file descriptors are refused, with the path to them."""

    __slots__ = ()


class Writable:
    """A buffer that is to arrive as one which may be written to, in memory of the receiver's own.

    For layers above that make values of buffers themselves. (A memoryview arrives read-only.)
    """

    __slots__ = ("buffer",)

    def __init__(self, buffer: memoryview) -> None:
        self.buffer: memoryview = buffer


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

    def __init__(self, attached: Sequence[Attached]) -> None:
        self._attached = attached
        self._taken: set[int] = set()

    def take(self, placeholder: Any) -> Any:
        """The value that a placeholder ``[index, kind]`` stands for.

        Bytes are the attachment itself, a memoryview is a read-only look at it, a bytearray is a
        copy, an array gets memory that it may write to. What came in shared memory is copied for
        bytes and bytearrays alone.

        :raises AttachmentError: there is no such attachment or kind, or it was taken before
        """
        match placeholder:
            case [int(index), str(kind)] if kind in _KINDS:
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
        if isinstance(attached, bytes):
            if kind in _MAKE_OF_BYTES:
                return _MAKE_OF_BYTES[kind](attached)
        elif hasattr(attached, "fileno"):
            if kind == DESCRIPTOR:
                return attached
        elif kind in _MAKE_OF_MEMORY:
            return _MAKE_OF_MEMORY[kind](attached)
        raise AttachmentError(f"attachment {index} is no {kind}")


_MAKE_OF_BYTES: Final[dict[str, Callable[[bytes], Buffer]]] = {
    "bytes": lambda attached: attached,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "array": lambda attached: memoryview(bytearray(attached)),
}

_MAKE_OF_MEMORY: Final[dict[str, Callable[[Any], Buffer]]] = {
    "bytes": lambda memory: large_bytes.copy_large(memory.readonly()),
    "bytearray": lambda memory: bytearray(memory.readonly()),
    "memoryview": lambda memory: memory.readonly(),
    "array": lambda memory: memory.writable(),
}

_KINDS: Final = _MAKE_OF_BYTES.keys() | {DESCRIPTOR}
