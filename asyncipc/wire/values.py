"""The values that travel as extension values: one table, written once, read by every codec.

An extension value is a code, a name and a payload. The payload is itself one value in the same
codec; it may hold extension values again, at most `MAX_EXTENSION_DEPTH` deep. MessagePack writes
``ext(code, packed payload)``, JSON ``{"$name": payload}``.

====  ============  ====================================================================
code  name          payload
====  ============  ====================================================================
64    attachment    ``[index, kind]``; kind is ``"bytes"``, ``"bytearray"``, ``"memoryview"``,
                    ``"array"``, ``"descriptor"``
65    bytearray     binary
66    memoryview    binary (arrives read-only, as flat bytes)
67    tuple         array of the items
68    set           array of the items, in any order
69    frozenset     array of the items, in any order
70    int           text, hexadecimal, lower case, ``-`` in front of a negative one; for integers
                    that the codec has no number for; at most `MAX_DIGITS` characters
71    datetime      text, ISO 8601, with the offset from UTC if it has one; or, where that cannot
                    say it all, ``[text without offset, zone, fold]``: zone is nil, the name of a
                    time zone, or the offset from UTC in microseconds, an integer; fold is 1 for
                    the second of two equal times when clocks are set back, else 0
72    date          text, ISO 8601 (``2024-05-01``)
73    time          like datetime
74    timedelta     ``[days, seconds, microseconds]``, integers
75    decimal       text, at most `MAX_DIGITS` characters (``-1.50``, ``1E+3``, ``NaN``)
76    uuid          text (``12345678-1234-5678-1234-567812345678``)
77    path          ``[kind, path]``; kind is ``"posix"``, ``"windows"``, ``"pure-posix"``,
                    ``"pure-windows"``; path is text, or binary where it is no valid Unicode
78    complex       ``[real, imaginary]``, floats
79    range         ``[start, stop, step]``, integers
80    enum          ``[wire name, member name]``; for a Flag ``[wire name, integer]``
81    message       ``[wire name, {field: value}]``; a registered type (`asyncipc.wire.types`)
82    array         ``[dtype, shape, order, binary]``; a numpy array (`asyncipc.wire.arrays`)
====  ============  ====================================================================

Codes 0 to 63 belong to users (`Extension`), 83 to 127 are reserved. The wire name of an Enum that
is not registered is ``module.qualname``; it is looked for in modules that are imported already.

Layer 1. Above: codecs. Below: types, attachments, arrays.
"""

import datetime
import decimal
import enum
import pathlib
import re
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from asyncipc.wire.arrays import describe_array, make_array
from asyncipc.wire.registry import registered, registration, wire_name

__all__ = [
    "ARRAY",
    "ATTACHMENT",
    "BY_CLASS",
    "BY_CODE",
    "BY_NAME",
    "ENUM",
    "INT",
    "MAX_DIGITS",
    "MAX_EXTENSION_DEPTH",
    "MESSAGE",
    "Extension",
    "ValueType",
]

# Unpacking a payload inside a payload takes 41 KB of the C stack each time (msgpack keeps its own
# stack there); a thread has 8 MB, and the event loop may run in one.
MAX_EXTENSION_DEPTH: Final = 64

# A million bits. Making such a number is quick, but arithmetic and printing are not linear.
MAX_DIGITS: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Extension:
    """A type of the user's own, for ``MessagePack(extensions=[...])`` and ``JSON(extensions=...)``.

    It belongs to a codec and not to the process: there are only 64 codes, and which one means
    what is a matter between the two ends of a session, not between all libraries in a process.

    :ivar code: 0 to 63; the same on both sides
    :ivar type: the class; its subclasses are not included
    :ivar encode: makes the payload: any value that can be sent (large buffers in it are attached)
    :ivar decode: makes the object from the payload; what it raises fails that one message
    """

    code: int
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if type(self.code) is not int or not 0 <= self.code <= 63:
            raise ValueError(f"the code of an extension is 0 to 63, not {self.code!r}")
        if self.type in _NATIVE or self.type in BY_CLASS:
            raise ValueError(f"{self.type.__qualname__} can be sent without an extension")


@dataclass(frozen=True, slots=True)
class ValueType:
    """A row of the table; ``encode`` makes the payload from a value, ``decode`` the reverse."""

    code: int
    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_NATIVE: Final = frozenset({type(None), bool, int, float, str, bytes, list, dict})

Moment = datetime.datetime | datetime.time


def _typed(payload: Any, *kinds: type) -> Any:
    """The payload, if it is of one of these types; never an instance of a subclass."""
    if type(payload) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"expected {names}, got {type(payload).__name__}")
    return payload


