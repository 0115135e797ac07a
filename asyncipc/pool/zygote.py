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
from asyncipc.pool.main_module import import_main
from asyncipc.process.fork import fork_child, native_threads, running_threads, try_fork
from asyncipc.process.lifeline import arm_inherited_lifeline, arm_lifeline
from asyncipc.wire import msgpack_values  # noqa: F401 - imported late otherwise, in each worker

__all__ = ["main"]

STDERR: Final = 2


def main(descriptor: int) -> NoReturn:
    """The program of a zygote.

    :param descriptor: its end of the control socket
    """
    arm_inherited_lifeline()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the application's to hear
    # What stands open now is the zygote's own, and nothing for its workers.
    own = _open_descriptors() - {0, 1, STDERR}
    with contextlib.closing(ControlSocket(socket.socket(fileno=descriptor))) as control:
        _speak(control, own)
    # Not by sys.exit: it would wait for threads that a preloaded module has left running.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
            _Zygote(control, application, own).serve()


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

    def serve(self) -> None:
        """Fork and reap until the application hangs up."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._application:
                    # Lifelines have done it, unless some fork of the application holds them.
                    self._kill_workers()
                    return
                if descriptor in self._workers:
                    self._reap(descriptor)
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
        self._control.send(Exited(number, os.waitstatus_to_exitcode(status)))

    def _kill_workers(self) -> None:
        for _, pid in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _become_worker(self, end: int, stderr: int, lifeline: int) -> int:
        arm_lifeline(lifeline)
        os.dup2(stderr, STDERR)
        os.close(stderr)
        for descriptor in (*self._own, *self._workers):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return worker.serve(socket.socket(fileno=end), self._application)


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
