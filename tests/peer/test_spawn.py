"""Spawning: a child is a peer, its end is explained, and it ends with its session."""

import asyncio
import logging
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from asyncipc import (
    HandshakeTimeout,
    Limits,
    Peer,
    PeerDied,
    RemoteProtocolError,
    Session,
    SessionClosed,
    Timeouts,
)
from asyncipc.process.child import ChildProcess
from tests.child import CHILD, python
from tests.processes import watched

# For programs that are no peers, and for peers that do not end by themselves.
IMPATIENT = Timeouts(handshake=0.1, terminate=0.05)
BRISK = Timeouts(goodbye=0.05, terminate=0.05)

# The end of input, or of the session, is not the end of these.
STAYS = python("import signal; from tests.child import main; main(); signal.pause()")
STAYS_FOR_GOOD = python(
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "from tests.child import main; main(); signal.pause()"
)

Channel = Literal["stdio", "socketpair"]


def child_of(session: Session) -> ChildProcess:
    assert session.process is not None
    return session.process


async def failure(session: Session) -> PeerDied:
    """Why the session ends, as a caller sees it."""
    async with asyncio.timeout(5):
        with pytest.raises(PeerDied) as caught:
            await session.request("never", timeout=None)
    return caught.value


# A child


@pytest.mark.parametrize("channel", ["stdio", "socketpair"])
async def test_a_child_is_a_peer(channel: Channel, peer: Peer) -> None:
    async with peer.spawn(CHILD, channel=channel) as session:
        child = child_of(session)
        assert await session.request("echo", ["hello"]) == "hello"
        assert await session.request("pid") == child.pid
        assert session.description == f"pid {child.pid}"
        assert peer.sessions == {session}
        # Nothing of how it was told where to speak is left for its own children.
        for name in ("ASYNCIPC_LIFELINE_FD", "ASYNCIPC_CHANNEL_FD"):
            assert await session.request("environment", [name]) is None
    assert child.returncode == 0
    assert session.close_reason is None
    assert not peer.sessions


async def test_its_environment_and_folder(tmp_path: Path, peer: Peer) -> None:
    async with peer.spawn(CHILD, env={"ONLY": "this"}, cwd=tmp_path) as session:
        assert await session.request("environment", ["ONLY"]) == "this"
        assert await session.request("environment", ["PATH"]) is None
        assert await session.request("folder") == str(tmp_path)


