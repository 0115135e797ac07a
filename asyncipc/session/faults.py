"""Exceptions to faults and back: what of a handler's exception travels, and what comes of it.

Layer 2, inside the session. Below: errors.
"""

import traceback
from types import TracebackType
from typing import Any, Final

from asyncipc.errors import IPCError, RemoteError, fault_exception

__all__ = ["describe_exception", "exception_of"]

# Of a text or a traceback, what is sent: enough to read, and far from any limit on messages.
MAX_TEXT: Final = 32 * 1024


def describe_exception(error: BaseException, *, with_traceback: bool) -> tuple[str, dict[str, Any]]:
    """The message and the details of the fault for an exception. Never raises.

    A `RemoteError` of a nested call is passed on as what it was where it happened.
    """
    if isinstance(error, RemoteError):
        message, kind, remote_traceback = error.message, error.type, error.traceback
    else:
        message, kind, remote_traceback = _text(error), _type_name(type(error)), ""
    details: dict[str, Any] = {"type": kind}
    notes = getattr(error, "__notes__", None) or getattr(error, "notes", ())
    if isinstance(notes, list | tuple) and notes:
        details["notes"] = [_clean(str(note)) for note in notes if isinstance(note, str)]
    if with_traceback:
        trace = remote_traceback or _traceback(error)
        if trace:
            details["traceback"] = trace
    return _clean(message), details


def exception_of(message: list[Any]) -> Exception:
    """The exception for a fault ``[kind, id, code, message, details]``.

    An exception of a registered type comes back as itself, caused by the report about it.
    """
    _, _, code, text, details = [*message, None][:5]
    if not isinstance(details, dict):
        details = {}
    report = fault_exception(code, text, details)
    original = details.get("exception")
    if not isinstance(original, Exception) or isinstance(original, StopIteration):
        return report  # (a future cannot carry a StopIteration)
    original.__cause__ = report
    return original


def _type_name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins" or issubclass(kind, IPCError):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failure:  # noqa: BLE001 - a __str__ may raise anything
        return f"<its __str__ raised {type(failure).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        frames = _without_library(error.__traceback__)
        if frames is None:
            return ""
        lines = traceback.format_exception(type(error), error, frames)
    except BaseException as failure:  # noqa: BLE001 - formatting calls __str__ and __repr__
        return f"<its traceback could not be formatted: {type(failure).__name__}>"
    return _clean("".join(lines))


def _without_library(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames that lead to the handler: they tell the caller nothing."""
    at = frames
    while at is not None:
        if not str(at.tb_frame.f_globals.get("__name__", "")).startswith("asyncipc.session."):
            return at
        at = at.tb_next
    return None


def _clean(text: str) -> str:
    """Text that can be sent: of bounded length and without lone surrogates."""
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT // 2] + "\n...\n" + text[-MAX_TEXT // 2 :]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
