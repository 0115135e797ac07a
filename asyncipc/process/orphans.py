"""Processes whose parent is gone, adopted by this one instead of by PID 1.

In a container PID 1 is often an application that waits for its own children only, so orphans that
end would stay there as zombies for ever.

Layer 1, beside wire and transport. Above it is the pool's zygote. Linux alone.
"""

import contextlib
import ctypes
from typing import Final

__all__ = ["adopt_orphans"]

# From <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """From now on orphans among the descendants of this process become its children.

    Who is forked from it does not inherit that. Nothing happens where the kernel cannot do it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
