"""The registry of message types: which class goes by which name on the wire.

It belongs to the process, like the classes in it. What fills it is `asyncipc.wire.types.message`.

Layer 1. Above: types, values, the session. Below: errors.
"""

import enum
from typing import Any, Final

from asyncipc.errors import DecodeError

__all__ = [
    "BY_CLASS",
    "BY_NAME",
    "Registration",
    "is_message",
    "registered",
    "registration",
    "wire_name",
]


class Registration:
    """A registered class: how its instances are taken apart and put together.

    :ivar name: the wire name
    :ivar cls: the class
    :ivar lenient: leave out what cannot be sent, instead of refusing the whole value
    """

    lenient = False

    def __init__(self, name: str, cls: type) -> None:
        self.name = name
        self.cls = cls

    def disassemble(self, value: Any) -> dict[str, Any]:  # noqa: ARG002 - for subclasses
        """The fields of an instance, by name."""
        raise TypeError(f"{self.name} has no fields")

    def assemble(self, fields: dict[str, Any]) -> Any:  # noqa: ARG002 - for subclasses
        """An instance with these fields.

        :raises DecodeError: a field is missing or does not fit its annotation, or the class
            refused; the text names the class and the field
        """
        raise DecodeError(f"{self.name} has no fields")


BY_NAME: Final[dict[str, Registration]] = {}
BY_CLASS: Final[dict[type, Registration]] = {}


def wire_name(cls: type) -> str | None:
    """The name under which a class is registered, or None."""
    entry = BY_CLASS.get(cls)
    return None if entry is None else entry.name


def registered(name: str) -> type | None:
    """The class registered under a wire name, or None."""
    entry = BY_NAME.get(name)
    return None if entry is None else entry.cls


def registration(cls: type) -> Registration | None:
    """What is known about a registered class, or None. Subclasses are classes of their own."""
    return BY_CLASS.get(cls)


def is_message(value: object) -> bool:
    """Whether a value is an instance of a registered class; members of Enums are plain values."""
    return type(value) in BY_CLASS and not isinstance(value, enum.Enum)
