"""What takes so long while a worker starts, for the error of one that was not ready in time.

Layer 4, inside the pool. Above: who is at it (zygote, worker), and who tells of it (starting,
launching).
"""

from typing import Final

from asyncipc.pool.main_module import GUARD

__all__ = ["IMPORTING_MAIN", "STARTING", "preloading", "told"]

STARTING: Final = "starting"
IMPORTING_MAIN: Final = "importing the application's main module"


def preloading(module: str) -> str:
    """The stage in which a module is imported ahead."""
    return f"preloading {module!r}"


def told(who: str, doing: str, stderr_tail: str) -> str:
    """A stage as it is told: who is at what, what to do about it, and the last words on stderr."""
    text = f"{who} was {doing}"
    if doing == IMPORTING_MAIN:
        text += f", which may be at what only the application is to do; {GUARD}"
    if stderr_tail:
        text += f"; its last words on stderr:\n{stderr_tail.rstrip()}"
    return text
