"""Functions, arguments and outcomes on their way between the application and a worker: pickled.

Protocol 5, with large buffers out of band: they travel as attachments, through shared memory where
that is to be had, and what is unpickled uses them where they arrive. Descriptors travel likewise.
Only private socket pairs between processes of one application carry this; nothing that listens on
an address ever unpickles.

Layer 4, inside the pool. Below: descriptors, errors, transport, wire.
"""

import functools
import inspect
import io
import pickle
import traceback
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType, TracebackType
from typing import Any, Final, cast

from asyncipc.errors import DecodeError, EncodeError, RemoteError, RequestCancelled
from asyncipc.pool.descriptors import Carried, DescriptorPickler, DescriptorUnpickler
from asyncipc.transport.fd import Fd
from asyncipc.wire.attachments import Writable

__all__ = [
    "MAX_FUNCTIONS",
    "Failure",
    "FunctionCache",
    "dump",
    "dump_arguments",
    "dump_failure",
    "dump_function",
    "dump_outcome",
    "function_name",
    "goes_by_name",
    "is_async",
    "load",
    "load_arguments",
    "load_failure",
    "safe_repr",
]

PROTOCOL: Final = 5

# A buffer of fewer bytes is copied into the pickle: that is cheaper than handling one more.
OUT_OF_BAND: Final = 16 * 1024

# Types whose values hold no buffer and no descriptor.
ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})

# Functions remembered by each side. A program has few that it gives to a pool.
MAX_FUNCTIONS: Final = 1024

# What a failure travels as: the exception pickled or None, its type, message, traceback and notes.
Failure = list[Any]


def dump(value: Any) -> list[Any]:
    """Pickle a value.

    :returns: the pickle, the buffers and then the descriptors that belong to it
    """
    if type(value) in ATOMS:
        return [pickle.dumps(value, PROTOCOL)]
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        with memoryview(buffer) as view:
            if view.nbytes < OUT_OF_BAND or not view.contiguous:
                return True
        buffers.append(buffer)
        return False

    carried: Sequence[Carried] = ()
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=keep_in_band)
    except TypeError:  # as for what holds a descriptor, which few values do
        buffers.clear()
        file = io.BytesIO()
        pickler = DescriptorPickler(file, PROTOCOL, buffer_callback=keep_in_band)
        pickler.dump(value)
        data, carried = file.getvalue(), pickler.carried()
    if not (buffers or carried):
        return [data]
    return [data, *(_as_it_should_arrive(buffer.raw()) for buffer in buffers), *carried]


def _as_it_should_arrive(view: memoryview) -> memoryview | bytearray | Writable:
    """A bytearray as one, which can be pickled in its turn; else memory of the same kind."""
    if view.readonly:
        return view
    owner = view.obj
    if type(owner) is bytearray and len(owner) == view.nbytes:
        return owner
    return Writable(view)


def dump_arguments(arguments: Any, name: str) -> list[Any]:
    """`dump` for what a function is to be called with.

    :param name: the function
    :raises EncodeError: something among the arguments cannot be pickled
    """
    try:
        return dump(arguments)
    except Exception as error:
        raise EncodeError(f"the arguments for {name} cannot be pickled: {error}") from error


def dump_outcome(value: Any, what: str) -> list[Any]:
    """`dump` for a result, or an item.

    :param what: this is, for errors
    :raises EncodeError: it cannot be pickled
    :raises MemoryError: there is no memory for its pickle
    """
    try:
        return dump(value)
    except MemoryError:
        raise
    except BaseException as error:  # what pickling raises is any code's
        kind = type(value)
        name = kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind)
        hint = ""
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            hint = "; the items of a generator are to be had with pool.stream()"
        raise EncodeError(f"{what}, a {name}, cannot be pickled: {error}{hint}") from error


def load(dumped: list[Any]) -> Any:
    """The reverse of `dump`. What unpickling raises is raised."""
    if len(dumped) == 1:
        return pickle.loads(dumped[0])  # noqa: S301 - see the module's docstring
    data, *buffers = dumped
    descriptors = [each for each in buffers if type(each) is Fd]
    if not descriptors:
        return pickle.loads(data, buffers=buffers)  # noqa: S301 - see the module's docstring
    unpickler = DescriptorUnpickler(
        io.BytesIO(data), descriptors, buffers=buffers[: -len(descriptors)]
    )
    try:
        return unpickler.load()
    except BaseException:
        unpickler.close()
        raise


def load_arguments(dumped: list[Any], name: str) -> Any:
    """The reverse of `dump_arguments`.

    :raises DecodeError: something among them cannot be unpickled here
    """
    try:
        return load(dumped)
    except Exception as error:
        raise DecodeError(f"the arguments for {name} cannot be unpickled: {error!r}") from error


