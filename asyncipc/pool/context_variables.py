"""Context variables, carried over to a worker.

A `ContextVar` cannot be pickled. Those that are global names of a module are found there again, by
module and name; others, and values that cannot be pickled, stay behind.

Layer 4, inside the pool. Below: payload.
"""

import pickle
import sys
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from typing import Any, Final

from asyncipc.session.context import serving

__all__ = ["VariableNames", "dump_context", "load_context"]


# Context variables that are remembered. A program has few that last; those that it makes for each
# call are not to be found anyway, and not to be kept.
MAX_KNOWN: Final = 1024

# Times in a row that modules are searched in vain although none was imported since. A search costs
# half a millisecond or more.
MAX_SEARCHES: Final = 32


class VariableNames:
    """Where context variables are to be found: their module and name in it."""

    def __init__(self) -> None:
        # Those that are no module's global are known as such, with None.
        self._known: dict[ContextVar[Any], tuple[str, str] | None] = {serving: None}
        self._index: dict[ContextVar[Any], tuple[str, str]] = {}
        self._modules = 0  # that were there when it was made
        self._searches_in_vain = 0

    def find(self, variable: ContextVar[Any]) -> tuple[str, str] | None:
        """Module and name of a variable; None if it has none."""
        try:
            return self._known[variable]
        except KeyError:
            if len(self._known) >= MAX_KNOWN:
                self._known = {serving: None}
            found = self._known[variable] = self._search(variable)
            return found

    def _search(self, variable: ContextVar[Any]) -> tuple[str, str] | None:
        if variable in self._index:
            return self._index[variable]
        modules = len(sys.modules)
        if modules == self._modules and self._searches_in_vain >= MAX_SEARCHES:
            return None
        self._modules = modules
        self._index = _globals()
        found = self._index.get(variable)
        self._searches_in_vain = 0 if found is not None else self._searches_in_vain + 1
        return found


def dump_context(names: VariableNames) -> bytes | None:
    """The caller's context variables; None where there are none to carry over."""
    context = copy_context()
    if not context:
        return None
    values = []
    for variable, value in context.items():
        name = names.find(variable)
        if name is not None:
            try:
                values.append((*name, pickle.dumps(value, 5)))
            except Exception:  # noqa: BLE001, S112 - such a value stays behind
                continue
    return pickle.dumps(values, 5) if values else None


def load_context(data: bytes) -> Context:
    """In the worker: a fresh context with the variables that are to be found here."""
    context = Context()
    for module, name, value in pickle.loads(data):  # noqa: S301
        try:
            variable = getattr(sys.modules.get(module) or import_module(module), name)
            context.run(variable.set, pickle.loads(value))  # noqa: S301 - see `payload`
        except Exception:  # noqa: BLE001, S112 - a variable that is not here stays behind
            continue
    return context


def _globals() -> dict[ContextVar[Any], tuple[str, str]]:
    """The context variables that are globals of modules."""
    found: dict[ContextVar[Any], tuple[str, str]] = {}
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if isinstance(value, ContextVar):
                found.setdefault(value, (module.__name__, name))
    return found
