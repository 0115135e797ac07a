"""What the annotations of a handler ask for: resolved, checked, and put into words.

All of it happens once, when a handler is registered, except for the words, which are for errors.

Layer 2, inside the session. Above: parameter binding. Below: wire.
"""

import functools
import inspect
import reprlib
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable
from inspect import Parameter, Signature
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from asyncipc.lazy import LazyModule
from asyncipc.session.context import Call
from asyncipc.wire.registry import wire_name

if TYPE_CHECKING:
    from asyncipc.wire import conversion
else:  # not needed by those who register no handlers, or none with annotations
    conversion = LazyModule("asyncipc.wire.conversion")

__all__ = [
    "accepted_classes",
    "checkable",
    "describe",
    "implementation",
    "is_call",
    "is_plain",
    "item_annotation",
    "resolve",
    "short_repr",
]

# Of an annotation or a value, the characters that stand in an error: enough to recognize it.
MAX_TEXT: Final = 80

# A larger integer is not written out: its text costs quadratic time, and from 4300 digits on the
# interpreter refuses to make it.
MAX_INT_BITS: Final = 1024


def implementation(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when ``function`` is called: without partials, bound methods, callable objects."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isroutine(function) or isinstance(function, type):
            return function
        else:
            function = type(function).__call__


def resolve(function: Callable[..., Any], signature: Signature) -> dict[str, Any]:
    """The annotation of each parameter, those written as text evaluated; `Any` where none is.

    :raises TypeError: a name in an annotation cannot be found at run time; the text names the
        parameter
    """
    inner = implementation(function)
    while (wrapped := getattr(inner, "__wrapped__", None)) is not None:
        inner = implementation(wrapped)
    if isinstance(inner, type):
        names = vars(sys.modules[inner.__module__])
    else:
        names = getattr(inner, "__globals__", {})
    type_parameters = {each.__name__: each for each in getattr(inner, "__type_params__", ())}
    resolved = {}
    for name, parameter in signature.parameters.items():
        if parameter.annotation is Parameter.empty:
            resolved[name] = Any
            continue
        holder = SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            hints = get_type_hints(holder, names, type_parameters, include_extras=True)
        except Exception as error:  # noqa: BLE001 - evaluating text can raise anything
            raise TypeError(
                f"parameter {name!r}: annotation {describe(parameter.annotation)} cannot be "
                f"resolved ({error}); its names must exist in the module at run time, not for "
                "type checkers only and not inside a function"
            ) from None
        resolved[name] = hints[name]
    return resolved


def is_call(annotation: Any) -> bool:
    """Whether a parameter gets the `Call`: it is annotated ``Call`` or ``Call | None``."""
    choices = _choices(annotation)
    return Call in choices and all(choice in (Call, NoneType) for choice in choices)


def item_annotation(annotation: Any) -> Any:
    """What the items of a parameter are to be that takes a stream; None where it takes none."""
    if annotation in (AsyncIterable, AsyncIterator):
        return Any
    if get_origin(annotation) in (AsyncIterable, AsyncIterator):
        return get_args(annotation)[0]
    return None


def is_plain(annotation: Any) -> bool:
    """Whether it is a builtin class or a union of such: an error has no more to say than that."""
    return all(
        isinstance(choice, type)
        and get_origin(choice) is None
        and choice.__module__ in ("builtins", "types")
        for choice in _choices(annotation)
    )


def accepted_classes(annotation: Any) -> tuple[type, ...] | None:
    """The classes whose own instances fit as they are; None where every value does.

    :raises TypeError: one of them cannot tell its instances (a Protocol that is not
        ``runtime_checkable``)
    """
    if isinstance(annotation, NewType):
        return accepted_classes(annotation.__supertype__)
    if isinstance(annotation, TypeVar) or annotation in (Any, object):
        return None
    classes: list[type] = []
    for choice in _choices(annotation):
        if choice in (Any, object):
            return None
        if isinstance(choice, type) and get_origin(choice) is None and not _is_typed_dict(choice):
            isinstance(None, choice)
            classes.append(choice)
    return tuple(classes)


def _is_typed_dict(cls: type) -> bool:
    """Of the typing module's or of typing_extensions'; neither has instances of its own."""
    return issubclass(cls, dict) and hasattr(cls, "__total__")


def checkable(annotation: Any) -> Any:
    """An annotation as `asyncipc.wire.conversion.convert` understands it.

    Objects of registered message types come as what they are, so a union of such types can be
    told apart, though maps that stand for them could not.

    :raises TypeError: it cannot be checked (a union of two dataclasses, for example)
    """
    try:
        conversion.check_annotation(annotation)
    except TypeError:
        replaced = _with_messages_by_class(annotation)
        if replaced is None:
            raise
        conversion.check_annotation(replaced)
        return replaced
    return annotation


def _with_messages_by_class(annotation: Any) -> Any:
    """The annotation with its unions of message types taken by class; None if it has none."""
    choices = [choice for choice in _choices(annotation) if choice is not NoneType]
    if any(isinstance(choice, type) and wire_name(choice) is not None for choice in choices):
        if not all(isinstance(choice, type) and get_origin(choice) is None for choice in choices):
            return None
        one_of = _OneOf(" | ".join(map(describe, choices)), (), {"choices": tuple(choices)})
        return one_of | None if len(choices) < len(_choices(annotation)) else one_of
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or origin in (UnionType, Annotated):
        return None
    replaced = tuple(each if each is Ellipsis else checkable(each) for each in arguments)
    return origin[replaced] if replaced != arguments else None  # type: ignore[index]


class _OneOf(type):
    """A class to which the instances of its ``choices`` belong, and of message types below them."""

    choices: tuple[type, ...]

    def __instancecheck__(cls, value: object) -> bool:
        kind = type(value)
        if kind in cls.choices:
            return True
        return wire_name(kind) is not None and issubclass(kind, cls.choices)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; anything else is its own only member."""
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (NoneType if annotation is None else annotation,)


# -- words -------------------------------------------------------------------------------------


def describe(annotation: Any) -> str:
    """An annotation in the words of its author, of bounded length."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return "None" if annotation is NoneType else annotation.__qualname__
    return _bounded(inspect.formatannotation(annotation))


class _ShortRepr(reprlib.Repr):
    """Never makes the whole text of what is large."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 40

    def repr_bytes(self, x: bytes, _level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."

    def repr_bytearray(self, x: bytearray, level: int) -> str:
        return f"bytearray({self.repr_bytes(bytes(x[: self.maxstring + 1]), level)})"

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > MAX_INT_BITS:
            return f"<int of {x.bit_length()} bits>"
        return super().repr_int(x, level)


_short_repr: Final = _ShortRepr()


def short_repr(value: object) -> str:
    """The repr of a value, of bounded length, whatever the value."""
    return _bounded(_short_repr.repr(value))


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
