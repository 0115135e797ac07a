"""Context variables, carried over to a worker.

A `ContextVar` cannot be pickled. Those that are global names of a module are found there again, by
module and name; others, and values that cannot be pickled, stay behind.

Layer 4, inside the pool. Below: payload.
"""

import pickle
import sys
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from typing import Any

from asyncipc.session.context import serving

__all__ = ["VariableNames", "dump_context", "load_context"]


class VariableNames:
    """Where context variables are to be found: their module and name in it."""

    def __init__(self) -> None:
        # Those that are no module's global are known as such, with None.
        self._known: dict[ContextVar[Any], tuple[str, str] | None] = {serving: None}

    def find(self, variable: ContextVar[Any]) -> tuple[str, str] | None:
        """Module and name of a variable; None if it has none."""
        if variable not in self._known:
            self._known[variable] = _search(variable)
        return self._known[variable]


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


def load_context(data: bytes | None) -> Context:
    """In the worker: a fresh context with the variables that are to be found here."""
    context = Context()
    for module, name, value in pickle.loads(data) if data is not None else ():  # noqa: S301
        try:
            variable = getattr(sys.modules.get(module) or import_module(module), name)
            context.run(variable.set, pickle.loads(value))  # noqa: S301 - see `payload`
        except Exception:  # noqa: BLE001, S112 - a variable that is not here stays behind
            continue
    return context


def _search(variable: ContextVar[Any]) -> tuple[str, str] | None:
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return module.__name__, name
    return None
