"""The conversion of values to what an annotation asks for: msgspec's, in a mode that never guesses.

Layer 1. Above: registered types, the session's parameter binding. Below: registry, errors.
"""

import contextlib
import datetime
import decimal
import enum
import functools
import types
import uuid
from collections.abc import Callable
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from asyncipc.errors import DecodeError
from asyncipc.wire.paths import describe
from asyncipc.wire.registry import BY_CLASS

__all__ = [
    "check_annotation",
    "checkable",
    "convert",
    "first_checkable",
    "with_enum_members",
]

# Types that the wire carries as themselves. Listed here, msgspec takes only their instances and
# does not make them from text (by default it decodes base64 for bytes and parses dates and UUIDs).
BUILTIN_TYPES: Final = (
    bytes,
    bytearray,
    memoryview,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


def convert(value: Any, annotation: Any) -> Any:
    """Make a value fit an annotation, without ever guessing.

    Containers are converted (a list becomes an annotated tuple or set, a map an annotated
    dataclass), numbers are widened to float, and an Enum is found by its value. Text never becomes
    a number, bytes, a date or a path. An instance of an annotated class is taken as it is.

    :raises DecodeError: the value does not fit; the text says what was expected, what came, where
    :raises TypeError: the annotation is one that cannot be checked (see `check_annotation`)
    """
    if annotation is Any or value.__class__ is annotation:
        return value
    try:
        return _convert(value, annotation)
    except TypeError as error:
        # msgspec does not understand a field of a class; the registry goes around that field.
        replaced = _with_registered_records(annotation)
        if replaced is annotation:
            raise
        try:
            return convert(value, replaced)
        except TypeError:
            raise error from None  # in the words of the annotation's author
    except Exception as error:  # also what a class's own __post_init__ raises
        tolerant = with_enum_members(annotation)
        if tolerant is not annotation:
            with contextlib.suppress(TypeError, msgspec.ValidationError):
                return _convert(value, tolerant)
        raise DecodeError(describe(error)) from error


def check_annotation(annotation: Any) -> None:
    """Find out, before any value comes, whether `convert` can work with an annotation.

    :raises TypeError: it cannot; the text says why (for example a union of two dataclasses)
    """
    with contextlib.suppress(DecodeError):
        convert(_NOTHING, annotation)


def checkable(annotation: Any) -> Any:
    """An annotation that stands for this one inside of others; `Any` where nothing can.

    msgspec refuses a type as a whole for the sake of one part of it that it does not understand.
    """
    return first_checkable(annotation, _with_registered_records(annotation))


def first_checkable(*annotations: Any) -> Any:
    """The first that msgspec understands, whatever they stand in; `Any` where it is none."""
    return next((each for each in annotations if _is_understood(each)), Any)


def _is_understood(annotation: Any) -> bool:
    try:
        _convert(_NOTHING, annotation)
    except msgspec.ValidationError:
        return True
    except Exception:  # noqa: BLE001 - a name in it may exist for type checkers only
        return False
    return True


_NOTHING: Final = object()


def _convert(value: Any, annotation: Any) -> Any:
    return msgspec.convert(
        value, annotation, strict=True, builtin_types=BUILTIN_TYPES, dec_hook=_instance
    )


def _instance(annotation: Any, value: Any) -> Any:
    """Take a class that msgspec does not know: its instances are right, nothing else is."""
    expected = get_origin(annotation) or annotation
    if isinstance(value, expected):
        return value
    if isinstance(expected, _StandIn):
        if issubclass(expected.cls, enum.Enum):
            return msgspec.convert(value, expected.cls)
        if type(value) is dict:
            return BY_CLASS[expected.cls].assemble(value)
    name = getattr(expected, "__qualname__", str(expected))
    # To a ValueError msgspec adds where in the value it was.
    raise ValueError(f"Expected `{name}`, got `{type(value).__qualname__}`")


# -- what stands for classes that msgspec understands wrongly, or not at all -----------------------


class _StandIn(type):
    """The class of classes that stand for another in an annotation, and take its instances.

    For Enums, of which msgspec takes no members where their values are not text, and for registered
    classes, whose fields the registry checks when it puts an instance together.
    """

    cls: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.cls)


@functools.cache
def _stand_in(cls: type) -> _StandIn:
    return _StandIn(cls.__name__, (), {"cls": cls, "__qualname__": cls.__qualname__})


def with_enum_members(annotation: Any) -> Any:
    """The annotation with a stand-in for each Enum; itself where there is none."""
    return _with_stand_ins(annotation, lambda cls: issubclass(cls, enum.Enum))


def _with_registered_records(annotation: Any) -> Any:
    """The annotation with a stand-in for each registered class that has fields."""
    return _with_stand_ins(
        annotation, lambda cls: cls in BY_CLASS and not issubclass(cls, enum.Enum | Exception)
    )


def _with_stand_ins(annotation: Any, is_meant: Callable[[type], bool]) -> Any:
    origin = get_origin(annotation)
    cls = annotation if origin is None else origin
    if isinstance(cls, type) and is_meant(cls):
        return _stand_in(cls)
    arguments = get_args(annotation)
    if not arguments or origin is Literal:
        return annotation
    replaced = tuple(_with_stand_ins(argument, is_meant) for argument in arguments)
    if all(new is old for new, old in zip(replaced, arguments, strict=True)):
        return annotation
    if origin in (Union, types.UnionType):
        return Union[replaced]  # noqa: UP007 - of a tuple made at run time
    return origin[replaced]
