"""Registered types and conversion by annotation, through the default codec where they travel."""

import dataclasses
import datetime
import decimal
import enum
import errno
import fractions
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import msgspec
import pytest

from asyncipc import JSON, Codec, MessagePack
from asyncipc.errors import DecodeError, EncodeError
from asyncipc.wire.conversion import check_annotation, convert
from asyncipc.wire.decoding import BrokenMessage
from asyncipc.wire.registry import is_message, registered, wire_name
from asyncipc.wire.types import message

REPLY = 3


class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"


class Level(enum.IntEnum):
    LOW = 1


@message
@dataclass
class Item:
    name: str
    count: int = 1


@message(name="tests.Order")
@dataclass
class Order:
    items: list[Item]
    shade: Shade = Shade.DARK
    tags: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    level: int = 0
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.total = sum(item.count for item in self.items)


@message
class Point(msgspec.Struct, rename="camel", frozen=True):
    x_axis: int
    y_axis: int = 0


@message
@attrs.define
class Account:
    owner: str
    _secret: bytes = b""
    visits: int = attrs.field(default=0, init=False)


@message
class Pair(NamedTuple):
    left: Any
    right: str = "r"


@message
@dataclass(frozen=True, slots=True)
class Loose:
    where: pathlib.Path | str  # msgspec cannot check this union
    count: int = 0


T = TypeVar("T")


@message
@dataclass
class Box(Generic[T]):
    content: T