def dump_function(function: Callable[..., Any]) -> bytes:
    """The pickle of a function.

    :raises EncodeError: it has none
    """
    try:
        return pickle.dumps(function, PROTOCOL)
    except Exception as error:
        raise EncodeError(
            f"{function_name(function)} cannot be given to a worker: {error}; it must be "
            "importable by its name, or picklable (no lambda, no function inside a function)"
        ) from error


def goes_by_name(function: object) -> bool:
    """Whether the pickle of a function is its name, so that it can be remembered."""
    if isinstance(function, FunctionType):
        return True
    # A function of C code has its module there, or the class; a method has any object.
    return isinstance(function, BuiltinFunctionType) and isinstance(
        function.__self__, ModuleType | type | None
    )


class FunctionCache:
    """Functions by their pickle, in a worker; those that go by their name are loaded once."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Callable[..., Any], str]] = {}

    def load(self, data: bytes) -> tuple[Callable[..., Any], str]:
        """The function, and its name for errors and logs.

        :raises DecodeError: it is not to be found here
        """
        known = self._known.get(data)
        if known is not None:
            return known
        try:
            function = cast(
                "Callable[..., Any]",
                pickle.loads(data),  # noqa: S301 - see the module's docstring
            )
        except Exception as error:
            raise DecodeError(
                f"the worker cannot find the function: {type(error).__name__}: {error}. It must be "
                "importable there: what is defined in an interactive session, or after the pool "
                "was started, is not"
            ) from error
        found = function, function_name(function)
        if goes_by_name(function):
            if len(self._known) >= MAX_FUNCTIONS:
                self._known.clear()
            self._known[data] = found
        return found


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or what a partial or an object with ``__call__`` calls, is async."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is wanted, not whether it is
    )


def function_name(function: Callable[..., Any]) -> str:
    """A function as it is named in errors and logs."""
    if isinstance(function, functools.partial):
        return f"partial({function_name(function.func)})"  # its arguments may be of any size
    name = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if name and module else f"{function!r:.80}"


def dump_failure(error: BaseException) -> Failure:
    """An exception, whatever it is, in a form that can be sent; never raises."""
    try:
        return _described(error)
    except BaseException as failure:  # noqa: BLE001 - its class may be as broken as it likes
        text = f"<an exception that cannot be described: {type(failure).__name__}>"
        return [None, type(error).__qualname__, text, "", []]


def _described(error: BaseException) -> Failure:
    try:
        trace = _without_library(error.__traceback__)
        text = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as failure:  # noqa: BLE001 - formatting calls methods of the user's class
        text = f"<its traceback could not be formatted: {type(failure).__name__}>"
    try:
        message = str(error)
    except BaseException as failure:  # noqa: BLE001 - likewise
        message = f"<its __str__ raised {type(failure).__name__}>"
    data = None
    # What ends a process or a task does not do so in the application.
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        try:
            data = pickle.dumps(error, PROTOCOL)
        except BaseException:  # noqa: BLE001 - then the description has to do
            data = None
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind)
    notes = [note for note in getattr(error, "__notes__", None) or () if isinstance(note, str)]
    return [data, _plain(name), _plain(message), _plain(text), [_plain(note) for note in notes]]


def _plain(text: str) -> str:
    """The text as a str that can be sent, whatever it holds and whatever subclass it is of."""
    return str.encode(text, "utf-8", "backslashreplace").decode()


def safe_repr(value: object) -> str:
    """The beginning of a repr, for errors, also where that raises."""
    try:
        return f"{value!r:.200}"
    except BaseException as error:  # noqa: BLE001 - its class may be as broken as it likes
        return f"<{type(value).__qualname__}; its repr raised {type(error).__name__}>"


def load_failure(failure: Failure) -> Exception:
    """The exception itself, caused by a report with the remote traceback; or the report alone."""
    data, name, message, text, notes = failure
    if name == "asyncio.exceptions.CancelledError":
        return RequestCancelled("the task was cancelled in the worker, and not by its caller")
    report = RemoteError(message, type=name, traceback=text, notes=notes)
    if data is None:
        return report
    try:
        error = pickle.loads(data)  # noqa: S301 - see the module's docstring
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
            return report
        error.__cause__ = report
    except BaseException as failed:  # noqa: BLE001 - a class of the user's may raise anything
        report.add_note(f"(the exception itself cannot be used here: {type(failed).__name__})")
        return report
    return error


def _without_library(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames that lead to the function: they tell the caller nothing."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(
        "asyncipc.pool."
    ):
        trace = trace.tb_next
    return trace


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
