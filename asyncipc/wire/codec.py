"""Codecs: what a session asks of whoever turns messages into envelopes and back.

An envelope is one message ``[kind, field, ...]``, or a batch: an array of messages. The library
has two codecs, `MessagePack` (the default) and `JSON`; users may bring their own.

Layer 1. Above: the session. Below: attachments.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from asyncipc.wire.attachments import Attached, Buffer

__all__ = ["Codec"]


@runtime_checkable
class Codec(Protocol):
    """Makes envelopes of messages, and messages of envelopes.

    It keeps nothing between calls, and may be shared by sessions in several threads. `each_message`
    (in ``decoding``) does the checking at the end of ``decode`` for codecs of your own.

    :ivar name: under which the two sides settle it in their hello
    :ivar leading: every byte value that can begin an envelope; empty for any. It helps to tell a
        frame from noise.
    """

    name: str
    leading: bytes

    def encode(self, message: list[Any], attachments: list[Any]) -> bytes:
        """One message as an envelope.

        :param message: ``[kind, field, ...]``
        :param attachments: a codec may append large buffers here and leave numbered placeholders
            in the envelope. They are kept uncopied until they are sent. So are objects with a
            file descriptor, unless the list is a `NoDescriptors` (in ``attachments``).
        :raises EncodeError: it cannot be sent; the text begins with the path to the culprit, and
            nothing was appended
        """
        ...

    def join(self, messages: list[bytes]) -> bytes:
        """Several encoded messages, none with attachments, as one envelope: a batch."""
        ...

    def decode(self, envelope: Buffer, attachments: Sequence[Attached] = ()) -> list[Any]:
        """The message in an envelope, or the list of messages of a batch.

        A message in which a value cannot be understood here is a `BrokenMessage`; those around
        it are whole.

        :raises DecodeError: the envelope holds no message at all, or does not fit the attachments
        """
        ...