@message
class Failed(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


@message
class Missing(OSError):
    pass


@message
class Finished(StopIteration):
    pass


@message(name="tests.Colour")
class Colour(enum.Flag):
    RED = 1
    BLUE = 2


def over(value: Any, codec: Codec | None = None) -> Any:
    """The value as it arrives."""
    codec = codec or MessagePack()
    attachments: list[Any] = []
    envelope = codec.encode([REPLY, 1, value], attachments)
    reply = codec.decode(envelope, [bytes(attached) for attached in attachments])
    if isinstance(reply, BrokenMessage):
        raise reply.error
    return reply[2]


def sent_as(name: str, fields: Any) -> Any:
    """What arrives when another program sends these fields under a wire name (in JSON)."""
    text = msgspec.json.encode([REPLY, 1, {"$message": [name, fields]}])
    reply = JSON().decode(text)
    if isinstance(reply, BrokenMessage):
        raise reply.error
    return reply[2]


@pytest.mark.parametrize("codec", [MessagePack(), JSON()], ids=["msgpack", "json"])
@pytest.mark.parametrize(
    "value",
    [
        Item("a"),
        Order([Item("a", 2), Item("b")], Shade.LIGHT, ("x", "y"), {"k": (1,)}, Level.LOW),
        Order([], tags=["x"]),
        Point(1, 2),
        Account("me", b"key"),
        Pair((1, 2)),
        Loose(pathlib.Path("/tmp"), 3),
        Loose("text"),
        Box({1, 2}),
        Colour.RED | Colour.BLUE,
        [Item("a"), {"b": Item("b")}],
    ],
    ids=repr,
)
def test_registered_values_arrive_equal_and_of_the_same_type(value: Any, codec: Codec) -> None:
    arrived = over(value, codec)
    assert arrived == value
    assert type(arrived) is type(value)
    if isinstance(value, Order):
        assert type(arrived.tags) is type(value.tags)
        assert type(arrived.level) is type(value.level)


def test_fields_outside_init_travel_too() -> None:
    account = Account("me", b"key")
    account.visits = 7
    order = Order([Item("a")])
    order.total = 99
    assert over(account) == account
    assert over(order).total == 99


def test_post_init_runs() -> None:
    assert sent_as("tests.Order", {"items": [{"name": "a", "count": 3}]}).total == 3


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    name = wire_name(Item)
    assert name == f"{__name__}.Item"
    assert sent_as(name, {"name": "a", "later": True}) == Item("a", 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "'name'"),
        ({"name": 1}, r"Expected `str`, got `int` - at `\$\.name`"),
        ({"name": "a", "count": "1"}, r"Expected `int`, got `str` - at `\$\.count`"),
        ({"name": "a", "count": 1.5}, r"\$\.count"),
        ([], "expected dict, got list"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields: Any, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        sent_as(f"{__name__}.Item", fields)


def test_an_annotation_that_cannot_be_checked_spares_only_its_own_field() -> None:
    name = f"{__name__}.Loose"
    assert sent_as(name, {"where": 5}) == Loose(5)  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match=r"\$\.count"):
        sent_as(name, {"where": "x", "count": "1"})


def test_text_never_becomes_another_type_of_a_field() -> None:
    @message(name="tests.Typed")
    @dataclass
    class Typed:
        data: bytes = b""
        day: datetime.date | None = None
        number: uuid.UUID | None = None

    for name in ("data", "day", "number"):
        with pytest.raises(DecodeError, match="got `str`"):
            sent_as("tests.Typed", {name: "2024-05-01"})


def test_a_class_that_refuses_its_fields_breaks_that_message_only() -> None:
    @message(name="tests.Positive")
    @dataclass
    class Positive:
        n: int

        def __post_init__(self) -> None:
            if self.n < 0:
                raise LookupError("below zero")

    batch = b'[[3,1,{"$message":["tests.Positive",{"n":-1}]}],[3,2,"whole"]]'
    broken, whole = JSON().decode(batch)
    assert isinstance(broken, BrokenMessage)
    assert broken[:2] == [3, 1]
    assert str(broken.error) == "result: $message: tests.Positive: below zero"
    assert whole == [3, 2, "whole"]


def test_an_exception_arrives_without_its_init_being_called() -> None:
    error = Failed(7, reason="no disk")
    error.add_note("look at /dev")
    arrived = over(error)
    assert type(arrived) is Failed
    assert (str(arrived), arrived.args, arrived.code) == (str(error), error.args, 7)
    assert arrived.__notes__ == ["look at /dev"]


def test_an_exception_of_the_interpreters_kind_keeps_what_that_kind_keeps() -> None:
    arrived = over(Missing(errno.ENOENT, "no such thing", "/x"))
    assert type(arrived) is Missing
    assert (arrived.errno, arrived.strerror) == (errno.ENOENT, "no such thing")
    assert over(Finished(7)).value == 7


@pytest.mark.parametrize("codec", [MessagePack(attach_above=8), JSON(attach_above=8)])
def test_an_exception_leaves_behind_what_cannot_be_sent(codec: Codec) -> None:
    error = Failed(1, reason="r")
    error.args = ("text", [b"attached" * 9, object()], b"attached too")
    error.__dict__["self"] = error
    error.__dict__["file"] = [b"attached" * 9, lambda: None]
    error.__dict__["$odd"] = (1, 2)
    attachments: list[Any] = []
    envelope = codec.encode([REPLY, 1, error], attachments)
    assert attachments == [b"attached too"]
    arrived = codec.decode(envelope, attachments)[2]
    assert arrived.args[0] == "text"
    assert "object" in arrived.args[1]
    assert arrived.args[2] == b"attached too"
    assert arrived.__dict__ == {"code": 1, "reason": "r", "$odd": (1, 2)}


def test_exceptions_in_exceptions_cost_no_more_than_their_number() -> None:
    error: Exception = Failed(0, reason="innermost")
    for code in range(1, 60):  # tried twice on each level this would take 2**60 attempts
        outer = Failed(code, reason="outer")
        outer.__dict__["inner"] = error
        error = outer
    depth = 0
    arrived = over(error)
    while hasattr(arrived, "inner"):
        arrived, depth = arrived.inner, depth + 1
    assert depth > 10


def test_an_object_that_contains_itself_is_refused() -> None:
    box = Box[Any](None)
    box.content = {"again": [box]}
    with pytest.raises(EncodeError, match=r"^result\.content\.again\[0\]: a Box that contains it"):
        over(box)


def test_a_property_that_raises_is_an_encode_error_with_its_cause() -> None:
    account = Account("me")
    del account.owner
    with pytest.raises(EncodeError, match=r"result: .*owner") as caught:
        over(account)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_subclass_of_a_registered_class_is_not_sent_as_its_base() -> None:
    class Special(Item):
        pass

    with pytest.raises(EncodeError, match="its base Item is: put @message on it"):
        over(Special("a"))


def test_names_and_classes_are_found() -> None:
    assert wire_name(Order) == "tests.Order"
    assert registered("tests.Order") is Order
    assert wire_name(dict) is None
    assert registered("tests.Nothing") is None
    assert is_message(Order([]))
    assert is_message(Failed(1, reason=""))
    assert not is_message(Order)
    assert not is_message(Colour.RED)
    assert not is_message({})


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match=r"'tests\.Order' belongs to .*Order already"):

        @message(name="tests.Order")
        @dataclass
        class Impostor:
            pass

    with pytest.raises(ValueError, match=r"registered already, as 'tests\.Order'"):
        message(name="tests.Second")(Order)
    assert message(name="tests.Order")(Order) is Order


