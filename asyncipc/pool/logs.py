"""Log records of a worker, handed over to the application's logging.

What the worker logs arrives in the logger of the same name there, with the worker's process id,
and meets that logger's handlers and filters. The worker drops by itself what the application's
loggers do not let through at the time it is started.

Layer 4, inside the pool. Below: payload.
"""

import copy
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Final

__all__ = ["LogForwarder", "forward_logs", "handle_record", "logger_levels"]

# Records lost because the application did not take them are told with the next that gets through.
_LOST: Final = "asyncipc.pool"


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
    for handler in root.handlers[:]:
        root.removeHandler(handler)  # the application's own have it twice otherwise
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
    record = logging.makeLogRecord(pickle.loads(data))  # noqa: S301 - see `payload`
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _pickled(record: logging.LogRecord) -> bytes:
    """The record with its message made, since what it was made of may not travel."""
    fields: dict[str, Any] = dict(record.__dict__)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info:
        fields["exc_text"] = record.exc_text or "".join(
            traceback.format_exception(*record.exc_info)
        ).rstrip("\n")
        fields["exc_info"] = None
    try:
        return pickle.dumps(fields, 5)
    except Exception:  # noqa: BLE001 - an extra field of the user's: its text has to do
        plain = copy.copy(logging.makeLogRecord({}).__dict__)
        fields = {key: value if key in plain else repr(value) for key, value in fields.items()}
        return pickle.dumps(fields, 5)


def _loss(count: int) -> logging.LogRecord:
    text = f"{count} log records were lost: the application did not take them as fast"
    return logging.LogRecord(_LOST, logging.WARNING, __file__, 0, text, None, None)
