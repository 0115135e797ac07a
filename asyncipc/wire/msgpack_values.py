"""Values that MessagePack does not know: written and read as extension values.

Imported when the first such value is met: plain messages do without.

Layer 1. Above: the MessagePack codec. Below: values, encoding, attachments.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgpack

from asyncipc.wire.attachments import AttachmentError, Attachments
from asyncipc.wire.encoding import Flattener
from asyncipc.wire.packed import UNCHECKED, check_lengths
from asyncipc.wire.paths import PathError, describe
from asyncipc.wire.values import ATTACHMENT, BY_CODE, MAX_EXTENSION_DEPTH, Extension, ValueType

__all__ = ["MessagePackFlattener", "raw_map", "revive", "revive_all"]


class MessagePackFlattener(Flattener):
    """Writes what MessagePack does not know as extension values."""

    QUICK: ClassVar = frozenset({type(None), bool, int, float, str})
    THOROUGH: ClassVar = frozenset({type(None), bool, float})

    def __init__(self, pack: Callable[[Any], bytes], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pack = pack

    def wrap(self, row: ValueType, payload: Any) -> Any:
        """See `Flattener`."""
        return msgpack.ExtType(row.code, self._pack(payload))

    def wrap_extension(self, code: int, payload: Any) -> Any:
        """See `Flattener`."""
        return msgpack.ExtType(code, self._pack(payload))

    def flat_dict(self, value: dict[Any, Any]) -> Any:
        """See `Flattener`."""
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
        """See `Flattener`."""
        if -(2**63) <= value < 2**64:
            return value
        return self.big_int(value)

    def flat_float(self, value: float) -> Any:
        """See `Flattener`."""
        return value

    def flat_bytes(self, value: bytes) -> Any:
        """See `Flattener`."""
        return value


def revive(
    extensions: Mapping[int, Extension],
    attachments: Attachments,
    level: int,
    code: int,
    data: bytes,
) -> Any:
    """The value of an extension code and a packed payload; raises whatever stands in the way."""
    if level >= MAX_EXTENSION_DEPTH:
        raise ValueError(f"extension values nested more than {MAX_EXTENSION_DEPTH} levels deep")
    if len(data) > UNCHECKED:
        check_lengths(data)
    payload = msgpack.unpackb(
        data,
        strict_map_key=False,
        timestamp=3,
        ext_hook=functools.partial(revive, extensions, attachments, level + 1),
    )
    if code == ATTACHMENT.code:
        return attachments.take(payload)
    kind = BY_CODE.get(code) or extensions.get(code)
    if kind is None:
        raise LookupError(f"extension code {code} is unknown here")
    return kind.decode(payload)


class _Unhashable(list[Any]):
    """The pairs of a map in which a key cannot be a key."""


def raw_map(pairs: list[tuple[Any, Any]]) -> Any:
    """A map as it was packed, its keys still to be made; for `revive_all`."""
    try:
        return dict(pairs)
    except TypeError:
        return _Unhashable(pairs)


def revive_all(revive: Callable[[int, bytes], Any], raw: Any) -> Any:
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
            value = revive_all(revive, item)
        except PathError as fault:
            fault.inside(step)
            raise
        if type(raw) is list:
            flat.append(value)
            continue
        try:
            flat[revive_all(revive, step)] = value
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