def test_a_new_definition_replaces_the_old_one() -> None:
    def define(default: int) -> type:
        @message
        @dataclass
        class Reloaded:
            n: int = default

        return Reloaded

    old, new = define(1), define(2)
    assert wire_name(old) is None
    assert over(new()) == new()
    with pytest.raises(EncodeError, match="Reloaded"):
        over(old())


@pytest.mark.parametrize("name", ["", 5, b"x"])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="wire name"):
        message(name=name)(dataclasses.make_dataclass("Made", ["a"]))


def test_what_cannot_be_a_message_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="@message stands above @dataclass"):

        @message
        class Plain:
            pass

    with pytest.raises(TypeError, match="registers classes"):
        message(len)  # type: ignore[call-overload]

    with pytest.raises(TypeError, match="needs 'scale', which is none of its fields"):

        @message
        @dataclass
        class Scaled:
            n: int
            scale: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, 1),
        (1, float, 1.0),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2], set[int], {1, 2}),
        ({"name": "a"}, Item, Item("a")),
        ([{"name": "a"}], list[Item], [Item("a")]),
        ({"where": "x"}, Loose, Loose("x")),
        ("dark", Shade, Shade.DARK),
        (None, int | None, None),
        (pathlib.Path("/x"), pathlib.Path, pathlib.Path("/x")),
        (pathlib.Path("/x"), pathlib.Path | None, pathlib.Path("/x")),
        (fractions.Fraction(1, 2), fractions.Fraction, fractions.Fraction(1, 2)),
        (1j, complex, 1j),
        (Item("a"), Item, Item("a")),
        (Item("a"), Item | None, Item("a")),
        (Loose("x"), Loose, Loose("x")),
        (decimal.Decimal("1.50"), decimal.Decimal, decimal.Decimal("1.50")),
        (b"x", bytes, b"x"),
        ("anything", Any, "anything"),
        ("anything", object, "anything"),
    ],
    ids=repr,
)
def test_convert_takes_what_fits(value: Any, annotation: Any, expected: Any) -> None:
    check_annotation(annotation)
    converted = convert(value, annotation)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("1", int),
        (1.0, int),
        (True, int),
        (1, bool),
        (1, str),
        ("YWJj", bytes),
        ("2024-05-01", datetime.date),
        ("2024-05-01T00:00:00", datetime.datetime),
        (0, datetime.datetime),
        (1.5, datetime.timedelta),
        ("1.5", decimal.Decimal),
        (1, decimal.Decimal),
        ("12345678-1234-5678-1234-567812345678", uuid.UUID),
        ("/x", pathlib.Path),
        (1, complex),
        ("1/2", fractions.Fraction),
        (None, int),
        ({"name": 1}, Item),
        ({}, Item),
        ("text", Item),
        ("text", Loose),
        ({"where": "x", "count": "1"}, Loose),
        ([1, "2"], list[int]),
    ],
    ids=repr,
)
def test_convert_never_guesses(value: Any, annotation: Any) -> None:
    with pytest.raises(DecodeError):
        convert(value, annotation)