def _items(payload: Any, *kinds: type | tuple[type, ...]) -> Any:
    """The payload, if it is an array of as many items as kinds, each of its kind."""
    if len(_typed(payload, list)) != len(kinds):
        raise ValueError(f"expected an array of {len(kinds)}, got one of {len(payload)}")
    for item, kind in zip(payload, kinds, strict=True):
        _typed(item, *(kind if isinstance(kind, tuple) else (kind,)))
    return payload


def _short(text: str) -> str:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits; at most {MAX_DIGITS} can be sent")
    return text


_HEXADECIMAL: Final = re.compile(r"-?[0-9a-f]+", re.ASCII).fullmatch


def _encode_int(value: int) -> str:
    if value.bit_length() > 4 * MAX_DIGITS - 4:
        raise ValueError(f"an int of {value.bit_length()} bits; at most {4 * MAX_DIGITS - 4}")
    return format(value, "x")


def _decode_int(payload: Any) -> int:
    if not _HEXADECIMAL(_short(_typed(payload, str))):
        raise ValueError(f"expected hexadecimal digits, got {payload[:40]!r}")
    return int(payload, 16)


_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_MINUTE: Final = datetime.timedelta(minutes=1)


def _encode_moment(value: Moment) -> str | list[Any]:
    zone: Any = value.tzinfo
    if zone is None and not value.fold:
        return value.isoformat()
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        # ISO 8601 knows whole minutes only, and Python 3.11 misreads fractions of a second.
        if not value.fold and not offset % _MINUTE:
            return value.isoformat()
        zone = offset // _MICROSECOND
    elif type(zone) is zoneinfo.ZoneInfo and zone.key:
        zone = zone.key
    elif zone is not None:
        raise TypeError(
            f"a {type(value).__name__} with a tzinfo of type {type(zone).__qualname__}: "
            "use zoneinfo.ZoneInfo with a key, or datetime.timezone"
        )
    return [value.replace(tzinfo=None).isoformat(), zone, value.fold]


def _moment_decoder(kind: type[Moment]) -> Callable[[Any], Moment]:
    parse: Callable[[str], Moment] = kind.fromisoformat

    def decode(payload: Any) -> Moment:
        if type(payload) is str:
            return parse(payload)
        text, zone, fold = _items(payload, str, (str, int, type(None)), int)
        value = parse(text)
        if value.tzinfo is not None:
            raise ValueError(f"an offset from UTC and a time zone as well: {payload!r}")
        if type(zone) is str:
            zone = zoneinfo.ZoneInfo(zone)
        elif type(zone) is int:
            zone = datetime.timezone(datetime.timedelta(microseconds=zone))
        return value.replace(tzinfo=zone, fold=fold)

    return decode


