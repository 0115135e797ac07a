"""Ways to die, of children and of their parents.

The rows are those of `docs/faults.md` that this library was built against; each was a bug
in one that people trust.
"""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest

from asyncipc import Limits, Peer, PeerDied, Session, Timeouts
from asyncipc.wire.framing import HEADER_SIZE
from tests.child import CHILD, python
from tests.peer.support import echoing, socket_path
from tests.processes import Watched, watched
from tests.raw_client import frame

# What one loop shows about other processes the other would show as well.
on_one_loop = pytest.mark.asyncio(loop_factories=["uvloop"])

# Serves one request at a time, and is never done with it, nor with a notification.
SLOW_CHILD = python("""
import asyncio, asyncipc
peer = asyncipc.Peer(limits=asyncipc.Limits(max_requests=1))
@peer.on_request
async def never(): await asyncio.Event().wait()
@peer.on_notification
async def news(data): await asyncio.Event().wait()
async def main():
    async with peer.stdio() as session: await session.wait_closed()
asyncipc.run(main())
""")

# Answers its first request with a part of a reply, and dies.
REPLY = frame([3, 3, "done"])
DYING_CHILD = python(f"""
import os, signal, asyncipc
from tests.child import main, peer
@peer.on_request
def die_after(count: int, call: asyncipc.Call):
    os.write(call.session._connection.transport._write_fd, {REPLY!r}[:count])
    os.kill(os.getpid(), signal.SIGKILL)
main()
""")

Channel = Literal["stdio", "socketpair"]


def pid_of(session: Session) -> int:
    assert session.process is not None
    return session.process.pid


# Row 1: the peer dies with calls pending, queued, or waiting on backpressure


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
async def test_row_1_every_waiter_hears_of_a_killed_child(channel: Channel) -> None:
    peer = Peer(limits=Limits(outbox=16 * 1024))
    async with peer.spawn(SLOW_CHILD, channel=channel, stderr="capture") as session:
        requests = [session.request("never", timeout=None) for _ in range(4)]
        waiters = [asyncio.ensure_future(each) for each in requests]
        await session.ping()
        os.kill(pid_of(session), signal.SIGSTOP)
        waiters.append(asyncio.ensure_future(session.ping(timeout=None)))
        # The kernel takes some of it, the outbox is full then, and the credit ends at 1 MiB.
        news = [session.notify("news", [bytes(300_000)]) for _ in range(6)]
        notifying = [asyncio.ensure_future(each) for each in news]
        await asyncio.sleep(0)
        assert session.statistics().pending == 1
        assert session.statistics().queued >= 3 + 2

        os.kill(pid_of(session), signal.SIGKILL)
        async with asyncio.timeout(5):
            failures = await asyncio.gather(*waiters, return_exceptions=True)
            outcomes = await asyncio.gather(*notifying, return_exceptions=True)
        waited = [outcome for outcome in outcomes if outcome is not None]
        assert len(waited) >= 2  # the others had left
        for failure in failures + waited:
            assert isinstance(failure, PeerDied)
            assert (failure.signal, failure.exit_code) == (signal.SIGKILL, None)
        with pytest.raises(PeerDied, match="killed by SIGKILL"):
            await session.request("never")


# Row 2: SIGKILL idle, mid-header, mid-body, after the reply's last byte


@on_one_loop
async def test_row_2_killed_while_idle() -> None:
    async with Peer().spawn(CHILD) as session:
        os.kill(pid_of(session), signal.SIGKILL)
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)
        assert session.close_reason.signal == signal.SIGKILL


@pytest.mark.parametrize(
    "count", [0, 2, HEADER_SIZE, len(REPLY) - 1], ids=["nothing", "header", "body", "almost all"]
)
@on_one_loop
async def test_row_2_killed_inside_of_a_reply(count: int) -> None:
    async with Peer().spawn(DYING_CHILD) as session:
        with pytest.raises(PeerDied) as caught:
            await session.request("die_after", [count])
    assert caught.value.signal == signal.SIGKILL


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
async def test_row_2_killed_behind_its_reply(channel: Channel) -> None:
    """What it had sent counts, whatever is noticed first: its death or its reply."""
    async with Peer().spawn(DYING_CHILD, channel=channel) as session:
        assert await session.request("die_after", [len(REPLY)]) == "done"
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)
        assert session.close_reason.signal == signal.SIGKILL


