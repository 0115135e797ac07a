"""One parameter of a handler: what it takes, and how a value is made to fit.

Layer 2, inside the session. Above: binding. Below: annotations, wire.
"""

from collections.abc import Sequence
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
    short_repr,
)
from asyncipc.session.context import Call
from asyncipc.session.item_receiver import ItemReceiver
from asyncipc.session.unclaimed import close_descriptors
from asyncipc.wire.registry import is_message

if TYPE_CHECKING:
    from asyncipc.wire import conversion
else:  # needed for values that are not of the annotated class itself
    conversion = LazyModule("asyncipc.wire.conversion")

__all__ = ["HandlerParameter", "method_text", "parameter_names"]

# Of a method's name that stands in an error: one that a "*" handler took may be any text.
MAX_METHOD_TEXT: Final = 100

# Of the names of a handler's parameters, how many an error lists.
MAX_NAMES: Final = 10


class HandlerParameter:
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
        self.name: str = parameter.name
        self.kind: Any = parameter.kind
        self.default: Any = parameter.default
        self.takes_call: bool = is_call(annotation)
        if self.takes_call and self.is_variadic:
            raise TypeError(f"parameter {self.name!r}: there is only one Call; leave out the star")
        self.wanted: Any = annotation  # as its author wrote it, for errors
        self.annotation: Any = annotation
        items = item_annotation(annotation)
        self.takes_items: bool = items is not None
        if self.takes_items:
            self.classes: tuple[type, ...] | None = ()  # it is always looked at
            self.items: HandlerParameter = HandlerParameter(
                parameter.replace(annotation=items), items
            )
            return
        try:
            self.classes = accepted_classes(annotation)
            if self.classes is not None and not self.takes_call:
                self.annotation = checkable(annotation)
        except TypeError as error:
            raise TypeError(f"parameter {self.name!r}: {error}") from None

    @property
    def is_required(self) -> bool:
        """It has no default, so a call must give it."""
        return self.default is Parameter.empty and not self.is_variadic

    @property
    def is_variadic(self) -> bool:
        """It takes what is left: ``*args`` or ``**kwargs``."""
        return self.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

    @property
    def by_position(self) -> bool:
        """An array can give it."""
        return self.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

    @property
    def by_name(self) -> bool:
        """A map can give it."""
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
            return conversion.convert(value, self.annotation)
        except DecodeError as error:
            text = (
                f"{method_text(call)}() parameter {short_repr(name or self.name)}: expected "
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
                f"{method_text(call)}() parameter {self.name!r}: expected a stream of items, got "
                f"{type(value).__qualname__} ({short_repr(value)})"
            )
        if self.items.classes is not None:
            name = f"{self.name}[]"
            value.convert = lambda item: self.items.accept(item, call, name)
        return value


def method_text(call: Call) -> str:
    """The method of a call, for an error, of bounded length."""
    return f"{call.method:.{MAX_METHOD_TEXT}}"


def parameter_names(slots: Sequence[HandlerParameter]) -> str:
    """The names of parameters, for an error."""
    names = ", ".join(repr(slot.name) for slot in slots[:MAX_NAMES])
    return f"{names}, ..." if len(slots) > MAX_NAMES else names
