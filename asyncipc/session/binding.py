"""Parameter binding: wire params become the arguments of a handler's function.

What stands on the wire is absent, an array (binds by position) or a map (binds by name), and it
binds as Python itself would bind ``f(*array)`` or ``f(**map)``. A parameter annotated `Call` gets
the call and takes nothing from the wire. Values are checked and converted by annotation.

Signature and annotations are looked at once, at registration, which is also when their mistakes
are reported. For the calls there are then two ways. The short one is a function compiled for this
very signature, which covers all that signatures without stars can be called with. What it cannot
take, every mistake of the caller included, goes the long way through `_Binding`.
Neither ever runs the handler's function inside a ``try``, so a TypeError that it raises itself is
never taken for one of binding.

Layer 2, inside the session. Above: the handlers. Below: wire.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Final

from asyncipc.errors import DecodeError, InvalidParams
from asyncipc.lazy import LazyModule
from asyncipc.session.annotations import (
    accepted_classes,
    checkable,
    describe,
    is_call,
    is_plain,
    item_annotation,
    resolve,
    short_repr,
)
from asyncipc.session.context import Call
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.unclaimed import close_descriptors
from asyncipc.wire.registry import is_message

if TYPE_CHECKING:
    from asyncipc.wire import types
else:  # needed for values that are not of the annotated class itself
    types = LazyModule("asyncipc.wire.types")

__all__ = ["Invoke", "prepare"]

Invoke = Callable[[Any, Call], Any]

# Of a method's name that stands in an error: one that a "*" handler took may be any text.
MAX_METHOD_TEXT: Final = 100

# Of the names of a handler's parameters, how many an error lists.
MAX_NAMES: Final = 10


def prepare(function: Callable[..., Any], message_type: type | None = None) -> Invoke:
    """Make ``invoke(params, call)``, which binds params and calls the function.

    :param message_type: the one parameter gets an object of this class
    :returns: a function that returns what ``function`` returns (a coroutine, if it is async) and
        raises `InvalidParams` where params don't fit. The message names the parameter, what was
        expected and what came.
    :raises TypeError: the signature cannot be read, or an annotation cannot be resolved or
        checked; the text names the parameter
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError, NameError) as error:
        raise TypeError(f"its signature cannot be read ({error}); wrap it in a function") from None
    annotations = resolve(function, signature)
    slots = [
        _Slot(parameter, annotations[parameter.name]) for parameter in signature.parameters.values()
    ]
    if message_type is not None:
        slots = _for_message(slots, message_type)
    return _compile(function, slots)


class _Slot:
    """One parameter of a handler: where it stands and what it takes.

    :ivar takes_items: it takes the stream of an upload, and ``items`` says of what
    :ivar classes: values of exactly these classes are taken as they are; None: all values
    """

    __slots__ = (
        "annotation",
        "classes",
        "default",
        "items",
        "kind",
        "name",
        "takes_call",
        "takes_items",
        "wanted",
    )

    def __init__(self, parameter: Parameter, annotation: Any) -> None:
        self.name = parameter.name
        self.kind = parameter.kind
        self.default = parameter.default
        self.takes_call = is_call(annotation)
        if self.takes_call and self.is_variadic:
            raise TypeError(f"parameter {self.name!r}: there is only one Call; leave out the star")
        self.wanted = annotation  # as its author wrote it, for errors
        self.annotation = annotation
        items = item_annotation(annotation)
        self.takes_items = items is not None
        if self.takes_items:
            self.classes: tuple[type, ...] | None = ()  # it is always looked at
            self.items = _Slot(parameter.replace(annotation=items), items)
            return
        try:
            self.classes = accepted_classes(annotation)
            if self.classes is not None and not self.takes_call:
                self.annotation = checkable(annotation)
        except TypeError as error:
            raise TypeError(f"parameter {self.name!r}: {error}") from None

    @property
    def is_required(self) -> bool:
        return self.default is Parameter.empty and not self.is_variadic

    @property
    def is_variadic(self) -> bool:
        return self.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

    @property
    def by_position(self) -> bool:
        return self.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

    @property
    def by_name(self) -> bool:
        return self.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

    def accept(self, value: Any, call: Call, name: str = "", params: Any = None) -> Any:
        """The value as the annotation asks for it.

        :param name: what to call the parameter in an error, where that isn't its own name
        :param params: all of them, which nobody takes if it does not fit
        :raises InvalidParams: the value does not fit
        """
        classes = self.classes
        if classes is None or value.__class__ in classes:
            return value
        if self.takes_items:
            return self._accept_items(value, call, params)
        if is_message(value) and isinstance(value, classes):
            return value  # an object of a registered subclass
        try:
            return types.convert(value, self.annotation)
        except DecodeError as error:
            text = (
                f"{_method(call)}() parameter {short_repr(name or self.name)}: expected "
                f"{describe(self.wanted)}, got {type(value).__qualname__} ({short_repr(value)})"
            )
            if not is_plain(self.annotation):
                text += f": {error}"
            close_descriptors(params)
            raise InvalidParams(text) from None

    def _accept_items(self, value: Any, call: Call, params: Any) -> Any:
        """The stream of an upload, whose items are looked at as they are taken."""
        if value.__class__ is not ItemReceiver:
            close_descriptors(params)
            raise InvalidParams(
                f"{_method(call)}() parameter {self.name!r}: expected a stream of items, got "
                f"{type(value).__qualname__} ({short_repr(value)})"
            )
        if self.items.classes is not None:
            name = f"{self.name}[]"
            value.convert = lambda item: self.items.accept(item, call, name)
        return value


