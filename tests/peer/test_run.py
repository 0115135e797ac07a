"""asyncipc.run: `asyncio.run` on uvloop."""

import asyncio
import subprocess
from pathlib import Path

import pytest
import uvloop

import asyncipc
from tests.child import python
from tests.peer.support import echoing


async def loop_type() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


def test_a_coroutine_or_the_function_that_makes_it() -> None:
    assert asyncipc.run(loop_type()) is uvloop.Loop
    assert asyncipc.run(loop_type) is uvloop.Loop


def test_an_opening(path: Path) -> None:
    """It is a coroutine like others."""
    with pytest.raises(FileNotFoundError):
        asyncipc.run(asyncipc.Peer().connect(f"unix:{path}"))


def test_debug_mode() -> None:
    async def is_debug() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert asyncipc.run(is_debug, debug=True)
    assert not asyncipc.run(is_debug, debug=False)


def test_what_is_raised_comes_out() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncipc.run(fail)
    with pytest.raises(ZeroDivisionError):
        asyncipc.run(lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_a_loop_runs_already() -> None:
    async def nested() -> None:
        coroutine = loop_type()
        try:
            asyncipc.run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
        asyncipc.run(nested)


def test_a_session_in_it() -> None:
    async def main() -> object:
        async with asyncipc.memory_pair(asyncipc.Peer(), echoing()) as (session, _):
            return await session.request("echo", ["hello"])

    assert asyncipc.run(main) == "hello"


def test_without_uvloop() -> None:
    program = python(
        "sys.modules['uvloop'] = None\n"
        "import asyncio, asyncipc\n"
        "async def main(): print(type(asyncio.get_running_loop()).__module__)\n"
        "asyncipc.run(main)"
    )
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "asyncio.unix_events\n"


def test_interrupted() -> None:
    """The main coroutine is cancelled, so that it can clean up, then KeyboardInterrupt goes on."""
    program = python(
        "import asyncio, asyncipc, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        "async def main():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await asyncio.sleep(1000)\n"
        "    finally:\n"
        "        print('cleaned up')\n"
        "try: asyncipc.run(main)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "cleaned up\ninterrupted\n"
