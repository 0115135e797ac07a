"""A handler: a function that serves calls, with everything prepared that can be.

How parameters reach the function is the business of `asyncipc.session.binding`.

Layer 2, inside the session. Above: the registry and its lookups, execution, dispatch.
"""

import enum
import inspect
from collections.abc import Callable
from typing import Any

from asyncipc.session.annotations import implementation
from asyncipc.session.binding import Invoke, prepare
from asyncipc.session.context import Call
from asyncipc.wire.registry import wire_name

__all__ = ["Handler", "label"]


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
            raise TypeError(f"{label(function)} cannot handle {self.method!r}: {error}") from None
        self.invoke = prepared[0]
        self.is_async = prepared[1]
        self.is_inline = not (self.is_async or thread or self.is_generator)

    def belongs_to(self, target: object) -> bool:
        """Whether ``target`` is the handler's function, or the object that brought it along."""
        return self.owner is target or self.function == target

    def __repr__(self) -> str:
        return f"<Handler {self.method!r}: {label(self.function)}>"


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


def _message_name(method: type) -> str:
    """The wire name of a message type."""
    name = wire_name(method)
    if name is None or issubclass(method, enum.Enum):
        raise TypeError(
            f"{method.__qualname__} is no message type: expected a method's name or a class "
            "registered with @message (an Enum has no messages)"
        )
    return name


def label(function: Callable[..., Any]) -> str:
    """A function as it is named in errors."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else f"{function!r:.60}"