def test_convert_says_what_was_expected_and_where() -> None:
    with pytest.raises(DecodeError, match=r"^Expected `int`, got `str` - at `\$\[1\]`$"):
        convert([1, "2"], list[int])
    with pytest.raises(DecodeError, match=r"^Expected `Path`, got `str`$"):
        convert("x", pathlib.Path)


@pytest.mark.parametrize("annotation", [Item | Order, pathlib.Path | str, "Unresolved"], ids=repr)
def test_annotations_that_cannot_be_checked_are_diagnosed(annotation: Any) -> None:
    with pytest.raises(TypeError, match="not supported"):
        check_annotation(annotation)


@message(name="test_types.Grade")
class Grade(enum.Enum):
    LOW = 1
    HIGH = 2


@message(name="test_types.Report")
@dataclasses.dataclass
class Report:
    grade: Grade
    others: list[Grade]
    best: Grade | None = None


@pytest.mark.parametrize("codec", [MessagePack(), JSON()], ids=lambda codec: codec.name)
def test_members_with_values_that_are_no_text_fit_where_they_are_annotated(codec: Codec) -> None:
    report = Report(Grade.LOW, [Grade.HIGH], Grade.HIGH)
    assert codec.decode(codec.encode([3, 2, report], [])) == [3, 2, report]
    assert convert([Grade.LOW, 2], list[Grade]) == [Grade.LOW, Grade.HIGH]
    with pytest.raises(DecodeError):
        convert([3], list[Grade])


@message
class Ratio(enum.Enum):
    HALF = 0.5
    PAIR = (1, 2)


@message
@dataclass
class Scale:
    ratio: Ratio
    next: "Scale | None" = None


@message
class Mark(msgspec.Struct):
    ratio: Ratio = Ratio.HALF


@message
@dataclass
class Drawing:
    scale: Scale
    maybe: Scale | None = None
    scales: list[Scale] = field(default_factory=list)
    marks: dict[str, tuple[Mark, ...]] = field(default_factory=dict)
    ratio: Ratio = Ratio.PAIR
    size: int = 0


@pytest.mark.parametrize("codec", [MessagePack(), JSON()], ids=lambda codec: codec.name)
def test_a_class_with_a_field_that_cannot_be_checked_stands_in_others(codec: Codec) -> None:
    scale = Scale(Ratio.HALF, Scale(Ratio.PAIR))
    drawing = Drawing(scale, scale, [scale], {"a": (Mark(),)}, Ratio.HALF, 3)
    assert over(drawing, codec) == drawing
    assert over([Drawing(scale)], codec) == [Drawing(scale)]
    with pytest.raises(DecodeError, match=r"Drawing: Expected `int`, got `str`.*size"):
        sent_as(wire_name(Drawing) or "", {"scale": {"ratio": 1}, "size": "big"})
    with pytest.raises(DecodeError, match=r"Drawing: Expected `Scale`, got `int` - at `\$.scale`"):
        sent_as(wire_name(Drawing) or "", {"scale": 3})


def test_such_a_class_is_annotated_in_containers() -> None:
    scale = Scale(Ratio.HALF)
    assert convert([scale], tuple[Scale, ...]) == (scale,)
    assert convert({"a": [scale, None]}, dict[str, list[Scale | None]]) == {"a": [scale, None]}
    assert convert([{"ratio": Ratio.HALF}], list[Scale]) == [scale]
    for wrong in ([1], [{"ratio": 1, "next": 2}], [Mark()]):
        with pytest.raises(DecodeError):
            convert(wrong, list[Scale])
