"""The kinds of messages, the names of their fields, and what each field may hold.

A message is an array ``[kind, field, field, ...]``. ``docs/protocol.md`` is the normative text;
this module is the table that the code and that page share.

Kinds are split in two ranges so that versions can meet. Below `FIRST_IGNORABLE` a kind is
*critical*: field 1 of an unknown one is the id of a call, and it is answered with a fault. From
there on a kind is *ignorable*: an unknown one is skipped. Fields behind those listed are ignored.

Ids: both ends count their own calls from 1. On the wire a call's number is shifted left by one
and the lowest bit tells whose call it is: 0 in messages from the side that made the request, 1 in
messages from the side that serves it.

Layer 1. Above: the session. Below: errors.
"""

import enum
from collections.abc import Callable
from typing import Any, Final

from asyncipc.errors import RemoteProtocolError

__all__ = [
    "AUTH",
    "BEGIN",
    "CANCEL",
    "CREDIT",
    "DESCRIPTORS",
    "END",
    "EXTEND",
    "FAULT",
    "FIELD_NAMES",
    "FIRST_IGNORABLE",
    "GOODBYE",
    "HELLO",
    "ITEMS",
    "MEMORY",
    "NOTIFY",
    "PART",
    "PING",
    "PONG",
    "PROGRESS",
    "RELEASE",
    "REPLY",
    "REQUEST",
    "RETRACT",
    "STOP",
    "GoodbyeCode",
    "check_fields",
    "shown",
]

HELLO: Final = 0
AUTH: Final = 1
REQUEST: Final = 2
REPLY: Final = 3
FAULT: Final = 4
NOTIFY: Final = 5
CANCEL: Final = 6
ITEMS: Final = 7
END: Final = 8
BEGIN: Final = 9
PART: Final = 10
RETRACT: Final = 11
GOODBYE: Final = 12
CREDIT: Final = 13
DESCRIPTORS: Final = 14
MEMORY: Final = 15
RELEASE: Final = 16

FIRST_IGNORABLE: Final = 64
PROGRESS: Final = 64
PING: Final = 65
PONG: Final = 66
EXTEND: Final = 67
STOP: Final = 68


