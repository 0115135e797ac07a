"""Log records of a worker, handed over to the application's logging.

What the worker logs arrives in the logger of the same name there, with the worker's process id,
and meets that logger's handlers and filters; the worker's own loggers lose their handlers. The
worker drops by itself what the application's loggers do not let through at the time it is started.

Layer 4, inside the pool. Below: payload.
"""

import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Final

__all__ = ["LogForwarder", "forward_logs", "handle_record", "logger_levels"]

# Records lost because the application did not take them are told with the next that gets through.
_LOST: Final = "asyncipc.pool"

# What every record has, and values that travel as they are.
_PLAIN_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__)
_PLAIN_TYPES: Final = frozenset({type(None), bool, int, float, str})


def logger_levels() -> dict[str, int]:
    """The levels of all loggers that have one; the root's under the empty name."""
    levels = {"": logging.getLogger().level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


def forward_logs(levels: dict[str, int], post: Callable[[bytes], bool]) -> None:
    """In a worker: give every record to ``post``, and to nobody else.

    :param post: False where there is no room for it
    """
    root = logging.getLogger()
    for logger in (root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            # What modules have set up at their import: whether a record is written to the same file
            # is for the application to decide, whose loggers are set up in the same way.
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            logger.propagate = True
    root.addHandler(LogForwarder(post))
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


class LogForwarder(logging.Handler):
    """Pickles records and posts them."""

    def __init__(self, post: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._post = post
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            if self._lost and self._post(_pickled(_loss(self._lost))):
                self._lost = 0
            if not self._post(_pickled(record)):
                self._lost += 1
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)


def handle_record(data: bytes) -> None:
    """In the application: a record came."""
    fields, extras = pickle.loads(data)  # noqa: S301 - see `payload`
    for name, (pickled, text) in extras.items():
        try:
            fields[name] = pickle.loads(pickled)  # noqa: S301 - see `payload`
        except Exception:  # noqa: BLE001 - a class of the user's may raise anything
            fields[name] = text
    record = logging.makeLogRecord(fields)
    logger = logging.getLogger(record.name)
    if not logger.isEnabledFor(record.levelno):
        return
    try:
        logger.handle(record)
    except Exception:  # noqa: BLE001 - a filter of the application's: says so, with the record
        logging.Handler().handleError(record)


def _pickled(record: logging.LogRecord) -> bytes:
    """The record with its message made, since what it was made of may not travel.

    Fields of the user's own are pickled one by one, each beside a text to use instead: no such
    field may cost the record.
    """
    fields: dict[str, Any] = {}
    extras: dict[str, tuple[bytes, str]] = {}
    for name, value in record.__dict__.items():
        if name in _PLAIN_FIELDS or type(value) in _PLAIN_TYPES:
            fields[name] = value
            continue
        try:
            extras[name] = pickle.dumps(value, 5), repr(value)
        except Exception:  # noqa: BLE001 - its text has to do
            fields[name] = _text(value)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info:
        fields["exc_text"] = record.exc_text or "".join(
            traceback.format_exception(*record.exc_info)
        ).rstrip("\n")
        fields["exc_info"] = None
    return pickle.dumps((fields, extras), 5)


def _text(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - its class may be as broken as it likes
        return f"<a {type(value).__qualname__} whose repr raises {type(error).__name__}>"


def _loss(count: int) -> logging.LogRecord:
    text = f"{count} log records were lost: the application did not take them as fast"
    return logging.LogRecord(_LOST, logging.WARNING, __file__, 0, text, None, None)