async def test_it_inherits_environment_and_folder(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    async with peer.spawn(CHILD) as session:
        assert await session.request("environment", ["INHERITED"]) == "yes"
        assert await session.request("folder") == os.getcwd()


async def test_a_program_by_address(peer: Peer) -> None:
    async with peer.connect(f"exec:{shlex.join(CHILD)}") as session:
        assert await session.request("pid") == child_of(session).pid
    assert child_of(session).returncode == 0


async def test_the_standard_streams_of_a_socketpair(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Output goes where that of this process goes; there is no input."""
    async with peer.spawn(CHILD, channel="socketpair") as session:
        assert session.credentials is None  # the kernel would name this process
        assert await session.request("print_everywhere") == ""
    out, _ = capfd.readouterr()
    for line in ("by print", "by os.write", "by printf", "by a subprocess"):
        assert line in out.splitlines()


# stderr


async def test_stderr_inherited(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    async with peer.spawn(CHILD) as session:
        await session.request("write_stderr", ["hello\n"])
    assert capfd.readouterr().err == "hello\n"


async def test_stderr_captured(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    async with peer.spawn(CHILD, stderr="capture") as session:
        await session.request("write_stderr", ["first\nsecond\n"])
        with pytest.raises(PeerDied) as caught:
            await session.request("leave", [3])
    assert caught.value.stderr_tail.startswith("first\nsecond\n")
    assert "exit code 3); its last words on stderr:\nfirst\nsecond" in str(caught.value)
    assert capfd.readouterr().err == ""


async def test_the_end_of_stderr_is_kept() -> None:
    peer = Peer(limits=Limits(stderr_tail=10))
    async with peer.spawn(CHILD, stderr="capture") as session:
        await session.request("write_stderr", ["0123456789" * 10 + "the end"])
        with pytest.raises(PeerDied) as caught:
            await session.request("leave", [3])
    assert caught.value.stderr_tail == "789the end"


async def test_stderr_by_lines(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    async with peer.spawn(CHILD, stderr=lines.append) as session:
        await session.request("write_stderr", ["first\nsecond\nunfinished"])
    assert lines == ["first", "second", "unfinished"]
    logger = logging.getLogger("tests.child")
    with caplog.at_level(logging.INFO):
        async with peer.spawn(CHILD, stderr=logger) as session:
            await session.request("write_stderr", ["first\nsecond\n"])
    assert [(r.name, r.message) for r in caplog.records if r.name == "tests.child"] == [
        ("tests.child", "first"),
        ("tests.child", "second"),
    ]


# What cannot be started


async def test_no_such_program(peer: Peer) -> None:
    for channel in ("stdio", "socketpair"):
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            await peer.spawn(["no-such-program"], channel=channel, stderr="capture")


async def test_what_is_no_program(tmp_path: Path, peer: Peer) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(PermissionError):
        await peer.spawn([tmp_path / "text"])
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        await peer.spawn(["true"], cwd=tmp_path / "no-such-folder")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ("true", {}, TypeError, "argv must be a list"),
        ([], {}, ValueError, "argv is empty"),
        (["true"], {"channel": "pipe"}, ValueError, "channel must be 'stdio' or 'socketpair'"),
        (["true"], {"stderr": "ignore"}, TypeError, "stderr must be"),
    ],
)
async def test_wrong_arguments(
    arguments: Any, options: dict[str, Any], error: type[Exception], text: str, peer: Peer
) -> None:
    with pytest.raises(error, match=text):
        await peer.spawn(arguments, **options)


# What is no peer


async def test_a_child_that_exits_at_once(peer: Peer) -> None:
    with pytest.raises(PeerDied, match="died: the other side hung up during the handshake") as info:
        await peer.spawn(["sh", "-c", "echo what went wrong >&2; exit 7"], stderr="capture")
    assert (info.value.exit_code, info.value.signal) == (7, None)
    assert info.value.stderr_tail == "what went wrong\n"


async def test_all_that_it_wrote_is_known(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the loop had not come to read when it died."""
    monkeypatch.setattr("asyncipc.process.stderr.READ_SIZE", 100)
    flood = "head -c 60000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 7"
    with pytest.raises(PeerDied) as info:
        await peer.spawn(["sh", "-c", flood], stderr="capture")
    assert info.value.stderr_tail.endswith("xxxthe end\n")


async def test_a_child_that_is_killed_at_once(peer: Peer) -> None:
    with pytest.raises(PeerDied, match="killed by SIGSEGV") as info:
        await peer.spawn(["sh", "-c", "kill -SEGV $$"])
    assert (info.value.exit_code, info.value.signal) == (None, signal.SIGSEGV)


async def test_a_child_that_breaks_over_a_socketpair(peer: Peer) -> None:
    with pytest.raises(PeerDied, match="ZeroDivisionError") as info:
        await peer.spawn(python("1 / 0"), channel="socketpair", stderr="capture")
    assert info.value.exit_code == 1


async def test_a_child_that_says_nothing() -> None:
    peer = Peer(timeouts=IMPATIENT)
    with pytest.raises(HandshakeTimeout, match=r"no hello came within 0\.1 s") as info:
        await peer.spawn(["sh", "-c", "echo usage: >&2; exec sleep 1000"], stderr="capture")
    assert info.value.__notes__ == ["the child's last words on stderr:\nusage:\n"]


async def test_a_child_that_says_something_else() -> None:
    peer = Peer(timeouts=IMPATIENT)
    with pytest.raises(HandshakeTimeout, match=r"instead .* sent b'Welcome!\\n'"):
        await peer.spawn(["sh", "-c", "echo Welcome!; exec sleep 1000"])


async def test_a_child_that_prints_and_exits(peer: Peer) -> None:
    with pytest.raises(PeerDied, match=r"instead .* sent b'hello\\n'") as info:
        await peer.spawn(["echo", "hello"])
    assert info.value.exit_code == 0


async def test_a_child_that_echoes(peer: Peer) -> None:
    with pytest.raises(RemoteProtocolError, match="echoes"):
        await peer.spawn(["cat"])


async def test_what_a_child_prints_before_it_speaks(peer: Peer) -> None:
    """It is noise, and no harm."""
    noise: list[bytes] = []
    argv = python("print('Welcome!', flush=True); from tests.child import main; main()")
    opening = peer.spawn(argv)
    async with opening as session:
        session.on_noise(noise.append)
        assert await session.request("echo", [1]) == 1
    assert session.statistics().noise_received == len("Welcome!\n")


# The end


async def test_a_child_that_leaves(peer: Peer) -> None:
    async with peer.spawn(CHILD) as session:
        waiting = asyncio.create_task(failure(session))
        await asyncio.sleep(0)
        with pytest.raises(PeerDied, match=r"died: .* \(exit code 5\)") as caught:
            await session.request("leave", [5])
        assert caught.value.exit_code == 5
        assert (await waiting).exit_code == 5
        assert isinstance(session.close_reason, PeerDied)
        async with asyncio.timeout(5):
            await session.wait_closed()
    assert child_of(session).exit_code == 5


async def test_a_child_that_closes_the_session(peer: Peer) -> None:
    """In good order: nobody died."""
    argv = python(
        "import asyncipc; from tests.child import main, peer\n"
        "@peer.on_request\n"
        "async def stop(call: asyncipc.Call): await call.session.aclose()\n"
        "main()"
    )
    async with peer.spawn(argv, stderr="capture") as session:
        assert await session.request("stop") is None
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert session.close_reason is None
        with pytest.raises(SessionClosed) as caught:
            await session.request("echo", [1])
        assert not isinstance(caught.value, PeerDied)
    assert child_of(session).returncode == 0


async def test_a_child_that_closes_its_output_and_stays() -> None:
    peer = Peer(timeouts=BRISK)
    argv = python(
        "import asyncipc, signal; from tests.child import main, peer\n"
        "@peer.on_request\n"
        "def hang_up(call: asyncipc.Call):\n"
        "    call.session._connection.transport.close()\n"
        "main(); signal.pause()"
    )
    async with peer.spawn(argv) as session:
        with pytest.raises(PeerDied, match="closed its output, but goes on") as caught:
            await session.request("hang_up")
        assert (caught.value.exit_code, caught.value.signal) == (None, None)
        async with asyncio.timeout(5):
            await session.wait_closed()
    assert child_of(session).signal == signal.SIGTERM


async def test_a_child_that_ends_with_its_input(peer: Peer) -> None:
    async with peer.spawn(CHILD) as session:
        pass
    assert child_of(session).returncode == 0  # it had the time to leave by itself


async def test_a_child_that_stays_is_terminated() -> None:
    peer = Peer(timeouts=BRISK)
    async with peer.spawn(STAYS) as session:
        assert await session.request("echo", [1]) == 1
    assert child_of(session).signal == signal.SIGTERM


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    peer = Peer(timeouts=BRISK)
    async with peer.spawn(STAYS_FOR_GOOD) as session:
        assert await session.request("echo", [1]) == 1
    assert child_of(session).signal == signal.SIGKILL


async def test_a_child_that_is_busy_is_ended_as_well() -> None:
    peer = Peer(timeouts=BRISK)
    async with peer.spawn(CHILD) as session:
        spinning = asyncio.create_task(session.request("spin", timeout=None))
        await asyncio.sleep(0)
    assert child_of(session).signal == signal.SIGTERM
    with pytest.raises(SessionClosed):
        await spinning


async def test_its_whole_group_ends(peer: Peer) -> None:
    async with peer.spawn(CHILD) as session:
        pid = await session.request("start", [["sleep", "1000"]])
        with watched(pid) as grandchild:
            assert grandchild.is_running
            await session.aclose()
            await grandchild.ended()


async def test_a_stopped_child_is_ended() -> None:
    peer = Peer(timeouts=BRISK)
    async with peer.spawn(CHILD) as session:
        child_of(session).send_signal(signal.SIGSTOP)
    assert child_of(session).signal == signal.SIGTERM


async def test_closing_goes_on_when_its_caller_is_cancelled() -> None:
    peer = Peer(timeouts=BRISK)
    session = await peer.spawn(STAYS_FOR_GOOD)
    with watched(child_of(session).pid) as child:
        closing = asyncio.create_task(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert child.is_running
        await child.ended()
        async with asyncio.timeout(5):
            await session.wait_closed()
    assert child_of(session).returncode == -signal.SIGKILL


async def test_spawning_is_cancelled(peer: Peer) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    spawning = asyncio.create_task(
        peer.spawn(["sh", "-c", "echo $$ >&2; exec cat >/dev/null"], stderr=lines.put_nowait)
    )
    with watched(int(await lines.get())) as child:
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning
        await child.ended()
    assert not peer.sessions


async def test_the_peer_ends_its_children() -> None:
    async with Peer() as peer:
        sessions = await asyncio.gather(*(peer.spawn(CHILD) for _ in range(2)))
        assert peer.sessions == set(sessions)
    assert [child_of(session).returncode for session in sessions] == [0, 0]


async def test_one_child_too_many(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where starting it fails nothing is left behind, which a fixture checks."""

    def fork_exec(*_: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "_fork_exec", fork_exec)
    for channel in ("stdio", "socketpair"):
        with pytest.raises(BlockingIOError):
            await peer.spawn(CHILD, channel=channel, stderr="capture")


PARENT_WITHOUT_STREAMS = """
import asyncio, contextlib, os, sys
from asyncipc import Peer, RemoteError
from tests.child import CHILD

async def main():
    with open(sys.argv[1], "w") as result:
        for fd in range(3):
            os.close(fd)
        for channel in ("stdio", "socketpair"):
            for stderr in ("capture", None):
                async with Peer().spawn(CHILD, channel=channel, stderr=stderr) as session:
                    with contextlib.suppress(RemoteError):  # the child's output may be closed
                        await session.request("print_everywhere")
                    print(await session.request("echo", [channel]), file=result)

asyncio.run(main())
"""


def test_a_parent_without_standard_streams(tmp_path: Path) -> None:
    """What it opens gets their numbers, where its child will have its own."""
    result = tmp_path / "result"
    subprocess.run(python(PARENT_WITHOUT_STREAMS, str(result)), timeout=20, check=False)
    assert result.read_text().split() == ["stdio", "stdio", "socketpair", "socketpair"]
