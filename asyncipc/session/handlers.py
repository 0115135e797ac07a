"""The handler registry: which functions take which requests and notifications.

A `Peer` has one registry and each of its sessions may have one. A session asks its own first and
then the peer's, through a `HandlerChain` that has the answer for each method ready.

Layer 2, inside the session. Above: dispatch, the peer. Below: handler, lookup.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

from asyncipc.session.handler import Handler, label
from asyncipc.session.lookup import HandlerTable, Lookup
from asyncipc.wire.registry import wire_name

__all__ = [
    "HandlerChain",
    "HandlerDecorator",
    "HandlerKind",
    "HandlerProvider",
    "Handlers",
]

HandlerKind = Literal["request", "notification"]

Function = TypeVar("Function", bound=Callable[..., Any])


@runtime_checkable
class HandlerProvider(Protocol):
    """An object that brings several handlers along, such as a service."""

    def __handlers__(
        self,
    ) -> Iterable[tuple[HandlerKind, str | type, Callable[..., Any], Mapping[str, Any]]]:
        """All handlers of the object.

        For each of them its kind, its method (a name or a message type), its function, and the
        options that `Handlers.on_request` takes by name.
        """
        ...


class HandlerDecorator:
    """What registers handlers of one kind: `Handlers.on_request`, `Handlers.on_notification`."""

    __slots__ = ("_add",)

    def __init__(self, add: Callable[[Handler], None]) -> None:
        self._add = add

    @overload
    def __call__(
        self, method: str | type | None = None, *, thread: bool = False
    ) -> Callable[[Function], Function]: ...
    @overload
    def __call__(self, method: Function, /) -> Function: ...
    def __call__(self, method: Any = None, *, thread: bool = False) -> Any:
        """Register the decorated function, which is returned unchanged.

        What it returns is awaited, where that is possible; best it is an ``async def`` then.

        :param method: the name of the method; a class registered with ``@message``, whose objects
            are then the parameter; ``"*"`` for what no other handler takes; or nothing, and the
            function's own name is used. Bare, the function itself.
        :param thread: run it in a thread instead of on the event loop; not for ``async def``
        :raises TypeError: the function cannot be a handler; the text says why: its signature or an
            annotation cannot be used, it is a generator (for notifications), it has no name of its
            own
        """
        if method is not None and not isinstance(method, str | type):
            if not callable(method):
                raise TypeError(
                    "the method must be a name, a class registered with @message or, bare, the "
                    f"function, not {method!r:.60}"
                )
            return self(None, thread=thread)(method)

        def register(function: Function) -> Function:
            name = _own_name(function) if method is None else method
            self._add(Handler(name, function, thread=thread))
            return function

        return register


class Handlers:
    """A registry.

    Handlers may come and go at any time; while sessions are open, on the thread of their loop.
    Where several are registered under one method the newest is asked first; one that returns
    ``NotImplemented`` passes the call on to the next.
    """

    __slots__ = ("_chain", "notifications", "requests")

    def __init__(self) -> None:
        self.requests: HandlerTable = HandlerTable()
        self.notifications: HandlerTable = HandlerTable(takes_generators=False)
        self._chain: HandlerChain | None = None

    def chain(self) -> "HandlerChain":
        """The chain that all sessions without handlers of their own share."""
        if self._chain is None:
            self._chain = HandlerChain(Handlers(), self)
        return self._chain

    @property
    def on_request(self) -> HandlerDecorator:
        """Decorate a function to serve requests; see `HandlerDecorator`."""
        return HandlerDecorator(self.requests.add)

    @property
    def on_notification(self) -> HandlerDecorator:
        """Decorate a function to take notifications; see `HandlerDecorator`.

        What it returns is not sent, but ``NotImplemented`` passes the notification on.
        """
        return HandlerDecorator(self.notifications.add)

    def register(self, provider: HandlerProvider) -> None:
        """Register all handlers that an object brings along; all or, after an error, none.

        :raises TypeError: it brings none, or one of them cannot be a handler
        """
        if not isinstance(provider, HandlerProvider):
            raise TypeError(
                f"expected an object with a __handlers__() method, not {provider!r:.60}"
            )
        tables = {"request": self.requests, "notification": self.notifications}
        prepared = []
        for kind, method, function, options in provider.__handlers__():
            if kind not in tables:
                raise TypeError(
                    f"the kind of a handler is 'request' or 'notification', not {kind!r}"
                )
            handler = Handler(method, function, owner=provider, **options)
            tables[kind].check(handler)
            prepared.append((tables[kind], handler))
        for table, handler in prepared:
            table.add(handler)

    def remove(self, target: object) -> None:
        """Take handlers off, of requests as of notifications. Calls being served go on.

        :param target: a function, or an object that was given to `register`: its handlers; a
            method's name or message type: all handlers of that method
        :raises LookupError: there is nothing to take off
        """
        method = wire_name(target) if isinstance(target, type) else target

        def is_meant(handler: Handler) -> bool:
            return handler.method == method or handler.belongs_to(target)

        if not self.requests.remove(is_meant) | self.notifications.remove(is_meant):
            raise LookupError(f"no handler is registered by {target!r:.60}")


class HandlerChain:
    """The handlers that one session asks: its own, then its peer's, then those of any method."""

    __slots__ = ("for_notification", "for_request")

    def __init__(self, session: Handlers, peer: Handlers) -> None:
        self.for_request: Callable[[str], tuple[Handler, ...]]
        """The handlers to ask, in this order, for a request of a method; empty if none takes it."""
        self.for_notification: Callable[[str], tuple[Handler, ...]]
        """`for_request`, for notifications."""
        self.for_request = Lookup(session.requests, peer.requests).__getitem__
        self.for_notification = Lookup(session.notifications, peer.notifications).__getitem__


def _own_name(function: Callable[..., Any]) -> str:
    """The name under which a function is registered if none is given."""
    name = getattr(function, "__name__", "<none>")
    if not name.isidentifier():
        raise TypeError(f"{label(function)} has no name of its own; give one: on_request('name')")
    return str(name)
