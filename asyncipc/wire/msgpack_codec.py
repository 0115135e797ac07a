"""The MessagePack codec.

What the format knows (nil, booleans, integers of 64 bits, floats of 64 bits, text, binary, arrays,
maps with keys of any type) is written as itself, all else as an extension value; codes and
payloads are the table in `asyncipc.wire.values`. A timestamp that comes (extension -1) is an aware
datetime in UTC, cut to microseconds; none is ever sent. Of equal keys in a map the last one
counts. Containers may nest `MAX_DEPTH` deep; deeper ones may be refused.

A plain message, the usual case, takes a short way: the packer is tried at once and refuses what
it does not know, and it is enough to look for the markers of binary in what it made. Anything
else takes the exact way through `asyncipc.wire.encoding`. Reading is alike: one unpack, and only
when that fails a careful second one that finds out which message is at fault.

Layer 1. Above: the session. Below: values, encoding, attachments.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from asyncipc.errors import DecodeError, EncodeError
from asyncipc.lazy import LazyModule
from asyncipc.wire.attachments import (
    ATTACH_ABOVE,
    Attached,
    Attachment,
    Attachments,
    Buffer,
    check_attach_above,
)
from asyncipc.wire.decoding import each_message
from asyncipc.wire.packed import UNCHECKED, check_lengths
from asyncipc.wire.paths import PathError, describe

if TYPE_CHECKING:
    from asyncipc.wire import encoding, msgpack_values
    from asyncipc.wire.values import Extension
else:  # plain messages do without
    encoding = LazyModule("asyncipc.wire.encoding")
    msgpack_values = LazyModule("asyncipc.wire.msgpack_values")

__all__ = ["MessagePack"]


class MessagePack:
    """The default codec.

    :param extensions: types of your own; both sides must have the same
    :param attach_above: buffers of at least this many bytes travel beside the envelope
    :raises ValueError: two extensions share a code or a class, or ``attach_above`` is not positive
    """

    name: str = "msgpack"
    leading: bytes = bytes(range(0x91, 0xA0)) + b"\xdc\xdd"  # arrays that are not empty

    def __init__(
        self, extensions: "Sequence[Extension]" = (), *, attach_above: int = ATTACH_ABOVE
    ) -> None:
        self._by_type = encoding.by_type(extensions) if extensions else {}
        self._by_code = {extension.code: extension for extension in extensions}
        self._attach_above = check_attach_above(attach_above)
        self._pack = _new_packer()

    def encode(  # noqa: C901 - the hot path stays in one piece
        self, message: list[Any], attachments: list[Attachment]
    ) -> bytes:
        """See `Codec.encode`."""
        # A look at the first level of the payload (params, a result), for what the packer would
        # refuse, and for bulk, which it would copy. Whatever this overlooks is found below.
        payload = message[3] if len(message) > 3 else message[-1]
        if type(payload) is dict:
            for value in payload.values():
                if type(value) not in _LIKELY_PLAIN:
                    return self._encode_exactly(message, attachments)
        elif type(payload) is list:
            for value in payload[:_FIRST_ITEMS]:
                if type(value) not in _LIKELY_PLAIN:
                    return self._encode_exactly(message, attachments)
        elif type(payload) not in _LIKELY_PLAIN:
            return self._encode_exactly(message, attachments)
        try:
            data = self._pack(message)
        except Exception:  # noqa: BLE001 - the exact way finds the reason, and the culprit
            data = None
        if data is None or len(data) > _LARGE:
            self._pack = _new_packer()
        # The markers of binary. The packer writes bytearrays and memoryviews as if they were
        # bytes; that it met none is certain only where no marker is.
        if data is None or 0xC4 in data or 0xC5 in data or 0xC6 in data:
            return self._encode_exactly(message, attachments)
        return data

    def join(self, messages: list[bytes]) -> bytes:
        """See `Codec.join`."""
        count = len(messages)
        if count < 16:
            header = bytes((0x90 | count,))
        elif count < 2**16:
            header = b"\xdc" + count.to_bytes(2, "big")
        else:
            header = b"\xdd" + count.to_bytes(4, "big")
        return header + b"".join(messages)

    def decode(self, envelope: Buffer, attachments: Sequence[Attached] = ()) -> list[Any]:
        """See `Codec.decode`."""
        try:
            if len(envelope) > UNCHECKED:
                check_lengths(envelope)
            message = _unpack(
                envelope,
                strict_map_key=False,
                timestamp=3,
                ext_hook=self._reviver(attachments) if attachments else self._revive,
            )
        except Exception:  # noqa: BLE001 - the careful way finds the reason, and the culprit
            message = None
        if type(message) is list and message and type(message[0]) is int:
            return message
        if message is None:
            return self._decode_carefully(envelope, attachments)
        return each_message(message)

    def _encode_exactly(self, message: list[Any], attachments: list[Attachment]) -> bytes:
        if self._is_flat(message):
            try:
                return self._pack(message)
            except Exception:  # noqa: BLE001 - the walk finds the reason
                self._pack = _new_packer()
        before = len(attachments)
        reason, cause = "", None
        flattener = msgpack_values.MessagePackFlattener
        for trusted in (flattener.QUICK, flattener.THOROUGH):
            try:
                data = self._flatten(message, attachments, trusted)
            except PathError as fault:
                reason, cause = fault.text(message), fault.__cause__
            except RecursionError:
                reason = "the message is nested too deeply"
            except (ValueError, OverflowError) as error:
                reason = f"the message cannot be packed: {error}"
            else:
                if len(data) > _LARGE:
                    self._pack = _new_packer()
                return data
            del attachments[before:]
        self._pack = _new_packer()
        raise EncodeError(reason) from cause

    def _is_flat(self, message: list[Any]) -> bool:
        """Whether the payload is a list of plain values and small bytes, and holds nothing else.

        Such a message needs no walk, also where it looks as if it held buffers.
        """
        payload = message[3] if len(message) > 3 else message[-1]
        if type(payload) is not list or len(message) > 5:
            return False
        for value in payload:
            kind = type(value)
            if kind is bytes:
                if len(value) >= self._attach_above:
                    return False
            elif kind not in _SCALARS:
                return False
        return True

    def _flatten(
        self, message: list[Any], attachments: list[Attachment], trusted: frozenset[type]
    ) -> bytes:
        flattener = msgpack_values.MessagePackFlattener(
            self._pack,
            attachments,
            extensions=self._by_type,
            trusted=trusted,
            attach_above=self._attach_above,
        )
        return self._pack(flattener.flat(message))

    def _revive(self, code: int, data: bytes) -> Any:
        return self._reviver(())(code, data)

    def _reviver(self, attachments: Sequence[Attached]) -> Callable[[int, bytes], Any]:
        revive = msgpack_values.revive
        return functools.partial(revive, self._by_code, Attachments(attachments), 0)

    def _decode_carefully(self, envelope: Buffer, attachments: Sequence[Attached]) -> list[Any]:
        """Unpack, leaving extension values as they are, and then revive one message at a time."""
        raw_map = msgpack_values.raw_map  # importing which may fail, and is not the sender's doing
        try:
            check_lengths(envelope)
            raw = _unpack(envelope, strict_map_key=False, object_pairs_hook=raw_map, timestamp=0)
        except Exception as error:
            raise DecodeError(f"no MessagePack: {describe(error)}") from error
        revive = functools.partial(msgpack_values.revive_all, self._reviver(attachments))
        return each_message(raw, revive)


# What a quick look at a value takes for harmless: containers may hold anything.
_LIKELY_PLAIN: Final = frozenset({type(None), bool, int, float, str, list, dict})

_SCALARS: Final = frozenset({type(None), bool, int, float, str})

_FIRST_ITEMS: Final = 8  # of a list: all of params by position, little of a long list

# A packer keeps its memory, as large as the largest message needed it, so that one which grew
# beyond this many bytes is given up.
_LARGE: Final = 1024 * 1024


def _new_packer() -> Callable[[Any], bytes]:
    # Without a default function it never runs Python code, so that threads can share it.
    return msgpack.Packer(strict_types=True).pack


_unpack: Final = msgpack.unpackb