# Rows 11 and 12: the parent dies

PARENT = """
import asyncio, os, signal, sys
import asyncipc.process.child
from asyncipc import Peer
from tests.child import CHILD

def ready(*pids):
    print(*pids, flush=True)

async def busy(session, said):
    asyncio.create_task(session.request(sys.argv[1], timeout=None))
    await said.wait()
    ready(session.process.pid)

async def grandchild(session, said):
    ready(session.process.pid, await session.request("start", [["sleep", "1000"]]))

async def nested(session, said):
    ready(session.process.pid, await session.request("spawn"))

async def stopped(session, said):
    session.process.send_signal(signal.SIGSTOP)
    ready(session.process.pid)

async def main():
    said = asyncio.Event()
    session = await Peer().spawn(
        CHILD, stderr=lambda line: said.set(), channel=sys.argv[2] if sys.argv[2:] else "stdio"
    )
    await globals().get(sys.argv[1], busy)(session, said)
    await asyncio.Event().wait()

def die_before_the_lifeline_is_attached(self, group):
    ready(group)
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "early":
    asyncipc.process.child.Lifeline.attach = die_before_the_lifeline_is_attached
asyncio.run(main())
"""


@contextlib.contextmanager
def parent_of(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[Watched]]]:
    """A process that has children, and these."""
    command = python(PARENT, *arguments)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as parent,
        contextlib.ExitStack() as stack,
    ):
        try:
            assert parent.stdout is not None
            pids = parent.stdout.readline().split()
            assert pids
            yield parent, [stack.enter_context(watched(int(pid))) for pid in pids]
        finally:
            parent.kill()


@pytest.mark.parametrize("doing", ["spin", "block", "grandchild", "nested", "stopped"])
@on_one_loop
async def test_row_11_nothing_outlives_a_killed_parent(doing: str) -> None:
    with parent_of(doing) as (parent, descendants):
        assert all(process.is_running for process in descendants)
        parent.kill()
        for process in descendants:
            await process.ended(2)


@on_one_loop
async def test_row_11_over_a_socketpair() -> None:
    with parent_of("spin", "socketpair") as (parent, (child,)):
        parent.kill()
        await child.ended(2)


@on_one_loop
async def test_row_12_the_parent_dies_before_the_first_instruction_of_the_child() -> None:
    with parent_of("early") as (_, (child,)):
        await child.ended(5)  # which has to start first


def test_row_12_the_end_of_a_thread_is_not_the_end_of_its_child() -> None:
    loop = asyncio.new_event_loop()
    opened: list[Session] = []

    async def spawn() -> None:
        opened.append(await Peer().spawn(CHILD))

    async def use() -> None:
        async with opened[0] as session:
            assert await session.request("echo", [1]) == 1

    try:
        thread = threading.Thread(target=loop.run_until_complete, args=(spawn(),))
        thread.start()
        thread.join()
        loop.run_until_complete(use())
    finally:
        loop.close()


# Row 22: Ctrl-C to the whole process group