def _encode_timedelta(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _decode_timedelta(payload: Any) -> datetime.timedelta:
    return datetime.timedelta(*_items(payload, int, int, int))


_PATHS: Final[dict[str, type[pathlib.PurePath]]] = {
    "posix": pathlib.PosixPath,
    "windows": pathlib.WindowsPath,
    "pure-posix": pathlib.PurePosixPath,
    "pure-windows": pathlib.PureWindowsPath,
}
_PATH_KINDS: Final = {cls: kind for kind, cls in _PATHS.items()}


def _encode_path(value: pathlib.PurePath) -> list[Any]:
    kind, text = _PATH_KINDS[type(value)], str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # file names need not be text; Python keeps their bytes like this
        return [kind, text.encode("utf-8", "surrogateescape")]
    return [kind, text]


def _decode_path(payload: Any) -> pathlib.PurePath:
    kind, text = _items(payload, str, (str, bytes))
    if kind not in _PATHS:
        raise ValueError(f"no kind of path: {kind!r}")
    return _PATHS[kind](text if type(text) is str else text.decode("utf-8", "surrogateescape"))


def _decode_complex(payload: Any) -> complex:
    return complex(*_items(payload, float, float))


def _encode_range(value: range) -> list[int]:
    return [value.start, value.stop, value.step]


def _decode_range(payload: Any) -> range:
    return range(*_items(payload, int, int, int))


def _encode_enum(member: enum.Enum) -> list[Any]:
    cls = type(member)
    name = wire_name(cls) or f"{cls.__module__}.{cls.__qualname__}"
    if _find_enum(name) is not cls:
        raise TypeError(
            f"the Enum {name} cannot be found by that name: define it at the top of its module, "
            "or register it with @message"
        )
    if isinstance(member, enum.Flag):
        return [name, member.value]
    if cls.__members__.get(member.name) is not member:
        raise TypeError(f"{member!r} is no named member of {name}")
    return [name, member.name]


def _decode_enum(payload: Any) -> enum.Enum:
    name, member = _items(payload, str, (str, int))
    cls = _find_enum(name)
    if cls is None:
        raise LookupError(f"no Enum {name!r} is registered or imported here")
    if issubclass(cls, enum.Flag):
        return cls(_typed(member, int))
    if member not in cls.__members__:
        raise LookupError(f"{name} has no member {member!r}")
    return cls.__members__[member]


def _find_enum(name: str) -> type[enum.Enum] | None:
    """The Enum of a wire name. Imports nothing, and runs no module's ``__getattr__`` either."""
    found: Any = registered(name)
    if found is None:
        parts = name.split(".", _MAX_NAME_PARTS)
        for length in range(len(parts) - 1, 0, -1):
            found = sys.modules.get(".".join(parts[:length]))
            if found is not None:
                for part in parts[length:]:
                    found = _names_in(found).get(part)
                break
    return found if isinstance(found, type) and issubclass(found, enum.Enum) else None


def _names_in(holder: object) -> Mapping[str, Any]:
    """What a module or class defines, past any code of its own that answers for attributes."""
    try:
        names = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return {}
    return names if isinstance(names, Mapping) else {}


_MAX_NAME_PARTS: Final = 64


def _encode_message(value: Any) -> list[Any]:
    entry = registration(type(value))
    assert entry is not None, "the caller looked"
    return [entry.name, entry.disassemble(value)]


def _decode_message(payload: Any) -> Any:
    name, fields = _typed(payload, list)
    cls = registered(_typed(name, str))
    entry = None if cls is None else registration(cls)
    if entry is None:
        raise LookupError(f"no type is registered here as {name!r}")
    return entry.assemble(_typed(fields, dict))


def _decode_attachment(_payload: Any) -> Any:
    raise NotImplementedError("placeholders are filled by the codec")


def _decode_array(payload: Any) -> Any:
    *head, data = _items(payload, (str, list), list, str, (bytes, memoryview))
    return make_array(head, bytearray(data) if type(data) is bytes else data)


def _binary(payload: Any) -> Any:
    return _typed(payload, bytes)


def _array(payload: Any) -> Any:
    return _typed(payload, list)


ATTACHMENT: Final = ValueType(64, "attachment", list, _decode_attachment)
INT: Final = ValueType(70, "int", _encode_int, _decode_int)
ENUM: Final = ValueType(80, "enum", _encode_enum, _decode_enum)
MESSAGE: Final = ValueType(81, "message", _encode_message, _decode_message)
ARRAY: Final = ValueType(82, "array", describe_array, _decode_array)

_PATH: Final = ValueType(77, "path", _encode_path, _decode_path)

# The rows whose values are known by their exact class.
BY_CLASS: Final[dict[type, ValueType]] = {
    bytearray: ValueType(65, "bytearray", bytes, lambda payload: bytearray(_binary(payload))),
    memoryview: ValueType(66, "memoryview", bytes, lambda payload: memoryview(_binary(payload))),
    tuple: ValueType(67, "tuple", list, lambda payload: tuple(_array(payload))),
    set: ValueType(68, "set", list, lambda payload: set(_array(payload))),
    frozenset: ValueType(69, "frozenset", list, lambda payload: frozenset(_array(payload))),
    datetime.datetime: ValueType(
        71, "datetime", _encode_moment, _moment_decoder(datetime.datetime)
    ),
    datetime.date: ValueType(
        72,
        "date",
        datetime.date.isoformat,
        lambda payload: datetime.date.fromisoformat(_typed(payload, str)),
    ),
    datetime.time: ValueType(73, "time", _encode_moment, _moment_decoder(datetime.time)),
    datetime.timedelta: ValueType(74, "timedelta", _encode_timedelta, _decode_timedelta),
    decimal.Decimal: ValueType(
        75,
        "decimal",
        lambda value: _short(str(value)),
        lambda payload: decimal.Decimal(_short(_typed(payload, str))),
    ),
    uuid.UUID: ValueType(76, "uuid", str, lambda payload: uuid.UUID(_typed(payload, str))),
    **dict.fromkeys(_PATH_KINDS, _PATH),
    complex: ValueType(78, "complex", lambda value: [value.real, value.imag], _decode_complex),
    range: ValueType(79, "range", _encode_range, _decode_range),
}

BY_CODE: Final[dict[int, ValueType]] = {
    row.code: row for row in (ATTACHMENT, INT, ENUM, MESSAGE, ARRAY, *BY_CLASS.values())
}
BY_NAME: Final[dict[str, ValueType]] = {row.name: row for row in BY_CODE.values()}
