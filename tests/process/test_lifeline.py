"""A child does not outlive its parent, whatever it is doing when the parent dies."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncipc.process
from asyncipc.process.child import start_child
from asyncipc.process.lifeline import LIFELINE_VARIABLE, Lifeline, arm_inherited_lifeline

ROOT = Path(asyncipc.process.__file__).parents[2]

# Seconds within which the family of a killed parent must be gone.
GONE_WITHIN = 2.0

# Every process of a test has the write end of FAMILY: its end says that all of them are gone.
PRELUDE = """
import asyncio, ctypes, os, re, select, signal, subprocess, sys, threading, time
from asyncipc.process.child import start_child
from asyncipc.process.lifeline import Lifeline, arm_inherited_lifeline
FAMILY, GO = {family}, {go}
signal.alarm(60)  # if all else fails

def say(word):
    os.write(FAMILY, word + b"\\n")
"""

# A parent that starts sys.argv[1:] as asyncipc's peers do, and stays until it is killed.
PARENT = """
async def main():
    child = start_child(sys.argv[1:], pass_fds=[FAMILY, GO], stdin=subprocess.DEVNULL)
    say(b"started")
    await child.wait()
    say(b"the child ended first")
asyncio.run(main())
"""

STUCK = {
    "in a busy loop": """
        say(b"ready")
        while True:
            pass
    """,
    "in C code that holds the GIL": """
        say(b"ready")
        ctypes.PyDLL(None).sleep(60)
    """,
    "in a regular expression": """
        say(b"ready")
        re.match("(a|a)*b", "a" * 64)
    """,
    "blocked writing to a full pipe": """
        kept, full = os.pipe()
        os.set_blocking(full, False)
        try:
            while True:
                os.write(full, bytes(4096))
        except BlockingIOError:
            os.set_blocking(full, True)
        say(b"ready")
        os.write(full, bytes(4096))
    """,
    "with a grandchild": """
        subprocess.Popen(["sleep", "60"], pass_fds=[FAMILY])
        say(b"ready")
        time.sleep(60)
    """,
    "ignoring every signal it can": """
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN) if number < 32 else None
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        say(b"ready")
        time.sleep(60)
    """,
    "waiting in an event loop": """
        async def main():
            say(b"ready")
            await asyncio.Event().wait()
        asyncio.run(main())
    """,
}


class Family:
    """Starts processes that all hold one pipe; kills what a failed test would leave."""

    def __init__(self) -> None:
        self._alive, self.alive_write_end = os.pipe()
        self._go_read_end, self._go = os.pipe()
        self._processes: list[subprocess.Popen[bytes]] = []

    def python(self, code: str) -> list[str]:
        """A command that runs the code with `PRELUDE` before it."""
        prelude = PRELUDE.format(family=self.alive_write_end, go=self._go_read_end)
        return [sys.executable, "-c", prelude + textwrap.dedent(code)]

    def start(self, argv: list[str], lifeline: Lifeline | None = None) -> subprocess.Popen[bytes]:
        """Start as the leader of a group, with a lifeline that its parent has not attached."""
        extra = [lifeline.fd] if lifeline is not None else []
        process = subprocess.Popen(
            argv,
            pass_fds=[self.alive_write_end, self._go_read_end, *extra],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                **(lifeline.environment if lifeline is not None else {}),
            },
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def all_started(self) -> None:
        """The test itself must not keep the pipe open."""
        os.close(self.alive_write_end)
        self.alive_write_end = -1

    def go(self) -> None:
        """Let a process go on that reads one byte from GO."""
        os.write(self._go, b"g")

    def read(self, seconds: float) -> bytes:
        """What the processes say next; b"" when all of them are gone."""
        poller = select.poll()
        poller.register(self._alive, select.POLLIN)
        assert poller.poll(seconds * 1000), f"somebody is still there after {seconds} s"
        return os.read(self._alive, 65536)

    def expect(self, *words: bytes) -> None:
        """Wait until the processes have said these words, in any order, and no others."""
        said: list[bytes] = []
        while len(said) < len(words):
            text = self.read(10)
            assert text, f"all processes are gone; they said {said}"
            said += text.splitlines()
        assert sorted(said) == sorted(words)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for end in (self._alive, self.alive_write_end, self._go, self._go_read_end):
            if end >= 0:
                os.close(end)


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    family.close()


@pytest.mark.parametrize("code", STUCK.values(), ids=STUCK.keys())
def test_a_child_dies_with_its_killed_parent(family: Family, code: str) -> None:
    child = family.python("arm_inherited_lifeline()\n" + textwrap.dedent(code))
    parent = family.start([*family.python(PARENT), *child])
    family.all_started()
    family.expect(b"ready", b"started")
    parent.kill()
    assert family.read(GONE_WITHIN) == b""


@pytest.mark.parametrize(
    "command",
    [
        "echo ready > /dev/fd/{family}; exec sleep 60",
        "echo ready > /dev/fd/{family}; sleep 60; echo survived > /dev/fd/{family}",
        "sh -c 'echo ready > /dev/fd/{family}; kill -STOP $$'; sleep 60",
    ],
    ids=["replaced itself", "a wrapper", "stopped grandchild"],
)
def test_a_child_in_another_language_dies_with_its_killed_parent(
    family: Family, command: str
) -> None:
    child = ["sh", "-c", command.format(family=family.alive_write_end)]
    parent = family.start([*family.python(PARENT), *child])
    family.all_started()
    family.expect(b"ready", b"started")
    parent.kill()
    assert family.read(GONE_WITHIN) == b""


def test_a_whole_line_of_descendants_dies(family: Family) -> None:
    # Every generation is a leader of its own group; killing one ends the next.
    last = family.python("arm_inherited_lifeline(); say(b'ready'); time.sleep(60)")
    middle = [*family.python("arm_inherited_lifeline()\n" + PARENT), *last]
    parent = family.start([*family.python(PARENT), *middle])
    family.all_started()
    family.expect(b"ready", b"started", b"started")
    parent.kill()
    assert family.read(GONE_WITHIN) == b""


def test_a_python_child_behind_a_wrapper_leaves_the_group_to_its_parent(family: Family) -> None:
    program = family.python("arm_inherited_lifeline(); say(b'ready'); time.sleep(60)")
    wrapper = [
        "sh",
        "-c",
        '"$@"; echo survived > /dev/fd/' + str(family.alive_write_end),
        "sh",
        *program,
    ]
    parent = family.start([*family.python(PARENT), *wrapper])
    family.all_started()
    family.expect(b"ready", b"started")
    parent.kill()
    assert family.read(GONE_WITHIN) == b""


ARMS_ITSELF = "assert arm_inherited_lifeline(); say(b'ready'); time.sleep(60)"
ARMS_A_THREAD = "import fcntl; del fcntl.F_SETSIG"  # what another system's module looks like


@pytest.mark.parametrize("system", ["linux", "other"])
def test_a_child_covers_a_parent_that_died_before_it_attached(family: Family, system: str) -> None:
    lifeline = Lifeline()
    # The group dies too, so the grandchild is there to see that.
    code = f"subprocess.Popen(['sleep', '60'], pass_fds=[FAMILY]); {ARMS_ITSELF}"
    argv = family.python(code)
    if system == "other":
        argv[-1] = ARMS_A_THREAD + argv[-1]
    child = family.start(argv, lifeline)
    family.all_started()
    family.expect(b"ready")
    lifeline.close()
    assert family.read(GONE_WITHIN) == b""
    assert child.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("system", ["linux", "other"])
def test_a_parent_that_is_dead_already_when_the_child_arms(family: Family, system: str) -> None:
    lifeline = Lifeline()
    code = """
        subprocess.Popen(['sleep', '60'], pass_fds=[FAMILY])
        say(b"ready")
        os.read(GO, 1)
        arm_inherited_lifeline()
        threading.Event().wait(GONE_WITHIN)
        say(b"survived")
    """.replace("GONE_WITHIN", str(GONE_WITHIN))
    argv = family.python(code)
    if system == "other":
        argv[-1] = ARMS_A_THREAD + argv[-1]
    child = family.start(argv, lifeline)
    family.all_started()
    family.expect(b"ready")
    lifeline.close()
    family.go()
    assert family.read(GONE_WITHIN) == b""
    assert child.wait(5) == -signal.SIGKILL


def test_a_parent_killed_between_fork_and_attach(family: Family) -> None:
    parent_code = """
        lifeline = Lifeline()
        subprocess.Popen(
            sys.argv[1:], pass_fds=[FAMILY, GO, lifeline.fd], start_new_session=True,
            env={**os.environ, **lifeline.environment},
        )
        time.sleep(60)
    """
    child = family.python("say(b'ready'); os.read(GO, 1); arm_inherited_lifeline(); say(b'alive')")
    parent = family.start([*family.python(parent_code), *child])
    family.all_started()
    family.expect(b"ready")
    parent.kill()
    parent.wait()
    family.go()
    assert family.read(GONE_WITHIN) == b""


def test_a_child_that_leads_no_group_kills_only_itself(family: Family) -> None:
    lifeline = Lifeline()
    wrapper = [
        "sh",
        "-c",
        '"$@"; echo wrapper lives > /dev/fd/' + str(family.alive_write_end),
        "sh",
    ]
    process = family.start([*wrapper, *family.python(ARMS_ITSELF)], lifeline)
    family.all_started()
    family.expect(b"ready")
    lifeline.close()
    assert family.read(GONE_WITHIN) == b"wrapper lives\n"
    assert process.wait(5) == 0


def test_a_fork_of_the_parent_does_not_keep_the_children_alive(family: Family) -> None:
    # Were the fork to hold the write end of the lifeline, nothing would end the child.
    forking_parent = """
        async def main():
            child = start_child(sys.argv[1:], pass_fds=[FAMILY], stdin=subprocess.DEVNULL)
            if os.fork() == 0:
                os.close(FAMILY)
                os.read(GO, 1)
                os._exit(0)
            await child.wait()
        asyncio.run(main())
    """
    child = family.python("arm_inherited_lifeline(); say(b'ready'); time.sleep(60)")
    parent = family.start([*family.python(forking_parent), *child])
    family.all_started()
    family.expect(b"ready")
    parent.kill()
    assert family.read(GONE_WITHIN) == b""
    family.go()


def test_the_end_of_the_parents_thread_does_not_kill(family: Family) -> None:
    lifeline = Lifeline()
    started: list[subprocess.Popen[bytes]] = []
    code = "arm_inherited_lifeline(); say(b'ready'); os.read(GO, 1); say(b'alive'); sys.exit(6)"

    def start() -> None:
        process = family.start(family.python(code), lifeline)
        lifeline.attach(process.pid)
        started.append(process)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    family.all_started()
    family.expect(b"ready")
    family.go()
    assert family.read(5) == b"alive\n"
    assert started[0].wait(5) == 6
    lifeline.close()


async def test_a_normal_end_is_not_disturbed() -> None:
    code = "from asyncipc.process.lifeline import *; assert arm_inherited_lifeline(); exit(3)"
    child = start_child([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    async with asyncio.timeout(5):
        assert await child.wait() == 3


def test_a_child_that_closes_its_lifeline_is_let_go(family: Family) -> None:
    lifeline = Lifeline()
    code = f"""
        arm_inherited_lifeline()
        os.close({lifeline.fd})
        say(b"ready")
        os.read(GO, 1)
        say(b"alive")
    """
    process = family.start(family.python(code), lifeline)
    lifeline.attach(process.pid)
    family.all_started()
    family.expect(b"ready")
    lifeline.close()
    family.go()
    assert family.read(5) == b"alive\n"
    assert process.wait(5) == 0


def test_arming_takes_the_variable_and_the_descriptor_from_grandchildren(family: Family) -> None:
    lifeline = Lifeline()
    code = f"""
        assert arm_inherited_lifeline()
        assert not arm_inherited_lifeline()
        assert {LIFELINE_VARIABLE!r} not in os.environ
        subprocess.run(["sh", "-c", "test ! -e /dev/fd/{lifeline.fd}"], close_fds=False, check=True)
        say(b"good")
    """
    process = family.start(family.python(code), lifeline)
    lifeline.attach(process.pid)
    family.all_started()
    family.expect(b"good")
    assert process.wait(5) == 0
    lifeline.close()


@pytest.mark.parametrize(
    "value", ["", "x", "7", "-1:5", "999999:1", "9" * 30 + ":1", "1:2:3", "²:1"]
)
def test_a_variable_that_means_no_open_pipe_is_ignored(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIFELINE_VARIABLE, value)
    assert not arm_inherited_lifeline()
    assert LIFELINE_VARIABLE not in os.environ


def test_a_file_that_is_no_pipe_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(__file__).open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        monkeypatch.setenv(LIFELINE_VARIABLE, f"{file.fileno()}:{inode}")
        assert not arm_inherited_lifeline()


def test_a_closed_lifeline_is_forgotten() -> None:
    lifeline = Lifeline()
    reference = weakref.ref(lifeline)
    lifeline.close()
    del lifeline
    assert reference() is None


def test_another_file_under_the_number_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lifeline = Lifeline()
    fd = lifeline.fd
    monkeypatch.setenv(LIFELINE_VARIABLE, lifeline.environment[LIFELINE_VARIABLE])
    lifeline.close()
    # Were it armed, closing the write end of this pipe would kill the test.
    read_end, write_end = os.pipe()
    assert read_end == fd
    assert not arm_inherited_lifeline()
    os.close(write_end)
    os.close(read_end)


def test_the_read_end_is_no_standard_stream(family: Family) -> None:
    # A parent that was started with its stdin closed gets 0 as the next descriptor.
    code = """
        os.close(0)
        lifeline = Lifeline()
        assert lifeline.fd > 2
        lifeline.close()
        lifeline.close()
        say(b"good")
    """
    family.start(family.python(code))
    family.all_started()
    family.expect(b"good")