def _for_message(slots: list[_Slot], message_type: type) -> list[_Slot]:
    """Check that a handler can take objects of a type, and let its parameter ask for that type."""
    wire = [slot for slot in slots if not slot.takes_call]
    if len(wire) != 1 or not wire[0].by_position:
        raise TypeError(
            f"it should have one parameter that takes the {message_type.__qualname__}, and beside "
            f"it at most one annotated Call, but has: {_names(wire) or 'none'}"
        )
    [slot] = wire
    if slot.classes is None:
        slot.wanted = slot.annotation = message_type
        slot.classes = (message_type,)
    elif slot.classes and not any(issubclass(message_type, choice) for choice in slot.classes):
        raise TypeError(
            f"parameter {slot.name!r} is annotated {describe(slot.wanted)}, but gets "
            f"{message_type.__qualname__} objects"
        )
    return slots


# -- the long way ------------------------------------------------------------------------------


class _Binding:
    """The parameters of one handler, and how params in any form bind to them."""

    __slots__ = ("_extra", "_names", "_reserved", "_slots")

    def __init__(self, slots: Sequence[_Slot]) -> None:
        self._slots = [slot for slot in slots if slot.kind is not Parameter.VAR_KEYWORD]
        self._extra = next((s for s in slots if s.kind is Parameter.VAR_KEYWORD), None)
        self._names = {slot.name for slot in slots if slot.by_name and not slot.takes_call}
        self._reserved = {slot.name for slot in slots if slot.by_name and slot.takes_call}

    def bind(self, params: Any, call: Call) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, by position and by name.

        :raises InvalidParams: the params do not fit
        """
        try:
            if params is None:
                return self._bind((), {}, call)
            if params.__class__ is list:
                return self._bind(params, {}, call)
            if params.__class__ is dict:
                return self._bind((), params, call)
        except InvalidParams:
            close_descriptors(params)  # the function, which would own them, does not get them
            raise
        close_descriptors(params)
        raise InvalidParams(
            f"{_method(call)}() params should be absent, an array or a map, "
            f"not {type(params).__qualname__} ({short_repr(params)})"
        )

    def _bind(
        self, array: Sequence[Any], named: Mapping[Any, Any], call: Call
    ) -> tuple[list[Any], dict[str, Any]]:
        """Bind params of which one form is empty."""
        arguments: list[Any] = []
        keywords = self._bind_extra(named, call)
        taken = 0
        for slot in self._slots:
            if slot.kind is Parameter.VAR_POSITIONAL:
                rest = array[taken:]
                taken = len(array)
                if slot.classes is not None:
                    rest = [
                        slot.accept(value, call, f"{slot.name}[{position}]")
                        for position, value in enumerate(rest)
                    ]
                arguments += rest
                continue
            if slot.takes_call:
                value: Any = call
            elif slot.by_position and taken < len(array):
                value = slot.accept(array[taken], call)
                taken += 1
            elif slot.by_name and slot.name in named:
                value = slot.accept(named[slot.name], call)
            elif slot.default is not Parameter.empty:
                value = slot.default
            else:
                raise self._missing(slot, array, named, call)
            if slot.by_position:
                arguments.append(value)
            else:
                keywords[slot.name] = value
        if taken < len(array):
            noun = "parameter" if taken == 1 else "parameters"
            raise InvalidParams(
                f"{_method(call)}() takes {taken} positional {noun}, got {len(array)}"
            )
        return arguments, keywords

    def _bind_extra(self, named: Mapping[Any, Any], call: Call) -> dict[str, Any]:
        """What a map holds beyond the parameters, for ``**kwargs``."""
        keywords: dict[str, Any] = {}
        for name, value in named.items():
            if name in self._names:
                continue
            if self._extra is None or name in self._reserved or name.__class__ is not str:
                taken = _names([slot for slot in self._slots if slot.name in self._names])
                raise InvalidParams(
                    f"{_method(call)}() unexpected parameter {short_repr(name)}; "
                    f"by name it takes {taken or 'none'}"
                )
            keywords[name] = self._extra.accept(value, call, name)
        return keywords

    @staticmethod
    def _missing(
        slot: _Slot, array: Sequence[Any], named: Mapping[Any, Any], call: Call
    ) -> InvalidParams:
        text = f"{_method(call)}() missing parameter {slot.name!r}"
        if named and not slot.by_name:
            text += ", which is taken by position only"
        elif array and not slot.by_position:
            text += ", which is taken by name only"
        return InvalidParams(text)


def _method(call: Call) -> str:
    return f"{call.method:.{MAX_METHOD_TEXT}}"


def _names(slots: Sequence[_Slot]) -> str:
    """The names of parameters, for an error."""
    names = ", ".join(repr(slot.name) for slot in slots[:MAX_NAMES])
    return f"{names}, ..." if len(slots) > MAX_NAMES else names


# -- the short way -----------------------------------------------------------------------------

_MISSING: Final = object()


def _compile(function: Callable[..., Any], slots: Sequence[_Slot]) -> Invoke:
    """Write the function that binds and calls, for this very signature.

    Written out because a loop over the parameters costs several times as much: measured for two
    of them, 0.5 microseconds against 0.1. Nothing from outside gets into its source. Of the
    parameter number 1, it calls the value ``value1``.
    """
    wire = [slot for slot in slots if not slot.takes_call]
    constants: dict[str, Any] = {"function": function, "bind": _Binding(slots).bind}
    constants |= {"missing": _MISSING, "padding": [_MISSING] * len(wire)}
    for number, slot in enumerate(wire):
        constants[f"classes{number}"] = slot.classes
        constants[f"accept{number}"] = slot.accept
        constants[f"default{number}"] = slot.default
    body: list[str] = []
    # With *args or **kwargs, how many values there are differs from call to call.
    if not any(slot.is_variadic for slot in slots):
        finish = _accept_and_call(slots, wire)
        if not wire:
            body += ["if params is None:", *_indented(finish)]
        elif all(slot.by_name for slot in wire):
            body += _take_by_name(wire, finish)
        if wire and all(slot.by_position for slot in wire):
            body += _take_by_position(wire, finish)
    body += ["arguments, keywords = bind(params, call)"]
    body += ["return function(*arguments, **keywords)"]
    lines = [f"def make({', '.join(constants)}):", "    def invoke(params, call):"]
    lines += [*_indented(body, 2), "    return invoke"]
    return _maker("\n".join(lines))(**constants)


def _take_by_name(wire: Sequence[_Slot], finish: Sequence[str]) -> list[str]:
    """Lines that take the values from a map, if it holds no others."""
    sizes = ["len(params)"]
    items = []
    for number, slot in enumerate(wire):
        if slot.is_required:
            items.append(f"value{number} = params[{slot.name!r}]")
        else:
            items.append(f"value{number} = params.get({slot.name!r}, missing)")
            sizes.append(f"(value{number} is missing)")
    return [
        "if params.__class__ is dict:",
        "    try:",
        *_indented(items, 2),
        "    except KeyError:",
        "        pass",
        "    else:",
        f"        if {' + '.join(sizes)} == {len(wire)}:",
        *_indented(finish, 3),
    ]


def _take_by_position(wire: Sequence[_Slot], finish: Sequence[str]) -> list[str]:
    """Lines that take the values from an array, if it has as many."""
    required = sum(slot.is_required for slot in wire)
    targets = "".join(f"value{number}, " for number in range(len(wire)))
    if required == len(wire):
        return [
            f"if params.__class__ is list and len(params) == {len(wire)}:",
            f"    {targets} = params",
            *_indented(finish),
        ]
    return [
        f"if params.__class__ is list and {required} <= len(params) <= {len(wire)}:",
        f"    {targets} = params + padding[len(params):]",
        *_indented(finish),
    ]


def _accept_and_call(slots: Sequence[_Slot], wire: Sequence[_Slot]) -> list[str]:
    """Lines that check the values taken and call the function with them."""
    lines = []
    for number, slot in enumerate(wire):
        value = f"value{number}"
        keyword = "if"
        if not slot.is_required:
            lines += [f"if {value} is missing:", f"    {value} = default{number}"]
            keyword = "elif"
        if slot.classes is not None:
            lines += [f"{keyword} {value}.__class__ not in classes{number}:"]
            lines += [f"    {value} = accept{number}({value}, call, '', params)"]
    sources = {slot.name: f"value{number}" for number, slot in enumerate(wire)}
    arguments = [
        ("" if slot.by_position else f"{slot.name}=") + sources.get(slot.name, "call")
        for slot in slots
    ]
    return [*lines, f"return function({', '.join(arguments)})"]


def _indented(lines: Sequence[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]


@functools.lru_cache(maxsize=256)
def _maker(source: str) -> Callable[..., Invoke]:
    """Compile a source. Kept, because sessions that register the same handlers write the same."""
    # The name is what tracebacks are told apart by: frames of the library are left out of faults.
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, "<asyncipc parameter binding>", "exec"), namespace)  # noqa: S102
    make: Callable[..., Invoke] = namespace["make"]
    return make
