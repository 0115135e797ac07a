"""Items that hold something lent, which their owner may fill anew or close when asked for the next.

Those are encoded before that; all others are encoded together with those behind them.

Layer 2, inside the session. Below: wire.
"""

from typing import Any, Final

from asyncipc.wire.arrays import is_array
from asyncipc.wire.registry import registration

__all__ = ["HARMLESS", "holds_lent"]

# What is nothing of that kind, and holds nothing else.
HARMLESS: Final = frozenset({int, float, str, bytes, bool, type(None)})

BUFFERS: Final = frozenset({bytearray, memoryview})
SEQUENCES: Final = frozenset({list, tuple, set, frozenset})

# Items are looked into as far as this; what is nested deeper is taken for lent, which is right of
# any item.
MAX_DEPTH: Final = 32


def holds_lent(value: Any, depth: int = 0) -> bool:
    """Whether a value is, or holds, a buffer, an array, or what has a file descriptor."""
    kind = type(value)
    if kind in HARMLESS:
        return False
    if kind is dict:
        inside = value.values()
    elif kind in SEQUENCES:
        inside = value
    elif kind in BUFFERS or hasattr(kind, "fileno") or is_array(kind):
        return True
    else:
        entry = registration(kind)
        if entry is None:
            return False
        try:
            inside = entry.disassemble(value).values()
        except Exception:  # noqa: BLE001 - encoding it will say what is wrong, and at once
            return True
    for each in inside:
        if type(each) not in HARMLESS and (depth >= MAX_DEPTH or holds_lent(each, depth + 1)):
            return True
    return False
