"""What a worker is to do, packed once and ready to be sent to whichever worker gets it.

Layer 4, inside the pool. Above: tasks, the pool. Below: payload, context_variables.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from asyncipc.lazy import LazyModule
from asyncipc.pool.context_variables import VariableNames, dump_context
from asyncipc.pool.descriptors import Carried
from asyncipc.pool.payload import (
    MAX_FUNCTIONS,
    dump_arguments,
    dump_function,
    function_name,
    goes_by_name,
    is_async,
)
from asyncipc.pool.protocol import MAP, RUN, STREAM
from asyncipc.wire.attachments import Writable

if TYPE_CHECKING:
    from asyncipc.transport import shared_memory
else:
    shared_memory = LazyModule("asyncipc.transport.shared_memory")

__all__ = ["Packer", "Work"]

# Bytes of function and arguments that a call in a bundle may have: 32 of them fit one frame.
MAX_BUNDLED: Final = 1000

# The parameters of a call that has nothing beside the pickles of its function and its arguments.
PICKLES: Final = 2

# What is found out about a function: its pickle, its name, whether it is plain, and what its
# duration is remembered under.
_Known = tuple[bytes, str, bool, bytes]


class Work:
    """What a worker is to do.

    :ivar method: one of `asyncipc.pool.protocol`
    :ivar params: what the worker gets with it; the first is the function's pickle
    :ivar metadata: what goes along: context variables, and that items are wanted; or None
    :ivar name: the function, for errors
    :ivar exclusive: it is a plain function, which needs a worker to itself
    :ivar key: what its duration is remembered under, or None where that tells nothing
    :ivar fits_bundle: it is small enough to travel with others (`asyncipc.pool.bundle`)
    """

    __slots__ = ("exclusive", "fits_bundle", "key", "metadata", "method", "name", "params")

    def __init__(
        self,
        method: str,
        params: list[Any],
        metadata: dict[str, Any] | None,
        name: str,
        *,
        exclusive: bool,
        key: bytes | None = None,
    ) -> None:
        self.method: str = method
        self.params: list[Any] = params
        self.metadata: dict[str, Any] | None = metadata
        self.name: str = name
        self.exclusive: bool = exclusive
        self.key: bytes | None = key
        self.fits_bundle: bool = (
            method == RUN
            and exclusive
            and metadata is None
            and len(params) == PICKLES
            and len(params[0]) + len(params[1]) <= MAX_BUNDLED
        )

    @property
    def size(self) -> int:
        """Bytes of what it is to be done with, pickled."""
        return sum(
            memoryview(getattr(part, "buffer", part)).nbytes
            for part in self.params[1:]
            if not hasattr(part, "fileno")
        )


class Packer:
    """Packs calls into `Work`, and remembers what needs to be found out only once."""

    def __init__(self) -> None:
        self._variables = VariableNames()
        # Of functions that go by their name.
        self._known: dict[Callable[..., Any], _Known] = {}

    def pack_call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        lasting: bool = False,
    ) -> Work:
        """One call, with the context variables of who packs it.

        :param lasting: who packs it waits for its end, until which the buffers among the arguments
            do not change; else they are copied
        :raises EncodeError: function or arguments cannot be pickled
        """
        return self._pack(RUN, function, (args, kwargs), lasting=lasting)

    def pack_chunk(self, function: Callable[..., Any], items: Sequence[Any]) -> Work:
        """A call with each of the items; see `pack_call`."""
        return self._pack(MAP, function, items)

    def pack_stream(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Work:
        """One call of which the items are wanted; see `pack_call`."""
        work = self._pack(STREAM, function, (args, kwargs))
        work.metadata = {**(work.metadata or {}), "stream": True}
        return work

    def _pack(
        self, method: str, function: Callable[..., Any], arguments: Any, *, lasting: bool = False
    ) -> Work:
        try:
            pickled, name, exclusive, key = self._known[function]
        except (KeyError, TypeError):  # it may not even be hashable
            pickled, name, exclusive, key = self._look_at(function)
        dumped = dump_arguments(arguments, name)
        if len(dumped) > 1 and not lasting:
            dumped[1:] = map(_owned, dumped[1:])
        params = [pickled, *dumped]
        context = dump_context(self._variables)
        metadata = None if context is None else {"context": context}
        if method != RUN:
            return Work(method, params, metadata, name, exclusive=exclusive)
        return Work(method, params, metadata, name, exclusive=exclusive, key=key)

    def _look_at(self, function: Callable[..., Any]) -> _Known:
        pickled, name = dump_function(function), function_name(function)
        exclusive = not is_async(function)
        if not goes_by_name(function):
            return pickled, name, exclusive, _key(function)
        if len(self._known) >= MAX_FUNCTIONS:
            self._known.clear()
        self._known[function] = known = pickled, name, exclusive, pickled
        return known


def _key(function: Callable[..., Any]) -> bytes:
    """What stands for all partials, methods or objects of a kind.

    Not the pickle: it may hold anything, of any size, and hardly comes twice.
    """
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None)} {named.__qualname__}".encode()


def _owned(part: memoryview | bytearray | Writable | Carried) -> Any:
    """A copy of a buffer that its owner may change, which arrives as the buffer would.

    Descriptors are copies already; `asyncipc.shared_buffer` is for those who will not change it.
    """
    if isinstance(part, Carried):
        return part
    if isinstance(part, bytearray):
        return bytearray(part)
    view = part.buffer if isinstance(part, Writable) else part
    if type(view.obj) is bytes or shared_memory.memory_behind(view) is not None:
        return part
    if isinstance(part, Writable):
        return Writable(memoryview(bytearray(view)))
    return memoryview(bytes(view))
