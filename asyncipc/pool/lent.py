"""Items of a map that may be filled anew for the next, and so are pickled before that is asked for.

Pickle takes objects of any class, so they are looked into wherever that can be done.
(`asyncipc.session.lending` is for what a codec takes, which refuses most classes.)

Layer 4, inside the pool. Above: the sources of a map.
"""

from collections.abc import Iterable
from functools import partial
from numbers import Number
from typing import Any, Final

from asyncipc.session.lending import HARMLESS

__all__ = ["is_lent"]

# Classes of these modules cannot be filled anew, but for the buffers among the builtins.
PLAIN_MODULES: Final = frozenset(
    {"builtins", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid", "zoneinfo"}
)
BUFFERS: Final = (bytearray, memoryview)
CONTAINERS: Final = (list, tuple, set, frozenset)

# Objects that are looked at in one item. What has more is packed alone, which is right of any item.
MOST: Final = 256


def is_lent(item: Any) -> bool:
    """Whether an item is, or holds, what its owner could fill anew; True where it is not known."""
    waiting = [item]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in HARMLESS or id(value) in seen:
            continue
        seen.add(id(value))
        inside = _inside(value)
        if inside is None or len(seen) > MOST:
            return True
        waiting += inside
    return False


def _inside(value: Any) -> list[Any] | None:
    """What a value holds; None if it is a buffer, or its contents are its own affair."""
    kind = type(value)
    if isinstance(value, BUFFERS):
        return None
    attributes = [*getattr(value, "__dict__", {}).values()] if kind.__module__ != "builtins" else []
    attributes += (getattr(value, name, None) for name in _slots(kind))
    if isinstance(value, dict):
        return [*value.values(), *attributes]
    if isinstance(value, CONTAINERS):
        return [*value, *attributes]
    if isinstance(value, partial):
        return [*value.args, *value.keywords.values(), *attributes]
    if kind.__module__ in PLAIN_MODULES or isinstance(value, Number):
        return []
    return attributes if hasattr(value, "__dict__") or _slots(kind) else None


def _slots(kind: type) -> list[str]:
    """The slots of a class and its bases, but for those that hold nothing."""
    found: list[str] = []
    for base in kind.__mro__:
        slots: str | Iterable[str] = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [name for name in found if name not in {"__dict__", "__weakref__"}]
