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

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from asyncipc.errors import InvalidParams
from asyncipc.session.annotations import describe, resolve, short_repr
from asyncipc.session.compiled import Invoke, compile_invoke
from asyncipc.session.context import Call
from asyncipc.session.parameter import HandlerParameter, method_text, parameter_names
from asyncipc.session.unclaimed import close_descriptors

__all__ = ["Invoke", "prepare"]


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
        HandlerParameter(parameter, annotations[parameter.name])
        for parameter in signature.parameters.values()
    ]
    if message_type is not None:
        slots = _for_message(slots, message_type)
    return compile_invoke(function, slots, _Binding(slots).bind)


def _for_message(slots: list[HandlerParameter], message_type: type) -> list[HandlerParameter]:
    """Check that a handler can take objects of a type, and let its parameter ask for that type."""
    wire = [slot for slot in slots if not slot.takes_call]
    if len(wire) != 1 or not wire[0].by_position:
        raise TypeError(
            f"it should have one parameter that takes the {message_type.__qualname__}, and beside "
            f"it at most one annotated Call, but has: {parameter_names(wire) or 'none'}"
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


class _Binding:
    """The parameters of one handler, and how params in any form bind to them."""

    __slots__ = ("_extra", "_names", "_reserved", "_slots")

    def __init__(self, slots: Sequence[HandlerParameter]) -> None:
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
            f"{method_text(call)}() params should be absent, an array or a map, "
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
                f"{method_text(call)}() takes {taken} positional {noun}, got {len(array)}"
            )
        return arguments, keywords

    def _bind_extra(self, named: Mapping[Any, Any], call: Call) -> dict[str, Any]:
        """What a map holds beyond the parameters, for ``**kwargs``."""
        keywords: dict[str, Any] = {}
        for name, value in named.items():
            if name in self._names:
                continue
            if self._extra is None or name in self._reserved or name.__class__ is not str:
                taken = parameter_names([slot for slot in self._slots if slot.name in self._names])
                raise InvalidParams(
                    f"{method_text(call)}() unexpected parameter {short_repr(name)}; "
                    f"by name it takes {taken or 'none'}"
                )
            keywords[name] = self._extra.accept(value, call, name)
        return keywords

    @staticmethod
    def _missing(
        slot: HandlerParameter, array: Sequence[Any], named: Mapping[Any, Any], call: Call
    ) -> InvalidParams:
        text = f"{method_text(call)}() missing parameter {slot.name!r}"
        if named and not slot.by_name:
            text += ", which is taken by position only"
        elif array and not slot.by_position:
            text += ", which is taken by name only"
        return InvalidParams(text)