INTERRUPTED = """
import asyncio, signal, sys, asyncipc
from tests.child import CHILD

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs with & ignores it

async def main():
    async with asyncipc.Peer(timeouts=asyncipc.Timeouts(terminate=0.2)) as peer:
        sessions = [await peer.spawn(CHILD) for _ in range(3)]
        waiting = asyncio.create_task(sessions[1].request("never", timeout=None))
        spinning = asyncio.create_task(sessions[2].request("block", timeout=None))
        print(*(session.process.pid for session in sessions), flush=True)
        await asyncio.gather(waiting, spinning)

try:
    {run}(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("run", ["asyncio.run", "asyncipc.run"])
@on_one_loop
async def test_row_22_one_clean_end(run: str) -> None:
    with (
        subprocess.Popen(
            python(INTERRUPTED.replace("{run}", run)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as parent,
        contextlib.ExitStack() as stack,
    ):
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        children = [stack.enter_context(watched(int(pid))) for pid in pids]
        assert len(children) == 3
        os.killpg(parent.pid, signal.SIGINT)
        _, stderr = parent.communicate(timeout=20)
        assert stderr.decode().replace("blocking\n", "") == ""
        assert parent.returncode == 130
        assert not any(child.is_running for child in children)


# Row 24: no child holds an end of another's connection


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
async def test_row_24_children_hold_nothing_of_each_other(channel: Channel) -> None:
    async with (
        Peer().spawn(CHILD, channel=channel, stderr="capture") as first,
        Peer().spawn(CHILD, channel=channel, stderr="capture") as second,
    ):
        ours = our_descriptors(first) | our_descriptors(second)
        for session in (first, second):
            theirs = set(await session.request("descriptors"))
            foreign = {name for name in theirs & ours if name.startswith(("pipe:", "socket:"))}
            # A pipe has one name for both ends: their standard streams are the other ends of ours.
            assert foreign <= own_pipes(pid_of(session))
        # The second does not keep the first from noticing the end of its input.
        await first.aclose()
        assert first.process is not None
        assert first.process.returncode == 0
        assert await second.request("echo", [1]) == 1


def our_descriptors(session: Session) -> set[str]:
    transport: Any = session._connection.transport
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in (transport._read_fd, transport._write_fd)}


def own_pipes(pid: int) -> set[str]:
    """The names of the standard streams it was started with."""
    return {os.readlink(f"/proc/{pid}/fd/{entry}") for entry in os.listdir(f"/proc/{pid}/fd")}


# Row 25: sessions come and go, and leave nothing


@contextlib.asynccontextmanager
async def nothing_more_than_before() -> AsyncIterator[None]:
    """No descriptor and no task, and hardly an object."""
    gc.collect()
    descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    objects = len(gc.get_objects())
    yield
    for _ in range(3):  # transports tell their end in a later turn of the loop
        await asyncio.sleep(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(asyncio.all_tasks()) == tasks
    assert len(gc.get_objects()) - objects < 100


@on_one_loop
async def test_row_25_children() -> None:
    peer = Peer(timeouts=Timeouts(terminate=0.5))

    async def live_and_die(how: str) -> "weakref.ref[Session]":
        async with peer.spawn(CHILD, stderr="capture") as session:
            assert await session.request("echo", [how]) == how
            if how != "closed":
                with pytest.raises(PeerDied):
                    await session.request(*{"killed": ("kill", [9]), "left": ("leave", [1])}[how])
        return weakref.ref(session)

    await live_and_die("closed")
    async with nothing_more_than_before():
        ended = await asyncio.gather(*map(live_and_die, ("closed", "killed", "left") * 3))
    assert [reference() for reference in ended] == [None] * 9


async def test_row_25_sessions() -> None:
    with socket_path() as path:
        peer = echoing()
        async with peer.serve(f"unix:{path}") as server:

            async def live_and_die(number: int) -> None:
                session = await peer.connect(server.address)
                assert await session.request("echo", [number]) == number
                if number % 2:
                    await session.aclose()
                else:
                    session._connection.transport.close()
                    await session.wait_closed()

            await live_and_die(1)
            await live_and_die(2)
            await until_none(server)
            async with nothing_more_than_before():
                for number in range(300):
                    await live_and_die(number)
                await until_none(server)
        assert not peer.sessions


async def until_none(server: Any) -> None:
    async with asyncio.timeout(5):
        for session in server.sessions:
            await session.wait_closed()
    assert not server.sessions


@on_one_loop
async def test_row_25_cancelled_calls() -> None:
    async with Peer().spawn(CHILD) as session:

        async def ask_and_give_up(count: int) -> None:
            tasks = [
                asyncio.create_task(session.request("never", timeout=None)) for _ in range(count)
            ]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            while session.statistics().pending:  # until each was confirmed
                await session.ping()

        await ask_and_give_up(100)
        async with nothing_more_than_before():
            for _ in range(20):
                await ask_and_give_up(500)
        assert await session.request("echo", [1]) == 1
