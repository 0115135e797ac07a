"""Which handlers to ask for a method: tables as they are written, lookups as they are read.

A `HandlerTable` is what one registry says about calls of one kind. A `Lookup` is what a session
reads for each call: a dict that follows one or two tables, and is changed with them.

Layer 2, inside the session. Above: the registry. Below: handler.
"""

from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from asyncipc.session.handler import Handler, label

__all__ = ["ANY_METHOD", "HandlerTable", "Lookup"]

# Handlers of this method are asked when no other takes a call.
ANY_METHOD: Final = "*"


class HandlerTable:
    """The handlers of one kind in one registry.

    :param takes_generators: whether what they give goes anywhere
    :ivar handlers: by method, the newest first
    """

    __slots__ = ("_followers", "_takes_generators", "handlers")

    def __init__(self, *, takes_generators: bool = True) -> None:
        self._takes_generators = takes_generators
        self.handlers: dict[str, tuple[Handler, ...]] = {}
        self._followers: WeakValueDictionary[int, Lookup] = WeakValueDictionary()

    def add(self, handler: Handler) -> None:
        """Put a handler in front of those of its method.

        :raises TypeError: it is a generator, and nobody takes its items
        """
        self.check(handler)
        self.handlers[handler.method] = (handler, *self.handlers.get(handler.method, ()))
        self._changed(handler.method)

    def check(self, handler: Handler) -> None:
        """`add` without adding."""
        if handler.is_generator and not self._takes_generators:
            raise TypeError(
                f"{label(handler.function)} cannot handle {handler.method!r}: it is a generator, "
                "and nobody takes the items of a notification"
            )

    def remove(self, is_meant: Callable[[Handler], bool]) -> bool:
        """Drop handlers; True if there were any."""
        found = False
        for method, handlers in list(self.handlers.items()):
            kept = tuple(handler for handler in handlers if not is_meant(handler))
            if kept == handlers:
                continue
            found = True
            if kept:
                self.handlers[method] = kept
            else:
                del self.handlers[method]
            self._changed(method)
        return found

    def add_follower(self, lookup: "Lookup") -> None:
        """Tell a lookup of changes, as long as it lives."""
        self._followers[id(lookup)] = lookup

    def _changed(self, method: str) -> None:
        for follower in self._followers.valuerefs():  # a copy: sessions in other threads may follow
            lookup = follower()
            if lookup is not None:
                lookup.update_method(method)


class Lookup(dict[str, tuple[Handler, ...]]):
    """The handlers to ask for each method that is registered, in this order.

    For any other method ``lookup[method]`` gives those of ``"*"``, and notes nothing: the other
    side can think up any number of methods. A dict, because it is read for every call.

    :param tables: asked one after the other; those of ``"*"`` come last
    """

    __slots__ = ("__weakref__", "_others", "_tables")

    def __init__(self, *tables: HandlerTable) -> None:
        super().__init__()
        self._tables = tables
        self._others: tuple[Handler, ...] = ()
        for table in tables:
            table.add_follower(self)
        self.update_method(ANY_METHOD)

    def __missing__(self, method: str) -> tuple[Handler, ...]:
        return self._others

    def update_method(self, method: str) -> None:
        """The tables have changed what they say about a method."""
        if method != ANY_METHOD:
            self._update(method)
            return
        self._others = self._collect(ANY_METHOD)
        for table in self._tables:
            for known in table.handlers:
                self._update(known)

    def _update(self, method: str) -> None:
        handlers = self._collect(method)
        if handlers and method != ANY_METHOD:
            self[method] = handlers + self._others
        else:
            self.pop(method, None)

    def _collect(self, method: str) -> tuple[Handler, ...]:
        return tuple(
            handler for table in self._tables for handler in table.handlers.get(method, ())
        )
