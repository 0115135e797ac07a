"""A child process: started as the leader of its own group, its exit noticed, its end made sure.

Owns the process id, its group, the reaping and the lifeline; not the child's streams, whose
descriptors the caller passes in and closes. No SIGCHLD handler and no child watcher of asyncio is
involved, so it works on any loop and in any thread that runs one.

How an exit is noticed: the kernel makes a pidfd readable when the process is dead but not reaped.
As long as it is not reaped, its number cannot be given to another process or group. Everything
follows from that order: see the exit, kill what is left of the group, only then reap. A signal is
never sent behind the reaping, so it can't hit a stranger.

What the exit callbacks may rely on: whatever the child has written before it died is in the pipes
by then, and nobody has been told of its death yet. So they can read sockets and stderr dry, which
may still yield the reply that a caller waits for, before they fail the calls that remain. They run
first; tasks in `ChildProcess.wait` wake up in a later turn of the loop.

Layer 1, beside wire and transport. Below it in this package are ``handle`` and ``lifeline``.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from asyncipc.process.handle import KILL_WAIT, UNKNOWN_STATUS, ProcessHandle
from asyncipc.process.lifeline import Lifeline

__all__ = ["ChildProcess", "start_child"]

_logger = logging.getLogger(__name__)


class ChildProcess(ProcessHandle):
    """A running or ended child process; made by `start_child`. For the thread of its loop only.

    It can't be lost: it is killed when this process dies (see ``lifeline``), when it exits without
    having ended the child, and when the loop is closed and the object dropped; the latter two are
    reported with a ResourceWarning.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        lifeline: Lifeline,
        loop: asyncio.AbstractEventLoop,
        *,
        terminates_group: bool,
    ) -> None:
        super().__init__(loop)
        self._terminates_group = terminates_group
        self._owner = os.getpid()
        self._popen = popen
        self._lifeline = lifeline
        # There is one exactly as long as the child is ours to end and to reap.
        self._watch: _ExitWatch | None = None
        self._watch = _watch_exit(popen, loop, self._on_exit_noticed)
        _running.add(self)

    @property
    def pid(self) -> int:
        """The process id, also the number of its process group and session."""
        return self._popen.pid

    def send_signal(self, number: int) -> None:
        """Send a signal to the child alone, not to its group. Nothing happens after its exit.

        :raises PermissionError: it runs as another user
        """
        # Not Popen.send_signal, which may reap the child before its group is killed.
        if self._may_signal:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the child to end, and its whole process group unless it was started otherwise.

        By SIGTERM. Nothing happens after the child's exit.

        :raises PermissionError: all of it runs as another user
        """
        send = self._signal_group if self._terminates_group else self.send_signal
        send(signal.SIGTERM)
        # A stopped process takes SIGTERM only when it goes on.
        send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the whole process group: SIGKILL. Nothing happens after the child's exit.

        :raises PermissionError: all of it runs as another user
        """
        self._signal_group(signal.SIGKILL)

    def __repr__(self) -> str:
        return f"<ChildProcess {self.pid} {self._popen.args!r} {self._how_it_stands()}>"

    @property
    def _may_signal(self) -> bool:
        # Only we reap it, so its number is its own until then; a fork of this process can't know.
        return self._returncode is None and os.getpid() == self._owner

    def _signal_group(self, number: int) -> None:
        # The group exists: its leader is not reaped, and being a session's leader can't leave it.
        # If not, something else has reaped the child.
        if self._may_signal:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _on_exit_noticed(self) -> None:
        if self._watch is None:  # A thread's report that crossed with `_abandon`.
            return
        self._bury()
        self._tell_exit()

    def _bury(self) -> None:
        """The child is dead: kill the rest of its group, reap it, and let go of everything."""
        if _is_status_lost(self.pid):
            # The number may be somebody else's by now: the group must be left alone.
            self._is_status_unknown = True
            _logger.warning("the exit status of pid %d was taken by other code here", self.pid)
        else:
            # macOS says EPERM where only the dead leader is left.
            with contextlib.suppress(PermissionError):
                self.kill()
        returncode = self._popen.wait()
        self._returncode = UNKNOWN_STATUS if self._is_status_unknown else returncode
        # Not before the reaping: the end of the lifeline kills.
        self._lifeline.close()
        _running.discard(self)
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _abandon(self) -> None:
        """Kill and reap without a loop, where nobody has ended the child."""
        # A forked copy of this process has a copy of this object, but not the child.
        if self._watch is None or os.getpid() != self._owner:
            return
        description = repr(self)
        with contextlib.suppress(PermissionError):
            self.kill()
        if self._watch.exited_within(KILL_WAIT):
            self._bury()
        warnings.warn(f"child process not ended: {description}", ResourceWarning, stacklevel=2)

    def __del__(self) -> None:
        # The loop holds the object while it watches the child, so the loop is closed or gone.
        self._abandon()


