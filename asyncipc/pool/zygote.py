"""The zygote: an interpreter that imports once what all workers need, and forks them.

It runs no event loop and no Python thread, so that every fork is safe, and ends with the
application. Its workers do not end with it: another zygote takes its place, and they go on.

Layer 4, inside the pool. Above: the starter, in the application. Below: control, worker,
process.fork.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Final, NoReturn

from asyncipc.pool import stages, worker
from asyncipc.pool.control import (
    ControlSocket,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Ready,
    Refused,
    Setup,
    Stage,
)
from asyncipc.pool.main_module import clear_main, import_main
from asyncipc.process.fork import (
    exit_now,
    fork_child,
    native_threads,
    running_threads,
    try_fork,
)
from asyncipc.process.lifeline import arm_inherited_lifeline, arm_lifeline
from asyncipc.process.orphans import adopt_orphans
from asyncipc.runner import occupy_standard_streams
from asyncipc.wire import msgpack_values  # noqa: F401 - imported late otherwise, in each worker

__all__ = ["main"]

STDERR: Final = 2

# Seconds for which it waits, when it is to end, for processes that its workers have left behind:
# those that belonged to their groups were killed a moment ago.
LAST_WAIT: Final = 0.1


def main(descriptor: int) -> NoReturn:
    """The program of a zygote.

    :param descriptor: its end of the control socket
    """
    arm_inherited_lifeline()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the application's to hear
    clear_main()
    occupy_standard_streams()  # or what follows would get their numbers, in workers too
    # What stands open now is the zygote's own, and nothing for its workers.
    own = _open_descriptors() - {0, 1, STDERR}
    with contextlib.closing(ControlSocket(socket.socket(fileno=descriptor))) as control:
        _speak(control, own)
    # Not by sys.exit: it would wait for threads that a preloaded module has left running.
    exit_now(0, run_atexit=False)


def _speak(control: ControlSocket, own: set[int]) -> None:
    received = control.receive()
    if received is None:
        return
    setup, (application,) = received
    assert isinstance(setup, Setup)
    began = monotonic()
    reason = _become(setup, lambda doing: _tell(control, doing))
    with contextlib.suppress(ConnectionError):
        control.send(Ready(monotonic() - began) if reason is None else Refused(reason))
        if reason is None:
            zygote = _Zygote(control, application, own)
            try:
                zygote.serve()
            finally:
                zygote.bury_orphans()


def _tell(control: ControlSocket, doing: str) -> None:
    with contextlib.suppress(ConnectionError):  # of which is heard behind it
        control.send(Stage(doing))


def _become(setup: Setup, tell: Callable[[str], None]) -> str | None:
    """Import everything; the reason why no worker can be forked then, if there is one."""
    sys.path[:] = setup.path
    sys.argv[:] = setup.argv
    doing = stages.IMPORTING_MAIN
    try:
        tell(doing)
        import_main(setup.main)
        for module in setup.preload:
            doing = stages.preloading(module)
            tell(doing)
            import_module(module)
    except BaseException:  # noqa: BLE001 - SystemExit too: nothing may be left untold
        return f"{doing} failed in the zygote:\n{traceback.format_exc()}"
    tell("trying to fork")
    threads = running_threads()
    if threads:
        return (
            f"what was preloaded left Python threads running, so forking is not safe: "
            f"{', '.join(threads)}. Start them in an initializer instead, or take "
            'start_method="spawn"'
        )
    if native_threads() and not try_fork():
        return (
            "what was preloaded left native threads running, and a trial fork beside them did not "
            'come up; take start_method="spawn"'
        )
    # What lives now lives for ever: pages that the collector does not touch stay shared.
    gc.collect()
    gc.freeze()
    return None


class _Zygote:
    def __init__(self, control: ControlSocket, application: int, own: set[int]) -> None:
        self._control = control
        self._application = application
        self._own = own
        self._workers: dict[int, tuple[int, int]] = {}  # by pidfd: number, process id
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        self._poller.register(application, select.POLLIN)
        # What its workers leave behind is adopted, and reaped when SIGCHLD has written to this.
        adopt_orphans()
        self._children, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._children, select.POLLIN)
        signal.signal(signal.SIGCHLD, _wake_up)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Fork and reap until the application hangs up."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._application:
                    # Lifelines have done it, unless some fork of the application holds them.
                    self._kill_workers()
                    return
                if descriptor != self._control.fileno():
                    # Not the one it belongs to: that may be reaped, and its number another's.
                    self._reap_all()
                    continue
                received = self._control.receive()
                if received is None:
                    return
                record, descriptors = received
                assert isinstance(record, Fork)
                self._fork(record.worker, descriptors)

    def _fork(self, number: int, descriptors: list[int]) -> None:
        try:
            if len(descriptors) != 3:  # the kernel drops those for which there is no room
                raise OSError(errno.EMFILE, "no descriptor is left for those of a worker")
            threads = running_threads()
            if threads:  # one that a preloaded module has started since
                raise RuntimeError(f"Python threads run in the zygote: {', '.join(threads)}")
            pid = fork_child(partial(self._become_worker, *descriptors))
            pidfd = _open_pidfd(pid)
        except (OSError, RuntimeError) as error:
            self._control.send(ForkFailed(number, str(error)))
        else:
            self._workers[pidfd] = number, pid
            self._poller.register(pidfd, select.POLLIN)
            self._control.send(Forked(number, pid), [pidfd])
        finally:
            # No worker forked later may hold an end of this one's.
            for descriptor in descriptors:
                os.close(descriptor)

    def _reap(self, pidfd: int) -> None:
        number, pid = self._workers.pop(pidfd)
        self._poller.unregister(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        with contextlib.suppress(ConnectionError):  # nobody listens: that is about to be noticed
            self._control.send(Exited(number, os.waitstatus_to_exitcode(status)))

    def _reap_all(self) -> bool:
        """Reap all that have ended, workers and orphans; whether there are others."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._children, 4096):
                pass
        pidfds = {pid: pidfd for pidfd, (_, pid) in self._workers.items()}
        try:
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                pidfd = pidfds.get(ended.si_pid)
                if pidfd is not None:
                    self._reap(pidfd)
                else:
                    os.waitpid(ended.si_pid, 0)
        except ChildProcessError:
            return False
        return True

    def bury_orphans(self) -> None:
        """The end has come: wait for those that are being killed, but not for long."""
        until = monotonic() + LAST_WAIT
        poller = select.poll()
        poller.register(self._children, select.POLLIN)
        while self._reap_all() and (left := until - monotonic()) > 0:
            poller.poll(left * 1000)

    def _kill_workers(self) -> None:
        for _, pid in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _become_worker(self, end: int, stderr: int, lifeline: int) -> int:
        arm_lifeline(lifeline)
        os.dup2(stderr, STDERR)
        os.close(stderr)
        for descriptor in (*self._own, *self._workers, self._children, self._wakeup):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return worker.serve(socket.socket(fileno=end), self._application)


def _wake_up(_number: int, _frame: object) -> None:
    """A signal that has a handler writes to the wake-up descriptor."""


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _open_descriptors() -> set[int]:
    found = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that the listing itself needed
            os.fstat(int(entry.name))
            found.add(int(entry.name))
    return found