class GoodbyeCode(enum.IntEnum):
    """Why a side ends the session; an unknown number counts as `PROTOCOL_ERROR`."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    UNSUPPORTED = 2
    AUTHENTICATION = 3
    OVERLOADED = 4


# Characters, or bytes, of a value that are shown in an error.
MAX_SHOWN: Final = 60

Check = Callable[[Any], bool]


def _is_id(value: Any) -> bool:
    return value.__class__ is int and 0 < value < 2**63


def _is_size(value: Any) -> bool:
    return value.__class__ is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return value.__class__ is str


def _is_binary(value: Any) -> bool:
    return value.__class__ is bytes


def _is_map(value: Any) -> bool:
    return value.__class__ is dict


def _is_optional_map(value: Any) -> bool:
    return value is None or value.__class__ is dict


def _is_number(value: Any) -> bool:
    return value.__class__ is float or (value.__class__ is int and -(2**63) <= value < 2**64)


def _is_optional_number(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_seconds(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value < float("inf"))


def _is_extension(value: Any) -> bool:
    return value is not None and _is_seconds(value)


def _is_optional_text(value: Any) -> bool:
    return value is None or value.__class__ is str


def _is_sizes(value: Any) -> bool:
    return (
        value.__class__ is list
        and {int} == set(map(type, value))
        and min(value) >= 0
        and max(value) < 2**63
    )


def _is_list(value: Any) -> bool:
    return value.__class__ is list


def _is_segments(value: Any) -> bool:
    return value.__class__ is list and bool(value) and all(map(_is_segment, value))


def _is_segment(value: Any) -> bool:
    """Its length; or, where it stands beside the transfer, what ``docs/protocol.md`` says."""
    return value is None or _is_size(value) or (_is_sizes(value) and len(value) in (1, 4))


def _is_optional_region(value: Any) -> bool:
    return value is None or (_is_sizes(value) and len(value) == 4)


def _is_anything(_value: Any) -> bool:
    return True


# Of a field: its name, check, what is expected, may it be left out.
_Field = tuple[str, Check, str, bool]


def _id(name: str) -> _Field:
    return name, _is_id, "an integer from 1 below 2**63", False


def _size(name: str) -> _Field:
    return name, _is_size, "an integer from 0 below 2**63", False


# What params hold is looked at where they meet a handler, which can answer.
# kind -> its name and its fields, from 1 on.
_FIELDS: Final[dict[int, tuple[str, tuple[_Field, ...]]]] = {
    HELLO: ("hello", (("parameters", _is_map, "a map", False),)),
    AUTH: ("auth", (("proof", _is_binary, "binary", False),)),
    REQUEST: (
        "request",
        (
            _id("id"),
            ("method", _is_text, "a string", False),
            ("params", _is_anything, "nil, an array or a map", True),
            ("timeout", _is_seconds, "nil or seconds from 0", True),
            ("metadata", _is_optional_map, "nil or a map", True),
        ),
    ),
    REPLY: (
        "reply",
        (
            _id("id"),
            ("result", _is_anything, "any value", False),
        ),
    ),
    FAULT: (
        "fault",
        (
            _id("id"),
            _size("code"),
            ("message", _is_text, "a string", False),
            ("details", _is_optional_map, "nil or a map", True),
        ),
    ),
    NOTIFY: (
        "notify",
        (
            ("method", _is_text, "a string", False),
            ("params", _is_anything, "nil, an array or a map", True),
            ("metadata", _is_optional_map, "nil or a map", True),
        ),
    ),
    CANCEL: ("cancel", (_id("id"),)),
    ITEMS: (
        "items",
        (
            _id("id"),
            ("items", _is_list, "an array", False),
        ),
    ),
    END: ("end", (_id("id"),)),
    BEGIN: (
        "begin",
        (
            _id("transfer"),
            ("lengths", _is_segments, "an array of sizes", False),
        ),
    ),
    PART: (
        "part",
        (
            _id("transfer"),
            ("region", _is_optional_region, "nil or an array of four sizes", True),
        ),
    ),
    RETRACT: ("retract", (_id("transfer"),)),
    GOODBYE: (
        "goodbye",
        (
            _size("last_id"),
            _size("code"),
            ("reason", _is_text, "a string", False),
        ),
    ),
    CREDIT: (
        "credit",
        (
            _size("stream"),
            _size("count"),
        ),
    ),
    DESCRIPTORS: (
        "descriptors",
        (_size("count"),),
    ),
    MEMORY: (
        "memory",
        (
            _id("segment"),
            _id("size"),
            ("memfd", _is_anything, "a file descriptor", False),
        ),
    ),
    RELEASE: (
        "release",
        (
            _id("segment"),
            ("regions", _is_sizes, "an array of sizes", False),
        ),
    ),
    PROGRESS: (
        "progress",
        (
            _id("id"),
            ("done", _is_number, "a number", False),
            ("total", _is_optional_number, "nil or a number", True),
            ("message", _is_optional_text, "nil or a string", True),
        ),
    ),
    PING: ("ping", (_size("token"),)),
    PONG: ("pong", (_size("token"),)),
    EXTEND: (
        "extend",
        (
            _id("id"),
            ("seconds", _is_extension, "seconds from 0", False),
        ),
    ),
    STOP: ("stop", (_id("id"),)),
}

FIELD_NAMES: Final[dict[int, tuple[str, ...]]] = {
    kind: tuple(name for name, *_ in fields) for kind, (_, fields) in _FIELDS.items()
}


def check_fields(message: list[Any]) -> None:
    """Check a message of a known kind against the table.

    :raises RemoteProtocolError: naming the kind and the field, what was expected and what came
    """
    kind_name, fields = _FIELDS[message[0]]
    for position, (name, check, expected, optional) in enumerate(fields, 1):
        if position >= len(message):
            if optional:
                return
            raise RemoteProtocolError(f"the other side left out the {name} of its {kind_name}")
        if not check(message[position]):
            raise RemoteProtocolError(
                f"the {name} of the other side's {kind_name} should be {expected}, "
                f"not {shown(message[position])}"
            )


def shown(value: Any) -> str:
    """Something that came, for an error: a bounded text, made without running code of its class.

    (Even an int can refuse to be printed: one of more than 4300 digits does.)
    """
    if value is None or value.__class__ in (bool, float):
        return repr(value)
    if value.__class__ is int:
        return repr(value) if abs(value) < 2**64 else f"<int of {value.bit_length()} bits>"
    if value.__class__ in (str, bytes):
        return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}..."
    name = value.__class__.__name__
    return f"<{name} of {len(value)}>" if value.__class__ in (list, dict) else f"<{name}>"
