"""The handler registry: which functions take which requests and notifications.

A `Peer` has one registry and each of its sessions has one. A session asks its own first and then
the peer's, through a `HandlerChain` that has the answer for each method ready. How parameters
reach the function is the business of `asyncipc.session.binding`.

Layer 2, inside the session. Above: dispatch, the peer.
"""

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, Protocol, TypeVar, overload, runtime_checkable

from asyncipc.session.annotations import implementation
from asyncipc.session.binding import Invoke, prepare
from asyncipc.session.context import Call
from asyncipc.wire.registry import wire_name

__all__ = [
    "ANY_METHOD",
    "Handler",
    "HandlerChain",
    "HandlerDecorator",
    "HandlerKind",
    "HandlerProvider",
    "Handlers",
]

HandlerKind = Literal["request", "notification"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Handlers of this method are asked when no other takes a call.
ANY_METHOD: Final = "*"


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


class Handler:
    """A function that serves calls, with everything prepared that can be.

    :ivar method: the name it is registered under
    :ivar function: the function as its author wrote it
    :ivar invoke: ``invoke(params, call)`` binds the params, calls the function, and returns what
        it returns: a coroutine, if ``is_async``. Raises `InvalidParams` where params don't fit.
    :ivar is_async: the result of ``invoke`` has to be awaited
    :ivar thread: it wants to run in a thread
    :ivar is_generator: it gives items; of an ``async def`` if ``is_async``
    :ivar is_inline: it runs where the call was read, with no task of its own
    :ivar is_deferred: its ``invoke``, the function itself, only takes note of a request, and sets
        its ``task``; it is answered by `asyncipc.session.dispatch.Dispatch.complete`
    :ivar owner: the object it can be taken off by, beside its function and method
    """

    __slots__ = (
        "function",
        "invoke",
        "is_async",
        "is_deferred",
        "is_generator",
        "is_inline",
        "method",
        "owner",
        "thread",
    )

    def __init__(
        self,
        method: str | type,
        function: Callable[..., Any],
        *,
        thread: bool = False,
        deferred: bool = False,
        owner: object = None,
    ) -> None:
        self.method: str = method if isinstance(method, str) else _message_name(method)
        self.function: Callable[..., Any] = function
        self.owner: object = function if owner is None else owner
        self.thread: bool = thread
        self.is_async: bool
        self.is_inline: bool
        self.is_generator: bool = False
        self.is_deferred: bool = deferred
        if deferred:
            self.invoke: Invoke = function
            self.is_async = self.is_inline = False
            return
        try:
            prepared = _prepare(method, function, thread=thread)
            self.is_generator = _is_generator(function)
        except TypeError as error:
            raise TypeError(f"{_label(function)} cannot handle {self.method!r}: {error}") from None
        self.invoke = prepared[0]
        self.is_async = prepared[1]
        self.is_inline = not (self.is_async or thread or self.is_generator)

    def belongs_to(self, target: object) -> bool:
        """Whether ``target`` is the handler's function, or the object that brought it along."""
        return self.owner is target or self.function == target

    def __repr__(self) -> str:
        return f"<Handler {self.method!r}: {_label(self.function)}>"


def _prepare(
    method: str | type, function: Callable[..., Any], *, thread: bool
) -> tuple[Invoke, bool]:
    """How to call a handler, and whether the result has to be awaited."""
    if not callable(function):
        raise TypeError("it cannot be called")
    inner = implementation(function)
    is_async = inspect.iscoroutinefunction(inner) or _is_asynchronous_generator(inner)
    if is_async and thread:
        raise TypeError("an async def runs on the event loop; thread=True is for plain functions")
    invoke = prepare(function, method if isinstance(method, type) else None)
    if not (is_async or thread) and inspect.iscoroutinefunction(inspect.unwrap(inner)):
        # A decorator around an async def: whether it awaits or hands on is seen at the call.
        return _awaiting(invoke), True
    return invoke, is_async


def _is_generator(function: Callable[..., Any]) -> bool:
    inner = implementation(function)
    return _is_asynchronous_generator(inner) or inspect.isgeneratorfunction(inspect.unwrap(inner))


def _is_asynchronous_generator(inner: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(inspect.unwrap(inner))


def _awaiting(invoke: Invoke) -> Invoke:
    async def invoke_and_wait(params: Any, call: Call) -> Any:
        result = invoke(params, call)
        return await result if inspect.isawaitable(result) else result

    return invoke_and_wait


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


# The handlers of each method, in the order they are asked, and those of any other method.
_Lookup = tuple[dict[str, tuple[Handler, ...]], tuple[Handler, ...]]


class HandlerTable:
    """The handlers of one kind in one registry.

    :param takes_generators: whether what they give goes anywhere
    :ivar handlers: by method, the newest first
    :ivar revision: grows with every change
    """

    __slots__ = ("_lookup", "_takes_generators", "handlers", "revision")

    def __init__(self, *, takes_generators: bool = True) -> None:
        self._takes_generators = takes_generators
        self.handlers: dict[str, tuple[Handler, ...]] = {}
        self.revision: int = 0
        self._lookup: _Lookup | None = None

    def add(self, handler: Handler) -> None:
        """Put a handler in front of those of its method.

        :raises TypeError: it is a generator, and nobody takes its items
        """
        self.check(handler)
        self.handlers[handler.method] = (handler, *self.handlers.get(handler.method, ()))
        self._changed()

    def check(self, handler: Handler) -> None:
        """`add` without adding."""
        if handler.is_generator and not self._takes_generators:
            raise TypeError(
                f"{_label(handler.function)} cannot handle {handler.method!r}: it is a generator, "
                "and nobody takes the items of a notification"
            )

    def remove(self, is_meant: Callable[[Handler], bool]) -> bool:
        """Drop handlers; True if there were any."""
        kept = {
            method: tuple(handler for handler in handlers if not is_meant(handler))
            for method, handlers in self.handlers.items()
        }
        if kept == self.handlers:
            return False
        self.handlers = {method: handlers for method, handlers in kept.items() if handlers}
        self._changed()
        return True

    def lookup(self) -> _Lookup:
        """All that this table says, ready for use. Sessions of one peer share it."""
        if self._lookup is None:
            self._lookup = _merge(self.handlers)
        return self._lookup

    def _changed(self) -> None:
        self._lookup = None
        self.revision += 1


def _merge(*tables: dict[str, tuple[Handler, ...]]) -> _Lookup:
    """The lookup where one table is asked after the other."""

    def chain(method: str) -> tuple[Handler, ...]:
        return tuple(handler for table in tables for handler in table.get(method, ()))

    last = chain(ANY_METHOD)
    methods = {method for table in tables for method in table if method != ANY_METHOD}
    return {method: chain(method) + last for method in methods}, last


class HandlerChain:
    """The handlers that one session asks: its own, then its peer's, then those of any method.

    Holds what is registered and nothing about methods that merely were asked for, of which the
    other side can think up any number.
    """

    __slots__ = ("for_notification", "for_request")

    def __init__(self, session: Handlers, peer: Handlers) -> None:
        self.for_request: Callable[[str], tuple[Handler, ...]]
        """The handlers to ask, in this order, for a request of a method; empty if none takes it."""
        self.for_notification: Callable[[str], tuple[Handler, ...]]
        """`for_request`, for notifications."""
        self.for_request = _Chain(session.requests, peer.requests).find
        self.for_notification = _Chain(session.notifications, peer.notifications).find


class _Chain:
    """Two tables, one behind the other."""

    __slots__ = ("_far", "_known", "_last", "_near", "_revision")

    def __init__(self, near: HandlerTable, far: HandlerTable) -> None:
        self._near = near
        self._far = far
        self._revision = -1

    def find(self, method: str) -> tuple[Handler, ...]:
        if self._revision != self._near.revision + self._far.revision:
            self._refresh()
        return self._known.get(method, self._last)

    def _refresh(self) -> None:
        self._revision = self._near.revision + self._far.revision
        if self._near.handlers:
            self._known, self._last = _merge(self._near.handlers, self._far.handlers)
        else:
            self._known, self._last = self._far.lookup()


def _own_name(function: Callable[..., Any]) -> str:
    """The name under which a function is registered if none is given."""
    name = getattr(function, "__name__", "<none>")
    if not name.isidentifier():
        raise TypeError(f"{_label(function)} has no name of its own; give one: on_request('name')")
    return str(name)


def _message_name(method: type) -> str:
    """The wire name of a message type."""
    name = wire_name(method)
    if name is None or issubclass(method, enum.Enum):
        raise TypeError(
            f"{method.__qualname__} is no message type: expected a method's name or a class "
            "registered with @message (an Enum has no messages)"
        )
    return name


def _label(function: Callable[..., Any]) -> str:
    """A function as it is named in errors."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else f"{function!r:.60}"
