"""Values that came and that nobody takes: the file descriptors among them are closed.

Layer 2, inside the session. Above: binding. Below: wire, transport.
"""

from typing import Any, Final

from asyncipc.transport.fd import Fd
from asyncipc.wire.registry import is_message, registration

__all__ = ["close_descriptors"]

SEQUENCES: Final = (list, tuple, set, frozenset)


def close_descriptors(value: Any) -> None:
    """Close those in a value that was received, wherever they are."""
    values = [value]
    while values:
        value = values.pop()
        if type(value) is Fd:
            value.close()
        elif isinstance(value, SEQUENCES):
            values += value
        elif isinstance(value, dict):
            values += value.values()
        elif is_message(value):
            entry = registration(type(value))
            if entry is not None:
                values += entry.disassemble(value).values()
