"""ChildProcess: the exit is noticed at once, the end is made sure, and nothing is left behind."""

import asyncio
import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

import asyncipc.process
from asyncipc.process.child import ChildProcess, start_child
from asyncipc.process.handle import UNKNOWN_STATUS

ROOT = Path(asyncipc.process.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

# Says so when it has blocked the signals that would end it, then stays.
STUBBORN = "trap '' TERM INT HUP; echo ready; exec cat /dev/fd/3"


class Pipe:
    """A pipe between the test and the processes it starts."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def read(self, seconds: float = 5) -> bytes:
        """What comes next; b"" when no process has the write end any more."""
        poller = select.poll()
        poller.register(self.read_end, select.POLLIN)
        assert poller.poll(seconds * 1000), f"nothing was written for {seconds} s"
        return os.read(self.read_end, 65536)

    def close_read_end(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1


@pytest.fixture
def from_child() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_read_end()
    pipe.close_write_end()


@pytest.fixture
def to_child() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_read_end()
    pipe.close_write_end()


@contextlib.contextmanager
def ready_child(
    argv: list[str], from_child: Pipe, stdin: int | None = None
) -> Iterator[ChildProcess]:
    """A child that has said it is ready; killed at the end whatever happens."""
    child = start_child(argv, stdin=stdin, stdout=from_child.write_end)
    from_child.close_write_end()
    try:
        assert from_child.read() == b"ready\n"
        yield child
    finally:
        child.kill()


def stubborn_child(
    from_child: Pipe, to_child: Pipe
) -> contextlib.AbstractContextManager[ChildProcess]:
    return ready_child(["sh", "-c", f"exec 3<&0; {STUBBORN}"], from_child, stdin=to_child.read_end)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["pidfd", "thread", "thread without waitid"])
def every_watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems differ in how an exit can be noticed."""
    if request.param != "pidfd":
        monkeypatch.delattr(os, "pidfd_open")
    if request.param == "thread without waitid":
        monkeypatch.delattr(os, "waitid")
    assert isinstance(request.param, str)
    return request.param


# Exit status


@pytest.mark.usefixtures("every_watch")
async def test_an_exit_code() -> None:
    before = open_descriptors()
    child = start_child(["sh", "-c", "exit 7"])
    before_exit = child.returncode
    assert before_exit is None
    assert "running" in repr(child)
    async with asyncio.timeout(5):
        assert await child.wait() == 7
        assert await child.wait() == 7
    assert (child.returncode, child.exit_code, child.signal) == (7, 7, None)
    assert "exited, returncode 7" in repr(child)
    assert open_descriptors() == before


@pytest.mark.usefixtures("every_watch")
async def test_a_death_by_signal() -> None:
    child = start_child(["sh", "-c", "kill -SEGV $$"])
    async with asyncio.timeout(5):
        assert await child.wait() == -signal.SIGSEGV
    assert (child.returncode, child.exit_code, child.signal) == (-11, None, 11)


@pytest.mark.usefixtures("every_watch")
async def test_the_child_is_reaped() -> None:
    child = start_child(["true"])
    async with asyncio.timeout(5):
        await child.wait()
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_a_status_that_other_code_took_is_unknown_and_not_guessed(
    has_pidfd: bool,
    from_child: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    child = start_child(["sh", "-c", "exit 3"])
    os.waitpid(child.pid, 0)  # before the loop can notice the exit
    async with asyncio.timeout(5):
        assert await child.wait() == UNKNOWN_STATUS
    assert (child.exit_code, child.signal) == (None, None)
    assert "status unknown" in repr(child)
    assert str(child.pid) in caplog.text


async def test_a_cancelled_waiter_disturbs_nobody(to_child: Pipe) -> None:
    child = start_child(["cat"], stdin=to_child.read_end)
    cancelled = asyncio.create_task(child.wait())
    other = asyncio.create_task(child.wait())
    await asyncio.sleep(0)  # both wait now
    cancelled.cancel()
    to_child.close_write_end()
    async with asyncio.timeout(5):
        assert await other == 0
    assert cancelled.cancelled()


# Starting


@pytest.mark.parametrize(
    ("argv", "cwd", "error"),
    [
        (["/nonexistent/program"], None, FileNotFoundError),
        (["no-such-program-in-the-path"], None, FileNotFoundError),
        (["true"], "/nonexistent", FileNotFoundError),
        (["/etc/passwd"], None, PermissionError),
        (["/etc"], None, PermissionError),
        (["a\0b"], None, ValueError),
        ([], None, ValueError),
        ("true -x", None, TypeError),
    ],
)
async def test_what_cannot_start_says_so_and_leaks_nothing(
    argv: list[str], cwd: str | None, error: type[Exception]
) -> None:
    before = open_descriptors()
    with pytest.raises(error):
        start_child(argv, cwd=cwd)
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_a_child_that_cannot_be_watched_is_not_left_behind(
    from_child: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()

    def refuse(*_: object) -> None:
        raise OSError("no space in the kernel's tables")

    loop = asyncio.get_running_loop()
    if isinstance(loop, uvloop.Loop):
        pytest.skip("methods of uvloop's loop cannot be replaced")
    monkeypatch.setattr(loop, "add_reader", refuse)
    with pytest.raises(OSError, match="no space"):
        start_child(["cat"], stdout=from_child.write_end)
    assert open_descriptors() == before
    from_child.close_write_end()
    assert from_child.read() == b""


async def test_streams_environment_and_folder_are_the_given_ones(
    from_child: Pipe, to_child: Pipe, tmp_path: Path
) -> None:
    passed, not_passed = os.pipe()
    os.set_inheritable(not_passed, True)
    code = f"""
        cat; echo $COLOR; pwd; echo error >&2
        test -e /dev/fd/{passed} && test ! -e /dev/fd/{not_passed} && echo passed
    """
    child = start_child(
        [Path("/bin/sh"), "-c", code],
        env={"COLOR": "red", "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        pass_fds=[passed],
        stdin=to_child.read_end,
        stdout=from_child.write_end,
        stderr=from_child.write_end,
    )
    os.write(to_child.write_end, b"from stdin\n")
    to_child.close_write_end()
    async with asyncio.timeout(5):
        await child.wait()
    assert from_child.read().decode().split("\n") == [
        "from stdin",
        "red",
        str(tmp_path),
        "error",
        "passed",
        "",
    ]
    os.close(passed)
    os.close(not_passed)


async def test_the_environment_is_inherited_unless_given(
    from_child: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOR", "blue")
    child = start_child(["sh", "-c", "echo $COLOR"], stdout=from_child.write_end)
    async with asyncio.timeout(5):
        await child.wait()
    assert from_child.read() == b"blue\n"


async def test_the_child_leads_its_own_session_and_group(from_child: Pipe, to_child: Pipe) -> None:
    with stubborn_child(from_child, to_child) as child:
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        child.kill()
        await child.wait()


# Signals


@pytest.mark.usefixtures("every_watch")
async def test_kill_takes_the_grandchildren_along(from_child: Pipe, to_child: Pipe) -> None:
    code = "cat /dev/fd/3 & cat /dev/fd/3 & echo ready; wait"
    with ready_child(
        ["sh", "-c", f"exec 3<&0; {code}"], from_child, stdin=to_child.read_end
    ) as child:
        child.kill()
        async with asyncio.timeout(5):
            assert await child.wait() == -signal.SIGKILL
        assert from_child.read() == b""


async def test_send_signal_reaches_the_child_alone(from_child: Pipe, to_child: Pipe) -> None:
    # A subshell takes no trap over, so SIGUSR1 would kill the grandchild.
    code = """
        exec 3<&0
        trap 'echo child; wait; exit 5' USR1
        (echo ready; cat /dev/fd/3; echo grandchild) &
        wait
    """
    with ready_child(["sh", "-c", code], from_child, stdin=to_child.read_end) as child:
        child.send_signal(signal.SIGUSR1)
        assert from_child.read() == b"child\n"
        to_child.close_write_end()
        async with asyncio.timeout(5):
            assert await child.wait() == 5
        assert from_child.read() == b"grandchild\n"


async def test_nothing_is_signalled_after_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    child = start_child(["true"])
    async with asyncio.timeout(5):
        await child.wait()

    def refuse(*_: object) -> None:
        raise AssertionError("the number may belong to another process now")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)
    child.send_signal(signal.SIGTERM)
    child.terminate()
    child.kill()
    async with asyncio.timeout(5):
        assert await child.end(1) == 0


@pytest.mark.usefixtures("every_watch")
async def test_what_is_left_of_the_group_dies_with_its_leader(
    from_child: Pipe, to_child: Pipe
) -> None:
    # The grandchild does not inherit the lifeline, whose end would kill it as well.
    code = """
        import subprocess
        subprocess.Popen(["sh", "-c", "trap '' TERM HUP; echo ready; cat"], close_fds=True)
        raise SystemExit(4)
    """
    child = start_child(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=to_child.read_end,
        stdout=from_child.write_end,
    )
    from_child.close_write_end()
    async with asyncio.timeout(5):
        assert await child.wait() == 4
    assert from_child.read().removeprefix(b"ready\n") == b""
    assert from_child.read() == b""


# Noticing the exit


@pytest.mark.usefixtures("every_watch")
async def test_a_grandchild_that_keeps_the_streams_open_does_not_delay_the_exit(
    from_child: Pipe, to_child: Pipe
) -> None:
    code = """
        import subprocess
        subprocess.Popen(["cat"], start_new_session=True)
        raise SystemExit(6)
    """
    child = start_child(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=to_child.read_end,
        stdout=from_child.write_end,
    )
    from_child.close_write_end()
    to_child.close_read_end()
    async with asyncio.timeout(5):
        assert await child.wait() == 6
    os.write(to_child.write_end, b"the grandchild lives")
    assert from_child.read() == b"the grandchild lives"
    to_child.close_write_end()
    assert from_child.read() == b""


@pytest.mark.usefixtures("every_watch")
async def test_callbacks_come_first_and_find_all_that_was_written(from_child: Pipe) -> None:
    events: list[object] = []
    child = start_child(
        ["sh", "-c", "head -c 60000 /dev/zero; exit 9"], stdout=from_child.write_end
    )
    from_child.close_write_end()

    def drain(exited: ChildProcess) -> None:
        events.append(("callback", exited.returncode, len(from_child.read(seconds=0))))

    async def wait() -> None:
        events.append(("waiter", await child.wait()))

    waiter = asyncio.create_task(wait())
    child.on_exit(drain)
    child.on_exit(lambda _: events.append("second"))
    async with asyncio.timeout(5):
        await waiter
    assert events == [("callback", 9, 60000), "second", ("waiter", 9)]


async def test_a_failing_callback_is_logged_and_hinders_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[ChildProcess] = []
    child = start_child(["true"])

    def fail(_: ChildProcess) -> None:
        raise ValueError("broken callback")

    child.on_exit(fail)
    child.on_exit(called.append)
    async with asyncio.timeout(5):
        await child.wait()
    assert called == [child]
    assert f"a callback of {child!r} failed" in caplog.text
    assert "broken callback" in caplog.text


async def test_a_callback_added_after_the_exit_is_called() -> None:
    child = start_child(["true"])
    called: asyncio.Future[ChildProcess] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(5):
        await child.wait()
        child.on_exit(called.set_result)
        assert await called is child


# The ladder


async def test_end_leaves_a_child_alone_that_goes_by_itself(
    from_child: Pipe, to_child: Pipe
) -> None:
    code = "trap 'echo signalled' TERM; echo ready; cat; exit 2"
    with ready_child(["sh", "-c", code], from_child, stdin=to_child.read_end) as child:
        to_child.close_write_end()
        async with asyncio.timeout(5):
            assert await child.end(60) == 2
            assert await child.end(60) == 2
        assert from_child.read() == b""


async def test_end_asks_the_group_with_sigterm_after_the_grace(
    from_child: Pipe, to_child: Pipe
) -> None:
    code = "exec 3<&0; trap 'exit 3' TERM; cat /dev/fd/3 & echo ready; wait"
    with ready_child(["sh", "-c", code], from_child, stdin=to_child.read_end) as child:
        started = time.monotonic()
        async with asyncio.timeout(5):
            assert await child.end(0.1) == 3
        assert time.monotonic() - started > 0.09


async def test_end_kills_what_resists(from_child: Pipe, to_child: Pipe) -> None:
    with stubborn_child(from_child, to_child) as child:
        started = time.monotonic()
        async with asyncio.timeout(5):
            assert await child.end(0.1) == -signal.SIGKILL
        assert time.monotonic() - started > 0.19
        assert from_child.read() == b""


@pytest.mark.parametrize(
    ("code", "expected"),
    [("kill -STOP $$", -signal.SIGTERM), ("trap '' TERM; kill -STOP $$", -signal.SIGKILL)],
)
async def test_end_gets_through_to_a_stopped_child(
    code: str, expected: int, to_child: Pipe
) -> None:
    child = start_child(["sh", "-c", f"{code}; cat"], stdin=to_child.read_end)
    async with asyncio.timeout(5):
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert await child.end(0.3) == expected


async def test_end_from_several_tasks_sends_sigterm_once(from_child: Pipe) -> None:
    code = """
        import os, signal
        signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"TERM\\n"))
        os.write(1, b"ready\\n")
        while True:
            signal.pause()
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    with ready_child(argv, from_child) as child:
        async with asyncio.timeout(5):
            ends = await asyncio.gather(child.end(60), child.end(0.1), child.end(0.15))
        assert set(ends) == {-signal.SIGKILL}
        assert from_child.read() == b"TERM\n"


@pytest.mark.usefixtures("every_watch")
async def test_a_cancelled_end_kills_and_reaps(from_child: Pipe, to_child: Pipe) -> None:
    with stubborn_child(from_child, to_child) as child:
        async with asyncio.timeout(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await child.end(60)
        assert child.returncode == -signal.SIGKILL
        with pytest.raises(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)


async def test_end_cancelled_twice_still_ends_the_child(from_child: Pipe, to_child: Pipe) -> None:
    with stubborn_child(from_child, to_child) as child:
        ending = asyncio.create_task(child.end(60))
        other = asyncio.create_task(child.end(60))
        loop = asyncio.get_running_loop()
        # Both cancellations arrive before the loop can see the exit.
        loop.call_soon(ending.cancel)
        loop.call_soon(lambda: loop.call_soon(ending.cancel))
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert await other == -signal.SIGKILL


async def test_end_is_bounded_where_sigkill_does_not_help(
    from_child: Pipe,
    to_child: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("it runs as another user")

    monkeypatch.setattr("asyncipc.process.child.KILL_WAIT", 0.05)
    with stubborn_child(from_child, to_child) as child:
        with monkeypatch.context() as context:
            context.setattr(os, "killpg", refuse)
            async with asyncio.timeout(5):
                assert await child.end(0.01) is None
            with pytest.raises(PermissionError):
                child.kill()
        assert "after SIGKILL" in caplog.text
        # It is still watched.
        child.kill()
        async with asyncio.timeout(5):
            assert await child.wait() == -signal.SIGKILL


# Children that nobody ends


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_child_that_outlives_its_loop_is_killed_and_reported(
    new_loop: Callable[[], asyncio.AbstractEventLoop], from_child: Pipe, to_child: Pipe
) -> None:
    before = open_descriptors()

    async def main() -> int:
        return start_child(["cat"], stdin=to_child.read_end, stdout=from_child.write_end).pid

    def run() -> int:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main())

    with pytest.warns(ResourceWarning, match="not ended: <ChildProcess"):
        pid = run()
    from_child.close_write_end()
    assert from_child.read() == b""
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    gc.collect()
    assert open_descriptors() <= before


def run_application(code: str, from_child: Pipe, to_child: Pipe) -> int:
    """Run a program of its own, with ``OUTPUT`` and ``INPUT``; returns its exit status."""
    prelude = f"""
        import asyncio, os, sys
        from asyncipc.process.child import start_child
        OUTPUT, INPUT = {from_child.write_end}, {to_child.read_end}
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        pass_fds=[from_child.write_end, to_child.read_end],
        env=ENVIRONMENT,
        timeout=10,
        check=False,
    ).returncode


def test_an_application_that_exits_without_closing_leaves_no_child(
    from_child: Pipe, to_child: Pipe
) -> None:
    # Neither the lifeline does it here, for the child has thrown it away, nor a finalizer.
    code = """
        import ctypes
        async def main():
            detach = "import os; os.closerange(3, 100); os.write(1, b'ready'); os.read(0, 1)"
            argv = [sys.executable, "-c", detach]
            child = start_child(argv, stdin=INPUT, stdout=ready, stderr=OUTPUT)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(child))
        loop = asyncio.new_event_loop()
        is_ready, ready = os.pipe()
        loop.run_until_complete(main())
        os.read(is_ready, 5)
        sys.exit(8)
    """
    assert run_application(code, from_child, to_child) == 8
    from_child.close_write_end()
    assert from_child.read() == b""


def test_a_fork_of_the_application_does_not_end_its_children(
    from_child: Pipe, to_child: Pipe
) -> None:
    code = """
        async def main():
            child = start_child(["cat"], stdin=INPUT, stdout=OUTPUT)
            forked = os.fork()
            if forked == 0:
                child.kill()
                return
            os.waitpid(forked, 0)
            os.write(OUTPUT, b"forked")
            sys.exit(11 if await child.wait() == 0 else 12)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    """
    status: list[int] = []
    application = threading.Thread(
        target=lambda: status.append(run_application(code, from_child, to_child))
    )
    application.start()
    assert from_child.read() == b"forked"
    os.write(to_child.write_end, b"child lives")
    assert from_child.read() == b"child lives"
    to_child.close_write_end()
    application.join(5)
    assert status == [11]
