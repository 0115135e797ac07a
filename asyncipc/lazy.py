"""Modules that are imported when they are first used.

For what most processes never need (TLS, spawning, a second codec) or need only later (checking
annotations), so that a process which needs two modules imports two modules. The import stands
under ``TYPE_CHECKING`` beside the lazy one: type checkers, and the test of the layers, see it.

Layer 0: imports nothing of the library.
"""

from importlib import import_module
from typing import Any

__all__ = ["LazyModule"]


class LazyModule:
    """Stands for a module until one of its names is asked for.

    Used so::

        if TYPE_CHECKING:
            from asyncipc.peer import spawning
        else:
            spawning = LazyModule("asyncipc.peer.spawning")
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._name), name)
        self.__dict__[name] = value  # found without this function from now on
        return value
