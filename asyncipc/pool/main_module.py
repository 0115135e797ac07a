"""The application's main module, imported where workers are made.

Functions of the user's script are pickled as ``__main__.f``, so a worker needs that module under
that name. It is imported once more there, as ``__mp_main__`` like with multiprocessing: what stands
behind ``if __name__ == "__main__"`` does not run again.

Layer 4, inside the pool.
"""

import os
import runpy
import sys
import types
from pathlib import Path
from typing import Final

__all__ = ["GUARD", "clear_main", "describe_main", "import_main", "is_importing_main"]

# What the module is called in workers; multiprocessing's name, which scripts may know.
WORKER_MAIN: Final = "__mp_main__"

# What to do about a main module that does the application's work when it is imported.
GUARD: Final = 'put what starts it behind if __name__ == "__main__":'

_importing: list[bool] = []


def describe_main() -> dict[str, str]:
    """How another process can import this one's main module; empty where it cannot.

    It cannot in an interactive session, and need not where the main module is the ``__main__.py``
    of a package, such as pytest, which only calls what is elsewhere.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {} if name == "__main__" or name.endswith(".__main__") else {"name": str(name)}
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file() or Path(file).stem == "ipython":
        return {}
    return {"path": os.path.realpath(file)}


def clear_main() -> None:
    """Let the main module of this process be an empty one: the program that started it is not ours.

    Otherwise a function of an application whose main module cannot be imported would be looked for
    among the names of that program, and found if it is called ``main``.
    """
    sys.modules["__main__"] = types.ModuleType("__main__")


def import_main(description: dict[str, str]) -> None:
    """Import the main module that another process has described, and let it be ours.

    :raises ImportError: it raises something, which is the cause
    """
    if not description:
        return
    _importing.append(True)
    try:
        module = types.ModuleType(WORKER_MAIN)
        if "name" in description:
            contents = runpy.run_module(description["name"], run_name=WORKER_MAIN, alter_sys=True)
        else:
            contents = runpy.run_path(description["path"], run_name=WORKER_MAIN)
        module.__dict__.update(contents)
    except (Exception, SystemExit) as error:
        raise ImportError(
            f"the application's main module cannot be imported for a worker: {error!r}; if that "
            f"comes of what only the application is to do, {GUARD}"
        ) from error
    finally:
        _importing.pop()
    sys.modules["__main__"] = sys.modules[WORKER_MAIN] = module


def is_importing_main() -> bool:
    """Whether this process is importing somebody else's main module right now."""
    return bool(_importing)