def start_child(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Collection[int] = (),
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    terminates_group: bool = True,
) -> ChildProcess:
    """Start a program as the leader of a new session and process group; needs a running loop.

    Returns when the program is executing. The caller's descriptors stay open here; the caller
    closes its copies of the child's ends.

    :param argv: the program, looked up in the ``PATH`` of ``env``, and its arguments
    :param env: the whole environment; None: this process's. `LIFELINE_VARIABLE` is added.
    :param cwd: the child's working directory; None: this process's
    :param pass_fds: descriptors the child inherits under the same numbers. All others it has not.
    :param stdin: a descriptor, or ``subprocess.DEVNULL``; None: the child inherits it. So for
        ``stdout`` and ``stderr``.
    :param terminates_group: what asks the child to end asks its whole group; otherwise it alone
    :raises FileNotFoundError: there is no such program (or no such ``cwd``)
    :raises PermissionError: it may not be executed
    :raises OSError: another reason why the system can't start it, such as a limit
    :raises TypeError, ValueError: ``argv`` is no list of arguments, or empty
    """
    loop = asyncio.get_running_loop()
    if isinstance(argv, str | bytes | os.PathLike):
        raise TypeError(f"argv must be a list of the program and its arguments, not {argv!r}")
    if not argv:
        raise ValueError("argv is empty; its first item must be the program")
    lifeline = Lifeline()
    try:
        popen = subprocess.Popen(
            list(argv),
            env={**(os.environ if env is None else env), **lifeline.environment},
            cwd=cwd,
            pass_fds=(*pass_fds, lifeline.fd),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except BaseException:
        lifeline.close()
        raise
    try:
        lifeline.attach(popen.pid)
        return ChildProcess(popen, lifeline, loop, terminates_group=terminates_group)
    except BaseException:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        lifeline.close()
        raise


class _ExitWatch(Protocol):
    """Tells that a child is dead, without reaping it where the system allows that."""

    def exited_within(self, seconds: float) -> bool:
        """Block, without the loop, until it is dead."""
        ...

    def close(self) -> None:
        """Called once, on the loop's thread or when the loop is closed."""
        ...


class _PidfdWatch:
    def __init__(
        self, pidfd: int, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]
    ) -> None:
        self._pidfd = pidfd
        self._loop = loop
        loop.add_reader(pidfd, on_exit)

    def exited_within(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)


class _ThreadWatch:
    """For systems without pidfd: macOS, Linux before 5.3, some sandboxes."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[], None],
    ) -> None:
        self._popen = popen
        self._loop = loop
        self._on_exit = on_exit
        self._is_dead = threading.Event()
        threading.Thread(target=self._wait, name=f"asyncipc child {popen.pid}", daemon=True).start()

    def _wait(self) -> None:
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        else:
            # macOS before Python 3.13: the group is signalled just after the reaping, and its
            # number free for that moment.
            self._popen.wait()
        self._is_dead.set()
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._on_exit)

    def exited_within(self, seconds: float) -> bool:
        return self._is_dead.wait(seconds)

    def close(self) -> None:
        pass


def _watch_exit(
    popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]
) -> _ExitWatch:
    try:
        pidfd = os.pidfd_open(popen.pid)
    except (AttributeError, OSError):
        return _ThreadWatch(popen, loop, on_exit)
    try:
        return _PidfdWatch(pidfd, loop, on_exit)
    except BaseException:
        os.close(pidfd)
        raise


def _is_status_lost(pid: int) -> bool:
    """True if a dead child was reaped by somebody else."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


# Children that are not reaped yet. Weak, so that a closed loop can let go of them.
_running: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


def _abandon_all() -> None:
    # The lifelines do it too, but not where the system has no such thing.
    for child in tuple(_running):
        child._abandon()  # noqa: SLF001 - a function of this module


atexit.register(_abandon_all)
