"""The only ``os.fork``: a child that begins afresh, from a process that has no loop and no thread.

What is reset in the child, because it would be shared or wrong there: the process group (its own),
signal handlers and mask, the wake-up descriptor, atexit functions, random number generators, and
the standard streams' buffers. What stays is memory: modules that were imported before.

A Python thread other than the one that forks vanishes in the child with the locks it held, so
`running_threads` must be empty. Native threads (OpenBLAS has some after ``import numpy``) bring
their own handlers for forks; `try_fork` sees whether a child comes up beside them.

Layer 1, beside wire and transport. Above it is the pool's zygote.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

__all__ = [
    "exit_now",
    "fork_child",
    "native_threads",
    "run_and_exit",
    "running_threads",
    "try_fork",
]

# Seconds that a trial child gets. It does next to nothing.
TRIAL_WAIT: Final = 5.0


def fork_child(run: Callable[[], int]) -> int:
    """Fork. The child runs ``run`` and exits with what it returns; it never comes back from here.

    The child leads a session and process group of its own. SIGINT is ignored there: a Ctrl-C is
    the application's to hear.

    :returns: the child's process id, in the parent
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # or the child would write it once more
    with warnings.catch_warnings():
        # From 3.12 on Python warns of any thread; the native ones are known here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        run_and_exit(partial(_run_afresh, run))
    return pid


def run_and_exit(run: Callable[[], int]) -> NoReturn:
    """Run this, and exit with what it returns; atexit functions run, threads are not waited for."""
    code = 1
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - nothing may get back into who forked this
        traceback.print_exc()
    finally:
        exit_now(code)


def running_threads() -> list[str]:
    """The names of the Python threads beside this one."""
    here = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = sys._current_frames()  # noqa: SLF001 - knows those that threading does not
    return [names.get(ident, f"thread {ident}") for ident in running if ident != here]


def native_threads() -> int:
    """How many threads of other languages this process has; 0 where nobody can tell."""
    tasks = Path("/proc/self/task")
    count = sum(1 for _ in tasks.iterdir()) if tasks.is_dir() else 1
    return max(0, count - 1 - len(running_threads()))


def try_fork() -> bool:
    """Whether a child comes up and can use threads, as one that hangs on a lost lock cannot."""

    def use_threads() -> int:
        thread = threading.Thread(target=list)
        thread.start()
        thread.join()
        return 0

    pid = fork_child(use_threads)
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(TRIAL_WAIT * 1000):
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _run_afresh(run: Callable[[], int]) -> int:
    _begin_afresh()
    return run()


def _begin_afresh() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        # Some cannot be set; none of those has a handler.
        with contextlib.suppress(OSError, ValueError):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    atexit._clear()  # noqa: SLF001 - as multiprocessing does; those of the parent are not for here
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # random seeds itself after a fork, numpy's global generator does not


def exit_now(code: int, *, run_atexit: bool = True) -> NoReturn:
    """End the process without waiting for its threads, or unwinding what belongs to its parent."""
    try:
        if run_atexit:
            atexit._run_exitfuncs()  # noqa: SLF001 - those that were registered in this process
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)
