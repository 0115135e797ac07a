"""The library's codecs: exact values, attachments, paths in errors, limits, hostile input."""

import array
import collections
import contextlib
import ctypes
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import math
import pathlib
import sys
import threading
import tracemalloc
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncipc import JSON, Codec, Extension, MessagePack, message
from asyncipc.errors import DecodeError, EncodeError
from asyncipc.wire import msgpack_values
from asyncipc.wire.attachments import Buffer, Writable
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.values import MAX_DIGITS, MAX_EXTENSION_DEPTH

REQUEST, REPLY, NOTIFY = 2, 3, 5

CODECS: list[Codec] = [MessagePack(), JSON()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
msgpack_only = MessagePack()
json_only = JSON()


class Shade(enum.Enum):
    DARK = object()  # members travel by name, so a value need not be sendable
    LIGHT = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    HELLO = "hello"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Outer:
    class Inner(enum.Enum):
        ONE = 1


@message
@dataclass
class Node:
    value: Any
    children: list[Any] = dataclasses.field(default_factory=list)


@message
@dataclass(frozen=True)
class Key:
    value: Any


def encoded(codec: Codec, message: list[Any]) -> tuple[bytes, list[bytes]]:
    """An envelope and its attachments as they arrive."""
    attachments: list[Buffer] = []
    envelope = codec.encode(message, attachments)
    return envelope, [bytes(attached) for attached in attachments]


def over(codec: Codec, value: Any) -> Any:
    """The value as it arrives."""
    return received(codec.decode(*encoded(codec, [REPLY, 1, value])))


def received(reply: list[Any]) -> Any:
    if isinstance(reply, BrokenMessage):
        raise reply.error
    return reply[2]


def seen(data: bytes) -> memoryview:
    return memoryview(data)


def exactly(value: Any) -> Any:  # noqa: PLR0911
    """A form that is equal only for values that are equal, of the same types, all the way down."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [exactly(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted((exactly(item) for item in value), key=repr)
    if kind is dict:
        return kind, [(exactly(key), exactly(item)) for key, item in value.items()]
    if kind is memoryview:
        return kind, value.readonly, value.format, bytes(value)
    if kind in (Node, Key):
        return kind, exactly(vars(value))
    if kind in (datetime.datetime, datetime.time):
        return kind, repr(value), type(value.tzinfo), value.fold
    if isinstance(value, enum.Enum):
        return kind, value.name, id(value)
    return kind, repr(value)  # NaN and -0.0 included


offsets = st.timedeltas(
    datetime.timedelta(hours=-23, minutes=-59), datetime.timedelta(hours=23, minutes=59)
).map(datetime.timezone)
zones = st.none() | offsets | st.just(datetime.UTC) | st.timezones()
folds = st.integers(0, 1)
binaries = st.binary(max_size=20)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**300),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**53, -(2**53), 2**53 - 1]),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["$", "$bytes", "$dict", "\u0104\u0105", "\x85"]),
    binaries,
    st.builds(lambda when, fold: when.replace(fold=fold), st.datetimes(timezones=zones), folds),
    st.builds(lambda when, fold: when.replace(fold=fold), st.times(timezones=zones), folds),
    st.dates(),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),  # cannot be a key
    st.uuids(),
    st.complex_numbers(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 2**80)),
    st.text(max_size=10).map(pathlib.PurePosixPath),
    st.text(max_size=10).map(pathlib.PureWindowsPath),
    st.text(max_size=10).map(pathlib.Path),
    st.sampled_from([*Shade, *Level, *Word, *Outer.Inner, Access.READ | Access.WRITE, Access(0)]),
)
keys = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Key, inner),
    ),
    max_leaves=3,
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | binaries.map(bytearray) | binaries.map(seen),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=3),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.builds(Node, inner, st.lists(inner, max_size=3)),
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("attach_above", [1, 8, 16 * 1024])
@pytest.mark.parametrize("make", [MessagePack, JSON])
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(value=values)
@example(value=decimal.Decimal("sNaN123"))
@example(value=datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(0, 1, 5))))
@example(value=datetime.time(tzinfo=datetime.timezone(datetime.timedelta(0, 0, 1))))
@example(value=datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("CET")))
@example(value=[bytearray(20_000), {"a": (memoryview(bytes(20_000)), bytes(20_000))}])
def test_values_arrive_equal_and_of_the_same_types(
    make: Callable[..., Codec], attach_above: int, value: Any
) -> None:
    codec = make(attach_above=attach_above)
    request = [REQUEST, 1, "m", {"x": value}, None]
    for payload in (request, [REPLY, 1, value], [NOTIFY, "m", [value]]):
        arrived = codec.decode(*encoded(codec, payload))
        assert type(arrived) is list
        assert exactly(arrived) == exactly(payload)


@both
def test_a_path_whose_name_is_no_text_arrives(codec: Codec) -> None:
    path = pathlib.Path(b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert over(codec, path) == path


# What cannot be sent.


class Text(str):
    __slots__ = ()


class Corner(typing.NamedTuple):
    x: int


def circle() -> Any:
    items: list[Any] = []
    items.append({"again": (items,)})
    return items


def deep(levels: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = None
    for _ in range(levels):
        value = wrap(value)
    return value


@both
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (print, "a value of type builtin_function_or_method cannot be sent: put @message"),
        (
            Text("a"),
            r"Text is a subclass of str and would not arrive as itself: convert it with str",
        ),
        (Corner(1), "Corner is a subclass of tuple .*: put @message on the class"),
        (collections.OrderedDict(a=1), r"OrderedDict is a subclass of dict .* with dict\(\.\.\.\)"),
        (collections.Counter("a"), "is a subclass of dict"),
        (array.array("b"), r"array\.array cannot be sent"),
        ("\ud800", r"'\\ud800' is no valid Unicode text"),
        (datetime.datetime(2024, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {})()), "zoneinfo"),
        (enum.Enum("Local", "A").A, "cannot be found by that name"),  # type: ignore[attr-defined]
        (1 << 4 * MAX_DIGITS, "an int of 1048577 bits; at most"),
        (decimal.Decimal((0, (1,) * (MAX_DIGITS + 1), 0)), "digits; at most"),
        (circle(), "levels deep"),
        (deep(600), "levels deep, or contains itself"),
        (deep(MAX_EXTENSION_DEPTH + 1, lambda inner: (inner,)), "objects nested more than 64"),
        (deep(5000), "levels deep|too deeply"),
    ],
    ids=[
        "function",
        "str-subclass",
        "namedtuple",
        "OrderedDict",
        "Counter",
        "array",
        "surrogate",
        "tzinfo",
        "local-enum",
        "int",
        "decimal",
        "circle",
        "deep",
        "deep-tuples",
        "very-deep",
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_path(
    codec: Codec, value: Any, reason: str
) -> None:
    attachments: list[Buffer] = [b"of another message"]
    params = {"first": bytes(100_000), "items": [1, "two", (None, {"when": value})]}
    with pytest.raises(EncodeError, match=rf"^params\.items\[2\]\[1\]\.when.*: .*{reason}"):
        codec.encode([REQUEST, 1, "m", params, None], attachments)
    assert attachments == [b"of another message"]


@both
@pytest.mark.parametrize(
    ("message", "path"),
    [
        ([REQUEST, 1, "m", [print]], "params[0]"),
        ([REQUEST, 1, "m", {"a b": print}], "params['a b']"),
        ([REQUEST, 1, "m", {3: {b"k": print}}], "params[3][b'k']"),
        ([REQUEST, 1, "m", {"x" * 99: print}], f"params.{'x' * 99}"),
        ([REQUEST, 1, "m", {"-" * 99: print}], f"params['{'-' * 36}...]"),
        ([REQUEST, 1, "\ud800", {}], "method"),
        ([REQUEST, 1, "m", {}, None, {"k": print}], "metadata.k"),
        ([REPLY, 1, print], "result"),
        ([REPLY, 1, Node(1, [Node(print)])], "result.children[0].value"),
        ([NOTIFY, "m", [1, {print}]], "params[1][0]"),
        ([NOTIFY, "m", {(print,): 1}], "params"),
        ([250, print], "[1]"),
        ([print], "[0]"),
    ],
    ids=repr,
)
def test_the_path_names_the_field(codec: Codec, message: list[Any], path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.encode(message, [])
    assert str(caught.value).split(": ")[0] == path


@both
def test_a_key_that_cannot_be_sent_is_shown(codec: Codec) -> None:
    with pytest.raises(EncodeError, match=r"^params: the key \(<built-in.*cannot be sent"):
        codec.encode([NOTIFY, "m", {(print,): 1}], [])
    with pytest.raises(EncodeError, match=r"^params: the key .*no valid Unicode"):
        codec.encode([NOTIFY, "m", {"\ud800": 1}], [])


@both
def test_a_released_memoryview_is_refused(codec: Codec) -> None:
    view = memoryview(b"x")
    view.release()
    with pytest.raises(EncodeError, match="released"):
        codec.encode([REPLY, 1, view], [])


@both
def test_depths_that_every_receiver_takes(codec: Codec) -> None:
    for value in (deep(250), deep(250, lambda inner: {"k": inner})):
        assert over(codec, value) == value
        assert over(codec, [value, {1}]) == [value, {1}]
    value = deep(MAX_EXTENSION_DEPTH, lambda inner: (inner,))
    assert over(codec, value) == value


# Attachments.


@pytest.mark.parametrize("make", [MessagePack, JSON])
@pytest.mark.parametrize(
    "place",
    [
        lambda bulk: bulk,
        lambda bulk: {"data": bulk},
        lambda bulk: ["name", bulk],
        lambda bulk: [1, 2, 3, 4, 5, 6, 7, 8, 9, bulk],
        lambda bulk: {"deep": [{"data": ({"x": bulk},)}]},
        Node,
        lambda bulk: {"list": [Node(Node(bulk))]},
    ],
    ids=["itself", "params", "short-list", "long-list", "deep", "object", "objects"],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bulk_stands_beside_the_envelope_uncopied(
    make: Callable[..., Codec], place: Callable[[Any], Any], kind: Any
) -> None:
    codec = make(attach_above=1000)
    memory = bytes(range(256)) * 4
    small, large = kind(memory[:999]), kind(memory)
    attachments: list[Any] = []
    envelope = codec.encode([REPLY, 1, [place(small), place(large)]], attachments)
    assert len(attachments) == 1
    assert len(envelope) < 2000
    if kind is memoryview:
        assert attachments[0].obj is memory
    else:
        assert attachments[0] is large
    attached = [bytes(attachments[0])]
    arrived = received(codec.decode(envelope, attached))
    assert exactly(arrived) == exactly([place(small), place(large)])
    if kind is bytes and place(None) is None:
        assert arrived[1] is attached[0]


@pytest.mark.parametrize("size", [0, 10, 100_000])
@both
def test_a_writable_buffer_arrives_as_one(codec: Codec, size: int) -> None:
    buffer = memoryview(bytearray(range(256)) * 400)[:size]
    came = over(codec, {"at": [Writable(buffer)]})["at"][0]
    assert came == buffer
    assert not memoryview(came).readonly


@both
def test_attachments_count_from_what_the_list_holds(codec: Codec) -> None:
    first, second = bytes(20_000), bytearray(b"x" * 30_000)
    attachments: list[Any] = []
    envelope = codec.encode([REPLY, 1, [first, {second.__class__.__name__: second}]], attachments)
    assert attachments == [first, second]
    assert codec.decode(envelope, [first, bytes(second)])[2] == [first, {"bytearray": second}]


@both
@pytest.mark.parametrize(
    "view",
    [
        memoryview(bytes(40_000))[::2],
        memoryview(bytes(40_000)).cast("H"),
        memoryview(bytes(40_000)).cast("B", (200, 200)),
        memoryview(bytes(40_000)).cast("B", (200, 200))[:150],
        memoryview(b"ab" * 3)[::-1],
        memoryview(b""),
    ],
    ids=["strided", "format", "shape", "part", "reversed", "empty"],
)
def test_a_memoryview_of_any_shape_arrives_flat(codec: Codec, view: memoryview) -> None:
    arrived = over(codec, view)
    assert type(arrived) is memoryview
    assert arrived.readonly
    assert arrived.format == "B"
    assert bytes(arrived) == view.tobytes()


@both
def test_a_memoryview_of_a_foreign_format_arrives(codec: Codec) -> None:
    memory = (ctypes.c_int.__ctype_be__ * 10_000)()
    memory[1] = 5
    assert bytes(over(codec, memoryview(memory))) == bytes(memory)


@both
def test_placeholders_that_do_not_fit_are_decode_errors(codec: Codec) -> None:
    envelope, attached = encoded(codec, [REPLY, 1, [bytes(20_000), bytes(20_000)]])
    assert codec.decode(envelope, attached)[2] == attached
    with pytest.raises(DecodeError, match="attachment 1 does not exist; 1 came along"):
        codec.decode(envelope, attached[:1])
    with pytest.raises(DecodeError, match="attachment 0 does not exist; 0 came along"):
        codec.decode(envelope)
    twice = envelope.replace(b"\x92\x01\xa5bytes", b"\x92\x00\xa5bytes").replace(b"[1,", b"[0,")
    twice = twice.replace(b"[3,0,", b"[3,1,")
    with pytest.raises(DecodeError, match="attachment 0 is used twice"):
        codec.decode(twice, attached)
    kind = envelope.replace(b"bytes", b"nybbl")
    with pytest.raises(DecodeError, match=r"not \[index, kind\]"):
        codec.decode(kind, attached)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_threshold_that_is_none_is_refused(size: Any) -> None:
    for make in (MessagePack, JSON):
        with pytest.raises(ValueError, match="attach_above is a positive number"):
            make(attach_above=size)


# The user's own types.

fraction = Extension(
    5, Fraction, lambda value: [value.numerator, value.denominator], lambda pair: Fraction(*pair)
)


class Array:
    def __init__(self, data: Buffer) -> None:
        self.data = data


arrays = Extension(6, Array, lambda value: ("f8", value.data), lambda pair: Array(pair[1]))


@pytest.mark.parametrize("make", [MessagePack, JSON])
def test_extensions_travel_under_their_code(make: Callable[..., Codec]) -> None:
    codec = make(extensions=[fraction, arrays])
    value = {"f": Fraction(1, 2**70), "l": [(Fraction(1),)], Fraction(1, 3): 1}
    assert exactly(over(codec, value)) == exactly(value)
    envelope, attached = encoded(codec, [REPLY, 1, Array(bytes(20_000))])
    assert attached == [bytes(20_000)]
    assert received(codec.decode(envelope, attached)).data is attached[0]
    with pytest.raises(EncodeError, match=r"^result: .*Fraction cannot be sent"):
        make().encode([REPLY, 1, Fraction(1)], [])
    with pytest.raises(DecodeError, match="5"):
        received(make().decode(*encoded(codec, [REPLY, 1, Fraction(1)])))


@pytest.mark.parametrize("make", [MessagePack, JSON])
def test_an_extension_that_raises_fails_its_message_only(make: Callable[..., Codec]) -> None:
    def fail(_value: Any) -> Any:
        raise ZeroDivisionError("oh no")

    bad_encode = make(extensions=[Extension(1, Fraction, fail, fail)])
    with pytest.raises(EncodeError, match=r"^result\[0\]: oh no") as caught:
        bad_encode.encode([REPLY, 1, [Fraction(1)]], [])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    bad_decode = make(extensions=[Extension(1, Fraction, str, fail)])
    broken = bad_decode.decode(bad_decode.encode([REPLY, 1, [Fraction(1)]], []))
    assert isinstance(broken, BrokenMessage)
    assert broken[:2] == [REPLY, 1]
    assert "result[0]" in str(broken.error)
    assert "oh no" in str(broken.error)


@pytest.mark.parametrize("code", [-1, 64, 127, 1.0, True])
def test_codes_outside_the_users_range_are_refused(code: Any) -> None:
    with pytest.raises(ValueError, match="0 to 63"):
        Extension(code, Fraction, str, Fraction)


def test_extensions_must_not_collide() -> None:
    with pytest.raises(ValueError, match="without an extension"):
        Extension(1, uuid.UUID, str, uuid.UUID)
    other = Extension(5, Array, str, str)
    for make in (MessagePack, JSON):
        with pytest.raises(ValueError, match="share a code or a class"):
            make(extensions=[fraction, other])


# Values that cannot be understood here.


def ext(code: int, payload: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(payload))


BAD_PAYLOADS: list[tuple[str, int, Any]] = [
    ("bytearray", 65, "text"),
    ("memoryview", 66, None),
    ("tuple", 67, 5),
    ("tuple", 67, {}),
    ("set", 68, [[1]]),
    ("frozenset", 69, [{}]),
    ("int", 70, "0x10"),
    ("int", 70, "1_0"),
    ("int", 70, ""),
    ("int", 70, 5),
    ("int", 70, "f" * (MAX_DIGITS + 1)),
    ("datetime", 71, "yesterday"),
    ("datetime", 71, ["2024-01-01T00:00:00", "No/Where", 0]),
    ("datetime", 71, ["2024-01-01T00:00:00", "../../etc/passwd", 0]),
    ("datetime", 71, ["2024-01-01T00:00:00+01:00", "UTC", 0]),
    ("datetime", 71, ["2024-01-01T00:00:00", None, 7]),
    ("datetime", 71, ["2024-01-01T00:00:00", 86_400_000_000, 0]),
    ("datetime", 71, ["2024-01-01T00:00:00", 1.5, 0]),
    ("datetime", 71, []),
    ("date", 72, "2024-13-01"),
    ("time", 73, "25:00"),
    ("timedelta", 74, [1, 2]),
    ("timedelta", 74, [10**12, 0, 0]),
    ("timedelta", 74, [1.5, 0, 0]),
    ("decimal", 75, "one"),
    ("decimal", 75, 1.5),
    ("decimal", 75, "1" * (MAX_DIGITS + 1)),
    ("uuid", 76, "123"),
    ("path", 77, ["mac", "x"]),
    ("path", 77, ["windows", "x"]),
    ("path", 77, ["posix", 1]),
    ("complex", 78, [1.0, "2"]),
    ("range", 79, [0, 1, 0]),
    ("range", 79, [0, 1, True]),
    ("enum", 80, ["nowhere.Shade", "DARK"]),
    ("enum", 80, [f"{__name__}.Shade", "BRIGHT"]),
    ("enum", 80, [f"{__name__}.Node", "DARK"]),
    ("enum", 80, ["os.path.join", "DARK"]),
    ("enum", 80, [f"{__name__}.Access", "READ"]),
    ("enum", 80, [f"{__name__}.Access", 64]),
    ("enum", 80, ["", ""]),
    ("message", 81, ["app.Unknown", {}]),
    ("message", 81, [f"{__name__}.Node", {}]),
    ("message", 81, [f"{__name__}.Node", [1]]),
    ("message", 81, [f"{__name__}.Node"]),
    ("message", 81, [5, {}]),
]


@pytest.mark.parametrize(("name", "code", "payload"), BAD_PAYLOADS, ids=repr)
def test_a_bad_payload_breaks_its_message_and_no_other(name: str, code: int, payload: Any) -> None:
    if (
        name == "path"
        and payload[0] == "windows"
        and isinstance(pathlib.Path(), pathlib.WindowsPath)
    ):
        pytest.skip("that is a good path here")
    good = [REPLY, 1, {"tuple": (1,)}]
    bad = [REPLY, 2, {"a": [ext(code, payload)]}]
    packed = [msgpack_only.encode(good, []), msgpack.packb(bad)]
    text = [
        json_only.encode(good, []),
        json.dumps([REPLY, 2, {"a": [{f"${name}": payload}]}]).encode(),
    ]
    for codec, (whole, broken) in ((msgpack_only, packed), (json_only, text)):
        first, second, third = codec.decode(codec.join([whole, broken, whole]))
        assert first == third == good
        assert type(first) is type(third) is list
        assert isinstance(second, BrokenMessage)
        assert second[:2] == [REPLY, 2]
        assert str(second.error).startswith(
            f"result.a[0]: {'$' if codec is json_only else ''}{name}"
        )
        alone = codec.decode(broken)
        assert isinstance(alone, BrokenMessage)
        assert str(alone.error) == str(second.error)


def test_a_failure_inside_an_extension_value_spoils_the_whole_value() -> None:
    inner = msgpack.packb([1, ext(99, 1)])
    broken = msgpack_only.decode(msgpack.packb([REPLY, 1, [msgpack.ExtType(67, inner)]]))
    assert isinstance(broken, BrokenMessage)
    assert str(broken.error) == "result[0]: tuple: extension code 99 is unknown here"
    broken = json_only.decode(b'[3,1,[{"$tuple":[1,{"$later":1}]}]]')
    assert isinstance(broken, BrokenMessage)
    assert "$later" in str(broken.error)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x81\x90\x01",  # {[]: 1}
        b"\x81\x80\x01",  # {{}: 1}
        b"\x81" + msgpack.packb(msgpack.ExtType(65, b"\xc4\x01x")) + b"\x01",  # {bytearray: 1}
        msgpack.packb(msgpack.Timestamp(2**62)),
        msgpack.packb({"x": [msgpack.Timestamp(-(2**62))]}),
        msgpack.packb(msgpack.ExtType(67, b"\x91")),  # a payload that is cut off
        msgpack.packb(msgpack.ExtType(67, b"\x90\x90")),  # one with something behind it
        msgpack.packb(msgpack.ExtType(67, b"")),
        msgpack.packb(msgpack.ExtType(0, b"\xc0")),
        msgpack.packb(msgpack.ExtType(127, b"\xc0")),
    ],
    ids=bytes.hex,
)
def test_valid_messagepack_that_is_no_python_breaks_its_message_only(packed: bytes) -> None:
    whole = msgpack.packb([REPLY, 1, None])
    broken, other = msgpack_only.decode(msgpack_only.join([b"\x93\x03\x02" + packed, whole]))
    assert isinstance(broken, BrokenMessage)
    assert broken[:2] == [REPLY, 2]
    assert other == [REPLY, 1, None]


def test_a_timestamp_is_an_aware_datetime() -> None:
    when = datetime.datetime(2024, 5, 1, 12, 30, 15, 123456, datetime.UTC)
    packed = msgpack.packb([REPLY, 1, [when, ext(99, 1)]], datetime=True)
    assert msgpack_only.decode(msgpack.packb([REPLY, 1, {"t": when}], datetime=True)) == [
        REPLY,
        1,
        {"t": when},
    ]
    payload = msgpack.packb([when], datetime=True)
    reply = msgpack_only.decode(msgpack.packb([REPLY, 1, msgpack.ExtType(67, payload)]))
    assert reply == [REPLY, 1, (when,)]
    assert isinstance(msgpack_only.decode(packed), BrokenMessage)


def test_an_enum_is_found_without_importing_or_running_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Lazy:
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return object.__getattribute__(self, name)

    lazy = types.ModuleType("lazy")
    vars(lazy)["__getattr__"] = functools.partial(getattr, Lazy())
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    monkeypatch.setitem(sys.modules, "lazier_module", Lazy())
    sys.modules.pop("wave", None)
    for name in ("lazy_module.Shade", "lazier_module.Shade", "wave.Error", "." * 100_000):
        broken = msgpack_only.decode(msgpack.packb([REPLY, 1, ext(80, [name, "A"])]))
        assert isinstance(broken, BrokenMessage)
    assert "wave" not in sys.modules
    assert not asked


# Hostile input.


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200), attached=st.lists(st.binary(max_size=5), max_size=2))
def test_random_bytes_are_decode_errors_or_messages(data: bytes, attached: list[bytes]) -> None:
    for codec in CODECS:
        for envelope in (data, b"\x93\x03\x01" + data, b"[3,1," + data + b"]"):
            try:
                decoded = codec.decode(envelope, attached)
            except DecodeError:
                continue
            assert isinstance(decoded, list)


@both
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_values_are_decode_errors_or_messages(codec: Codec, data: st.DataObject) -> None:
    make: Any = type(codec)
    sent, attached = encoded(make(attach_above=8), [REPLY, 1, data.draw(values)])
    envelope = bytearray(sent)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(envelope) - 1))
        envelope[position] = data.draw(st.integers(0, 255))
    try:
        decoded = codec.decode(envelope, attached)
    except DecodeError:
        return
    assert isinstance(decoded, list)


MANY = b"\xff\xff\xff\xff"
NESTED = b"\xdd\x00\x0f\x00\x00" * 1000 + bytes(2**20)  # each as long as all the rest


@pytest.mark.parametrize(
    "envelope",
    [
        b"\x93\x03\x01\xdd" + MANY,
        b"\x93\x03\x01\xdf" + MANY,
        b"\x93\x03\x01\xc6" + MANY,
        b"\x93\x03\x01\xdb" + MANY,
        b"\x93\x03\x01\xc9" + MANY + b"\x43",
        b"\xdd" + MANY,
        b"\xdd" + MANY + bytes(100),
        b"\x93\x03\x01" + NESTED,
        b"\x93\x03\x01" + msgpack.packb(msgpack.ExtType(67, NESTED)),
        b"\x91" * 100_000,
        b"\x93\x03\x01" + b"\x91" * 1020 + b"\xdd" + MANY,
        b"[" * 200_000,
        b'[3,1,{"a":' * 100_000,
        b"[3,1," + b'{"$tuple":[' * 900 + b"]}" * 900 + b"]",
        b"[3,1," + b"9" * 200_000 + b"]",
    ],
    ids=range(15),
)
def test_what_is_announced_is_not_allocated(envelope: bytes) -> None:
    tracemalloc.start()
    try:
        for codec in CODECS:
            try:
                reply = codec.decode(envelope)
            except DecodeError:
                pass
            else:
                assert isinstance(reply, BrokenMessage)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(envelope) + 2**20


@both
@pytest.mark.parametrize(("levels", "whole"), [(64, True), (65, False), (200, False)])
def test_extension_values_nest_as_deep_as_they_may(codec: Codec, levels: int, whole: bool) -> None:
    in_json = "null"
    packed: Any = None
    for _ in range(levels):
        in_json, packed = f'{{"$tuple":[{in_json}]}}', ext(67, [packed])
    envelope = f"[3,1,{in_json}]".encode()
    reply = codec.decode(envelope if codec.name == "json" else msgpack.packb([REPLY, 1, packed]))
    assert isinstance(reply, BrokenMessage) is not whole
    if not whole:
        with pytest.raises(DecodeError, match="nested more than 64 levels"):
            received(reply)


def test_extension_values_in_extension_values_end_somewhere() -> None:
    payload = b"\x90"
    for _ in range(5000):
        payload = b"\x91" + msgpack.packb(msgpack.ExtType(67, payload))
    broken = msgpack_only.decode(msgpack.packb([REPLY, 1, msgpack.ExtType(67, payload)]))
    assert isinstance(broken, BrokenMessage)
    assert "nested more than 64 levels" in str(broken.error)


# JSON.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        (bytearray(b"\x00"), '{"$bytearray":{"$bytes":"AA=="}}'),
        (math.nan, '{"$float":"nan"}'),
        (-math.inf, '{"$float":"-inf"}'),
        ({"$a": 1}, '{"$dict":[["$a",1]]}'),
        ({1: 2, "b": 3}, '{"$dict":[[1,2],["b",3]]}'),
        ((1, "a"), '{"$tuple":[1,"a"]}'),
        (2**53 - 1, "9007199254740991"),
        (-(2**53), '{"$int":"-20000000000000"}'),
        (
            datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
            '{"$datetime":"2024-05-01T00:00:00+00:00"}',
        ),
        ("\u017c\u00f3\u0142w", '"\u017c\u00f3\u0142w"'),
        (1.0, "1.0"),
    ],
    ids=repr,
)
def test_json_on_the_wire(value: Any, text: str) -> None:
    assert json_only.encode([REPLY, 1, value], []) == f"[3,1,{text}]".encode()
    assert exactly(json_only.decode(f" [ 3, 1, {text} ]\n".encode())[2]) == exactly(value)


def test_json_reads_what_others_write_differently() -> None:
    envelope = rb'[3, 1, {"\u0024tuple": ["\ud83d\ude00", 12345678901234567890123, 1e3]}]'
    assert json_only.decode(envelope)[2] == ("\U0001f600", 12345678901234567890123, 1000.0)


@pytest.mark.parametrize(
    "envelope",
    [
        b'[3,1,{"a":1,"a":2}]',
        b'[3,1,{"$tuple":[1],"$tuple":[2]}]',
        b"[3,1,NaN]",
        b"[3,1,-Infinity]",
        b'[3,1,"\xff"]',
        b'[3,1,"\xed\xa0\x80"]',
        rb'[3,1,"\ud800"]',
        rb'[3,1,{"\udc00\ud800":1}]',
        b"[3,1,null] x",
        b"[3,1,null",
        b"\xef\xbb\xbf[3,1,null]",
        b"[3,1,nul]",
        b"",
    ],
)
def test_json_that_is_none_is_a_decode_error(envelope: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^no JSON: "):
        json_only.decode(envelope)


@pytest.mark.parametrize(
    "value",
    [
        b'{"$tuple":[],"b":1}',
        b'{"b":1,"$tuple":[]}',
        b'{"$unknown":1}',
        b'{"$":1}',
        b'{"$bytes":"AP8"}',
        b'{"$bytes":"A P8="}',
        b'{"$bytes":5}',
        b'{"$float":"1.0"}',
        b'{"$float":[]}',
        b'{"$dict":[["a"]]}',
        b'{"$dict":[[[],1]]}',
        b'{"$dict":5}',
        b'{"$ext":[1]}',
        b'{"$ext":[1,2]}',
        b'{"$ext":[[],2]}',
    ],
)
def test_bad_escapes_break_their_message_only(value: bytes) -> None:
    broken, whole = json_only.decode(b"[[3,1," + value + b'],[3,2,"x"]]')
    assert isinstance(broken, BrokenMessage)
    assert broken[:2] == [3, 1]
    assert whole == [3, 2, "x"]


# Speed and sharing.


def test_a_plain_message_costs_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError("the exact way was taken")

    codec = MessagePack()
    monkeypatch.setattr(msgpack_values, "MessagePackFlattener", fail)
    for plain in (
        [REQUEST, 1234, "echo", {"n": 1, "text": "hello"}, 30.0],
        [REQUEST, 1, "m", [1, "two", None, {"x": [1.5]}], None],
        [REQUEST, 1, "m"],
        [REPLY, 1, "text" * 10_000],
        [6, 1],
    ):
        assert codec.decode(codec.encode(plain, [])) == plain


def test_a_large_message_leaves_no_memory_behind() -> None:
    codec = MessagePack()
    plain = ["x" * 100] * 100_000
    wrapped = [("x" * 100,)] * 50_000
    tracemalloc.start()
    try:
        for large in (plain, wrapped, [*plain, print], [[[bytes(10_000_000)]]]):
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(EncodeError):
                codec.encode([REPLY, 1, large], [])
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < 2**20
    finally:
        tracemalloc.stop()


def test_codecs_can_be_shared_by_threads() -> None:
    failures: list[Any] = []

    def work(codec: Codec, number: int) -> None:
        for round_ in range(200):
            value = [(number, round_), {"d": b"x" * number}, bytes([number]) * 20_000]
            if over(codec, value) != value:
                failures.append((codec.name, number))
            bad = codec.join([codec.encode([REPLY, 1, None], [])] * 2)
            if type(codec.decode(bad)[0]) is not list:
                failures.append((codec.name, "broken"))

    threads = [threading.Thread(target=work, args=(CODECS[n % 2], n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failures
