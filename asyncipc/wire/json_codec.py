"""The JSON codec: for people who read along, and for peers that have no MessagePack.

An envelope is UTF-8 text that begins with ``[``. What JSON knows is written as itself; everything
else is an object with one key that begins with ``$`` (an escape)::

    {"$bytes": text}            binary, base64 with padding
    {"$float": "nan"}           also "inf", "-inf"; JSON has no such numbers
    {"$dict": [[key, value]]}   a map with keys that are not all text, or one that begins with "$"
    {"$ext": [code, payload]}   a type of the user (`Extension`)
    {"$name": payload}          a row of the table in `asyncipc.wire.values`

An integer beyond 2**53 - 1 either way is written as ``{"$int": ...}``, because many readers of
JSON take all numbers for floats (RFC 7493, section 2.2); a plain one is read at any size that
Python converts (``sys.set_int_max_str_digits``). A number with a fraction or an exponent is a
float. An object with a key that begins with ``$`` and is not one of these escapes is an error in
its message. Duplicate keys, NaN and Infinity, text that is no valid Unicode, and anything behind
the value make the whole envelope invalid.

Layer 1. Above: the session. Below: values, encoding, attachments.
"""

import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from asyncipc.errors import DecodeError, EncodeError
from asyncipc.wire.attachments import (
    ATTACH_ABOVE,
    Attached,
    Attachment,
    AttachmentError,
    Attachments,
    Buffer,
    check_attach_above,
)
from asyncipc.wire.decoding import each_message
from asyncipc.wire.encoding import Flattener, by_type
from asyncipc.wire.paths import PathError, describe
from asyncipc.wire.values import ATTACHMENT, BY_NAME, MAX_EXTENSION_DEPTH, Extension, ValueType

__all__ = ["JSON"]


class JSON:
    """JSON on the wire; the same values as in MessagePack, a few times slower.

    :param extensions: types of your own; both sides must have the same
    :param attach_above: buffers of at least this many bytes travel beside the envelope
    :raises ValueError: two extensions share a code or a class, or ``attach_above`` is not positive
    """

    name: str = "json"
    leading: bytes = b"["

    def __init__(
        self, extensions: Sequence[Extension] = (), *, attach_above: int = ATTACH_ABOVE
    ) -> None:
        self._by_type = by_type(extensions)
        self._by_code = {extension.code: extension for extension in extensions}
        self._attach_above = check_attach_above(attach_above)

    def encode(self, message: list[Any], attachments: list[Attachment]) -> bytes:
        """See `Codec.encode`."""
        before = len(attachments)
        flattener = _Flattener(
            attachments,
            extensions=self._by_type,
            trusted=_Flattener.THOROUGH,
            attach_above=self._attach_above,
        )
        try:
            return _to_text(flattener.flat(message)).encode()
        except PathError as fault:
            reason, cause = fault.text(message), fault.__cause__
        except RecursionError:
            reason, cause = "the message is nested too deeply", None
        del attachments[before:]
        raise EncodeError(reason) from cause

    def join(self, messages: list[bytes]) -> bytes:
        """See `Codec.join`."""
        return b"[" + b",".join(messages) + b"]"

    def decode(self, envelope: Buffer, attachments: Sequence[Attached] = ()) -> list[Any]:
        """See `Codec.decode`."""
        try:
            text = str(envelope, "utf-8")
            raw = _from_text(text)
            if "\\u" in text:
                # An escape can smuggle in half a surrogate pair, which is no text.
                _to_text(raw).encode()
        except Exception as error:
            raise DecodeError(f"no JSON: {describe(error)}") from error
        if '"$' not in text and "\\u" not in text:
            return each_message(raw)
        return each_message(raw, _Reviver(self._by_code, Attachments(attachments)).revive)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("an object has the same key twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_from_text: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
_to_text: Final = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode

_MAX_NUMBER: Final = 2**53 - 1


class _Flattener(Flattener):
    """Writes what JSON does not know as objects with one key."""

    THOROUGH: ClassVar = frozenset({type(None), bool})

    def wrap(self, row: ValueType, payload: Any) -> Any:
        return {f"${row.name}": payload}

    def wrap_extension(self, code: int, payload: Any) -> Any:
        return {"$ext": [code, payload]}

    def flat_dict(self, value: dict[Any, Any]) -> Any:
        pairs, plain = [], True
        self.enter()
        try:
            for key, item in value.items():
                plain = plain and type(key) is str and not key.startswith("$")
                new_key = self.key(key)
                try:
                    pairs.append([new_key, self.flat(item)])
                except PathError as fault:
                    fault.inside(key)
                    raise
        finally:
            self.leave()
        return dict(pairs) if plain else {"$dict": pairs}

    def flat_int(self, value: int) -> Any:
        return value if abs(value) <= _MAX_NUMBER else self.big_int(value)

    def flat_float(self, value: float) -> Any:
        return value if math.isfinite(value) else {"$float": repr(value)}

    def flat_bytes(self, value: bytes) -> Any:
        return {"$bytes": binascii.b2a_base64(value, newline=False).decode("ascii")}


class _Reviver:
    """Makes the objects of one envelope out of what the JSON parser left."""

    def __init__(self, extensions: Mapping[int, Extension], attachments: Attachments) -> None:
        self._extensions = extensions
        self._attachments = attachments
        self._nesting = 0

    def revive(self, raw: Any) -> Any:
        """A value with all escapes in it undone; raises `PathError`."""
        if type(raw) is list:
            items: Any = enumerate(raw)
        elif type(raw) is not dict:
            return raw
        elif any(key.startswith("$") for key in raw):
            self._nesting += 1
            try:
                return self._escaped(raw)
            finally:
                self._nesting -= 1
        else:
            items = raw.items()
        revived = raw.copy()
        for step, item in items:
            try:
                revived[step] = self.revive(item)
            except PathError as fault:
                fault.inside(step)
                raise
        return revived

    def _escaped(self, raw: dict[str, Any]) -> Any:
        key, payload = next(iter(raw.items()))
        if self._nesting > MAX_EXTENSION_DEPTH:
            raise PathError(f"escapes nested more than {MAX_EXTENSION_DEPTH} levels deep")
        if len(raw) > 1:
            raise PathError("an object with a key that begins with '$' and other keys")
        try:
            return self._make(key.removeprefix("$"), payload)
        except (PathError, AttachmentError):
            raise
        except Exception as error:  # code of the user's class or extension may run here
            raise PathError(f"{key}: {describe(error)}") from error

    def _make(self, name: str, payload: Any) -> Any:
        payload = self.revive(payload)
        match name:
            case "bytes":
                return binascii.a2b_base64(payload, strict_mode=True)
            case "float":
                return _FLOATS[payload]
            case "dict":
                return dict(iter(payload))  # only pairs will do, no map
            case "ext":
                code, content = payload
                return self._extensions[code].decode(content)
            case ATTACHMENT.name:
                return self._attachments.take(payload)
            case _:
                return BY_NAME[name].decode(payload)


_FLOATS: Final = {repr(value): value for value in (math.nan, math.inf, -math.inf)}
