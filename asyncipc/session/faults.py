"""Exceptions to faults and back: what of a handler's exception travels, and what comes of it.

Layer 2, inside the session. Below: wire.
"""

import traceback
from types import TracebackType
from typing import Any, Final

from asyncipc.errors import (
    CallDepthExceeded,
    FaultCode,
    IPCError,
    RemoteError,
    fault_code,
    fault_exception,
)
from asyncipc.wire.registry import is_message

__all__ = ["exception_of", "fault_reports"]

# Of a text or a traceback, what is sent: enough to read, and far from any limit on messages.
MAX_TEXT: Final = 32 * 1024

# The same where the other side takes only small messages.
MAX_BRIEF: Final = 1000

# What a note counts beside its characters, so that empty ones are bounded too.
NOTE_COST: Final = 32


def fault_reports(
    error: BaseException, *, with_traceback: bool
) -> list[tuple[int, str, dict[str, Any]]]:
    """Code, message and details of the fault for an exception; never raises.

    :returns: several reports, of which the first that can be encoded and is not too large is to
        be sent. The last is both.
    """
    name = _clean(_type_name(type(error)))[:MAX_BRIEF]
    try:
        message, details = _describe(error, with_traceback=with_traceback)
        code = FaultCode.TOO_DEEP if isinstance(error, CallDepthExceeded) else fault_code(error)
    except Exception as failure:  # noqa: BLE001 - methods of its class may raise anything
        text = f"<an exception that cannot be described: {type(failure).__name__}>"
        return [(FaultCode.ERROR, text, {"type": name})]
    reports = [(code, message, details), (code, message[:MAX_BRIEF], {"type": name})]
    if is_message(error):
        reports.insert(0, (code, message, {**details, "exception": error}))
    return reports


def _describe(error: BaseException, *, with_traceback: bool) -> tuple[str, dict[str, Any]]:
    """The message of an exception, and the details.

    A `RemoteError` of a nested call is passed on as what it was where it happened.
    """
    message, kind, remote_traceback = _text(error), _type_name(type(error)), ""
    if isinstance(error, RemoteError):
        message = _field(error, "message", message)
        kind = _field(error, "type", kind)
        remote_traceback = _field(error, "traceback", "")
    details: dict[str, Any] = {"type": _clean(kind)}
    notes = _notes(error)
    if notes:
        details["notes"] = notes
    if with_traceback:
        trace = remote_traceback or _traceback(error)
        if trace:
            details["traceback"] = _clean(trace)
    return _clean(message), details


def _field(error: RemoteError, name: str, default: str) -> str:
    """An attribute that a class of the user's may have left out, or made of something else."""
    value = getattr(error, name, default)
    return value if isinstance(value, str) else default


def _notes(error: BaseException) -> list[str]:
    """What notes an exception has, up to a bounded length in all."""
    notes = getattr(error, "__notes__", None) or getattr(error, "notes", ())
    if not isinstance(notes, list | tuple):
        return []
    cleaned: list[str] = []
    left = MAX_TEXT
    for note in notes:
        if isinstance(note, str) and left > 0:
            cleaned.append(_clean(note[:MAX_TEXT]))
            left -= len(note) + NOTE_COST
    return cleaned


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
    return "".join(lines)


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
