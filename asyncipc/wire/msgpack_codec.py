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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgpack

from asyncipc.errors import DecodeError, EncodeError
from asyncipc.wire.attachments import ATTACH_ABOVE, AttachmentError, Attachments, Buffer
from asyncipc.wire.decoding import each_message
from asyncipc.wire.encoding import Flattener, by_type, check_attach_above
from asyncipc.wire.paths import PathError, describe
from asyncipc.wire.values import ATTACHMENT, BY_CODE, MAX_EXTENSION_DEPTH, Extension, ValueType

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
        self, extensions: Sequence[Extension] = (), *, attach_above: int = ATTACH_ABOVE
    ) -> None:
        self._by_type = by_type(extensions)
        self._by_code = {extension.code: extension for extension in extensions}
        self._attach_above = check_attach_above(attach_above)
        self._pack = _new_packer()
        self._revive = self._reviver(())

    def encode(  # noqa: C901 - the hot path stays in one piece
        self, message: list[Any], attachments: list[Buffer]
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

    def decode(self, envelope: Buffer, attachments: Sequence[bytes] = ()) -> list[Any]:
        """See `Codec.decode`."""
        try:
            if len(envelope) > _UNCHECKED:
                _check_lengths(envelope)
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

    def _encode_exactly(self, message: list[Any], attachments: list[Buffer]) -> bytes:
        before = len(attachments)
        reason, cause = "", None
        for trusted in (_Flattener.QUICK, _Flattener.THOROUGH):
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

    def _flatten(
        self, message: list[Any], attachments: list[Buffer], trusted: frozenset[type]
    ) -> bytes:
        flattener = _Flattener(
            self._pack,
            attachments,
            extensions=self._by_type,
            trusted=trusted,
            attach_above=self._attach_above,
        )
        return self._pack(flattener.flat(message))

    def _reviver(self, attachments: Sequence[bytes]) -> Callable[[int, bytes], Any]:
        return functools.partial(_revive, self._by_code, Attachments(attachments), 0)

    def _decode_carefully(self, envelope: Buffer, attachments: Sequence[bytes]) -> list[Any]:
        """Unpack, leaving extension values as they are, and then revive one message at a time."""
        try:
            _check_lengths(envelope)
            raw = _unpack(envelope, strict_map_key=False, object_pairs_hook=_raw_map, timestamp=0)
        except Exception as error:
            raise DecodeError(f"no MessagePack: {describe(error)}") from error
        revive = functools.partial(_revive_all, self._reviver(attachments))
        return each_message(raw, revive)


# What a quick look at a value takes for harmless: containers may hold anything.
_LIKELY_PLAIN: Final = frozenset({type(None), bool, int, float, str, list, dict})

_FIRST_ITEMS: Final = 8  # of a list: all of params by position, little of a long list

# A packer keeps its memory, as large as the largest message needed it, so that one which grew
# beyond this many bytes is given up.
_LARGE: Final = 1024 * 1024


def _new_packer() -> Callable[[Any], bytes]:
    # Without a default function it never runs Python code, so that threads can share it.
    return msgpack.Packer(strict_types=True).pack


class _Flattener(Flattener):
    """Writes what MessagePack does not know as extension values."""

    QUICK: ClassVar = frozenset({type(None), bool, int, float, str})
    THOROUGH: ClassVar = frozenset({type(None), bool, float})

    def __init__(self, pack: Callable[[Any], bytes], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pack = pack

    def wrap(self, row: ValueType, payload: Any) -> Any:
        return msgpack.ExtType(row.code, self._pack(payload))

    def wrap_extension(self, code: int, payload: Any) -> Any:
        return msgpack.ExtType(code, self._pack(payload))

    def flat_dict(self, value: dict[Any, Any]) -> Any:
        trusted, changed = self._trusted, False
        flat = {}
        self.enter()
        try:
            for key, item in value.items():
                new_key = key if type(key) in trusted else self.key(key)
                try:
                    new = item if type(item) in trusted else self.flat(item)
                except PathError as fault:
                    fault.inside(key)
                    raise
                changed = changed or new is not item or new_key is not key
                flat[new_key] = new
        finally:
            self.leave()
        return flat if changed else value

    def flat_int(self, value: int) -> Any:
        if -(2**63) <= value < 2**64:
            return value
        return self.big_int(value)

    def flat_float(self, value: float) -> Any:
        return value

    def flat_bytes(self, value: bytes) -> Any:
        return value


_unpack: Final = msgpack.unpackb

# An array is allocated as long as it says, and arrays in arrays may each say that they are as long
# as the whole input: 1024 levels times 8 bytes for each byte received. Up to here that is less
# than 3 MB; for longer input the lengths are added up first, without making anything of it.
_UNCHECKED: Final = 1024


def _check_lengths(data: Buffer) -> None:
    scanner = msgpack.Unpacker(
        strict_map_key=False, max_buffer_size=max(len(data), 1), read_size=max(len(data), 1)
    )
    scanner.feed(data)
    scanner.skip()


def _revive(
    extensions: Mapping[int, Extension],
    attachments: Attachments,
    level: int,
    code: int,
    data: bytes,
) -> Any:
    """The value of an extension code and a packed payload; raises whatever stands in the way."""
    if level >= MAX_EXTENSION_DEPTH:
        raise ValueError(f"extension values nested more than {MAX_EXTENSION_DEPTH} levels deep")
    if len(data) > _UNCHECKED:
        _check_lengths(data)
    payload = _unpack(
        data,
        strict_map_key=False,
        timestamp=3,
        ext_hook=functools.partial(_revive, extensions, attachments, level + 1),
    )
    if code == ATTACHMENT.code:
        return attachments.take(payload)
    kind = BY_CODE.get(code) or extensions.get(code)
    if kind is None:
        raise LookupError(f"extension code {code} is unknown here")
    return kind.decode(payload)


class _Unhashable(list[Any]):
    """The pairs of a map in which a key cannot be a key."""


def _raw_map(pairs: list[tuple[Any, Any]]) -> Any:
    try:
        return dict(pairs)
    except TypeError:
        return _Unhashable(pairs)


def _revive_all(revive: Callable[[int, bytes], Any], raw: Any) -> Any:
    """What `_decode_carefully` left, with the objects made; raises `PathError`."""
    kind = type(raw)
    if kind is list or kind is dict:
        return _revive_items(revive, raw)
    if kind is msgpack.ExtType:
        return _revive_one(revive, raw)
    if kind is msgpack.Timestamp:
        try:
            return raw.to_datetime()
        except OverflowError as error:
            raise PathError(f"no datetime for the timestamp {raw!r}") from error
    if kind is _Unhashable:
        raise PathError("a map with an array or a map as key")
    return raw


def _revive_items(revive: Callable[[int, bytes], Any], raw: Any) -> Any:
    flat: Any = [] if type(raw) is list else {}
    for step, item in enumerate(raw) if type(raw) is list else raw.items():
        try:
            value = _revive_all(revive, item)
        except PathError as fault:
            fault.inside(step)
            raise
        if type(raw) is list:
            flat.append(value)
            continue
        try:
            flat[_revive_all(revive, step)] = value
        except TypeError as error:
            raise PathError(f"a key of a map: {error}") from error
    return flat


def _revive_one(revive: Callable[[int, bytes], Any], raw: msgpack.ExtType) -> Any:
    try:
        return revive(raw.code, raw.data)
    except AttachmentError:
        raise
    except Exception as error:  # code of the user's class or extension may run here
        row = BY_CODE.get(raw.code)
        name = row.name if row is not None else f"extension {raw.code}"
        raise PathError(f"{name}: {describe(error)}") from error
