"""Registered message types: how their instances are taken apart and put together.

A class registered with `message` crosses the wire under its *wire name*, as a map of its fields,
and comes out as an instance of the class that is registered under that name over there. The two
sides need not run the same version: unknown fields are ignored, missing ones take their default.
An exception crosses as its ``args`` and ``__dict__``, an Enum member as its name.

The registry belongs to the process, like the classes in it. Layer 1. Above: codecs. Below:
conversion, registry, errors.
"""

import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Callable
from typing import (
    Any,
    Final,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import msgspec

from asyncipc.errors import DecodeError
from asyncipc.wire.conversion import checkable, convert, first_checkable, with_enum_members
from asyncipc.wire.paths import describe
from asyncipc.wire.registry import BY_CLASS, BY_NAME, Registration

__all__ = ["message"]

Class = TypeVar("Class", bound=type)


@overload
def message(cls: Class, /) -> Class: ...
@overload
def message(*, name: str | None = None) -> Callable[[Class], Class]: ...
def message(cls: Any = None, /, *, name: str | None = None) -> Any:
    """Register a class, so that its instances may cross the wire; the class is returned unchanged.

    For dataclasses, msgspec Structs, attrs classes, NamedTuples, Enums and exceptions. Stand it
    above the decorator that makes the class what it is::

        @message(name="app.Task")
        @dataclass
        class Task:
            action: str
            parameters: dict[str, Any]

    Fields are checked against their annotations when they come in, where msgspec understands the
    annotation; ``__init__`` and ``__post_init__`` run. An exception's ``__init__`` does not run,
    because nobody knows its arguments; what cannot be sent of its ``args`` crosses as its repr,
    and of its ``__dict__`` not at all.

    :param name: the wire name. By default ``module.qualname``, which both sides must agree on: a
        class of a script is ``__main__.Task``, found by another run of the same script only.
    :raises TypeError: the class is of no supported kind, or its ``__init__`` needs an argument
        that is none of its fields
    :raises ValueError: another class has the name, or the class is registered under another name.
        A new definition of the same class (a reload) replaces the old one.
    """
    if cls is None:
        return functools.partial(_register, name=name)
    return _register(cls, name=name)


_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Record(Registration):
    """A class with named fields that its ``__init__`` takes."""

    def __init__(self, name: str, cls: type) -> None:
        super().__init__(name, cls)
        try:
            parameters = inspect.signature(cls).parameters.values()
        except ValueError:  # the class hides its signature; a missing argument shows later
            return
        arguments = _arguments(cls).values()
        for parameter in parameters:
            needed = parameter.default is parameter.empty and parameter.kind not in _VARIABLE
            if needed and parameter.name not in arguments:
                raise TypeError(
                    f"{cls.__qualname__} cannot be a message: its __init__ needs "
                    f"{parameter.name!r}, which is none of its fields"
                )

    # The rest is found out at the first use, when what the annotations name has been defined.

    @functools.cached_property
    def _arguments(self) -> dict[str, str | None]:
        return _arguments(self.cls)

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether ``__init__`` takes exactly the fields, under their names."""
        return all(name == argument for name, argument in self._arguments.items())

    @functools.cached_property
    def _annotations(self) -> dict[str, Any]:
        """The annotation of each field, `Any` where it cannot be checked."""
        try:
            hints = get_type_hints(self.cls, include_extras=True)
        except Exception:  # noqa: BLE001 - names may exist for type checkers only
            hints = {}
        return {name: checkable(hints.get(name, Any)) for name in self._arguments}

    @functools.cached_property
    def _checked(self) -> Any:
        """All annotations as one type, so that msgspec checks all fields in one call."""
        typed_dict: Any = TypedDict  # made at run time, which no type checker can follow
        return typed_dict(self.cls.__name__, self._annotations, total=False)

    @functools.cached_property
    def _checked_members(self) -> Any:
        """`_checked`, with what stands for Enums where it can be checked like that."""
        annotations = {
            name: first_checkable(with_enum_members(annotation), annotation)
            for name, annotation in self._annotations.items()
        }
        typed_dict: Any = TypedDict
        return typed_dict(self.cls.__name__, annotations, total=False)

    def disassemble(self, value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in self._arguments}

    def assemble(self, fields: dict[str, Any]) -> Any:
        try:
            try:
                values = convert(fields, self._checked)
            except DecodeError:
                if self._checked_members.__annotations__ == self._annotations:
                    raise
                values = convert(fields, self._checked_members)
            for name, value in values.items():
                if type(value) is not type(fields[name]):
                    values[name] = _as_sent(fields[name], value, self._annotations[name])
            if self._plain:
                return self.cls(**values)
            return self._instance(values)
        except Exception as error:  # the class's own code runs here
            raise DecodeError(f"{self.name}: {describe(error)}") from error

    def _instance(self, values: dict[str, Any]) -> Any:
        """An instance where arguments and fields differ; the rest is set behind ``__init__``."""
        given: dict[str, Any] = {}
        later: dict[str, Any] = {}
        for name, value in values.items():
            argument = self._arguments[name]
            if argument is None:
                later[name] = value
            else:
                given[argument] = value
        instance = self.cls(**given)
        for name, value in later.items():
            object.__setattr__(instance, name, value)
        return instance


class _Exception(Registration):
    """An exception class. Its ``__init__`` is not called: its parameters need not be its args."""

    lenient = True

    def disassemble(self, value: Any) -> dict[str, Any]:
        return {"args": list(value.args), "state": dict(value.__dict__)}

    def assemble(self, fields: dict[str, Any]) -> Any:
        args, state = fields.get("args"), fields.get("state")
        if type(args) is not list or type(state) is not dict:
            raise DecodeError(f"{self.name}: an exception needs a list 'args' and a map 'state'")
        # What the interpreter's own class keeps beside args (errno, the value of a StopIteration)
        # comes from its own __new__ and __init__.
        builtin: Any = next(base for base in self.cls.__mro__ if base.__module__ == "builtins")
        try:
            instance = builtin.__new__(self.cls, *args)
            builtin.__init__(instance, *args)
            instance.args = tuple(args)
            instance.__dict__.update(state)
        except Exception as error:
            raise DecodeError(f"{self.name}: {describe(error)}") from error
        return instance


def _register(cls: Class, *, name: Any) -> Class:
    if not isinstance(cls, type):
        raise TypeError(f"@message registers classes, not {cls!r}")
    if name is None:
        name = _own_name(cls)
    if not isinstance(name, str) or not name:
        raise TypeError(f"a wire name is a string that is not empty, not {name!r}")
    known = BY_CLASS.get(cls)
    if known is not None and known.name != name:
        raise ValueError(f"{cls.__qualname__} is registered already, as {known.name!r}")
    taken = BY_NAME.get(name)
    if taken is not None and _own_name(taken.cls) != _own_name(cls):
        raise ValueError(f"the wire name {name!r} belongs to {_own_name(taken.cls)} already")
    entry = _kind_of(cls)(name, cls)
    if taken is not None:
        BY_CLASS.pop(taken.cls, None)
    BY_NAME[name] = BY_CLASS[cls] = entry
    return cls


def _kind_of(cls: type) -> type[Registration]:
    if issubclass(cls, Exception):
        return _Exception
    if issubclass(cls, enum.Enum):
        return Registration
    if _is_record(cls):
        return _Record
    raise TypeError(
        f"{cls.__qualname__} cannot be a message: expected a dataclass, a msgspec Struct, an attrs "
        "class, a NamedTuple, an Enum or an exception; @message stands above @dataclass"
    )


def _is_record(cls: type) -> bool:
    return (
        dataclasses.is_dataclass(cls)
        or issubclass(cls, msgspec.Struct)
        or hasattr(cls, "__attrs_attrs__")
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )


def _arguments(cls: Any) -> dict[str, str | None]:
    """The argument of ``__init__`` for each field; None for a field that it does not take."""
    if dataclasses.is_dataclass(cls):
        return {field.name: field.name if field.init else None for field in dataclasses.fields(cls)}
    if issubclass(cls, msgspec.Struct):
        return {name: name for name in cls.__struct_fields__}
    if hasattr(cls, "__attrs_attrs__"):
        return {field.name: field.alias if field.init else None for field in cls.__attrs_attrs__}
    return {name: name for name in cls._fields}


def _own_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_CONTAINERS: Final = frozenset({list, tuple, set, frozenset, dict})


def _as_sent(sent: Any, converted: Any, annotation: Any) -> Any:
    """Undo a change of type that the annotation does not ask for.

    For an abstract annotation msgspec picks a type of its own (a list for a Sequence), and for a
    base class the base (an int for an IntEnum, a tuple for a NamedTuple).
    """
    kind = type(sent)
    union = get_origin(annotation) in (Union, types.UnionType)
    for choice in get_args(annotation) if union else (annotation,):
        expected = get_origin(choice) or choice
        if isinstance(expected, type) and isinstance(sent, expected):
            return kind(converted) if kind in _CONTAINERS else sent
    return converted
