"""The child's side: a program that speaks over its standard streams, or an inherited socketpair."""

import os
from pathlib import Path

import pytest

from tests.child import CHILD, python
from tests.peer.support import GOODBYE, HELLO, REPLY, SAYS_WHY, SESSION, run
from tests.raw_client import frame, hello


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_all_the_input_at_once(kind: str, tmp_path: Path) -> None:
    """As in ``program <input``: what was asked is answered, and then it ends."""
    if kind == "pipe":
        outcome = run(CHILD, input=SESSION)
    else:
        (tmp_path / "input").write_bytes(SESSION)
        with open(tmp_path / "input", "rb") as file:
            outcome = run(CHILD, stdin=file)
    kinds = [message[0] for message in outcome.messages]
    assert kinds == [HELLO, REPLY, REPLY, GOODBYE]
    assert [message[2] for message in outcome.messages if message[0] == REPLY] == [
        "first",
        "second",
    ]
    assert (outcome.status, outcome.stderr) == (0, "")


def test_what_runs_at_the_end_of_the_input_is_finished() -> None:
    code = """
import asyncio
from tests.child import main, peer
@peer.on_request
async def slow():
    await asyncio.sleep(0.1)
    return "done"
main()
"""
    outcome = run(python(code), input=frame(hello()) + frame([2, 2, "slow", None]))
    # The goodbye says which request was the last to be taken; its answer may follow.
    assert outcome.messages[1:] == [[GOODBYE, 2, 0, ""], [REPLY, 3, "done"]]
    assert (outcome.status, outcome.stderr) == (0, "")


def test_a_session_that_ends_inside_a_message() -> None:
    code = """
import asyncio, asyncipc
from tests.child import peer
async def main():
    async with peer.stdio() as session:
        await session.wait_closed()
        print(type(session.close_reason).__name__, session.close_reason)
asyncipc.run(main())
"""
    outcome = run(python(code), input=SESSION[:-3])
    assert outcome.stderr.startswith("PeerDied the other side hung up without a goodbye")
    assert outcome.status == 0


def test_no_input_at_all() -> None:
    outcome = run(python(SAYS_WHY), input=b"")
    assert outcome == ([], "PeerDied: the other side hung up during the handshake\n", 1)


def test_started_by_hand() -> None:
    """With a person who types."""
    outcome = run(python(SAYS_WHY), input=b"help\n")
    text = "PeerDied: the other side hung up during the handshake; instead"
    assert outcome.stderr.splitlines()[-1].startswith(text)
    assert r"b'help\n'" in outcome.stderr.splitlines()[-1]
    assert outcome.status == 1


@pytest.mark.parametrize("runner", ["asyncio", "asyncipc"])  # libuv aborts on some numbers
@pytest.mark.parametrize(
    ("redirection", "name"),
    [("<&-", "standard input (descriptor 0)"), (">&-", "standard output (descriptor 1)")],
)
def test_closed_streams(runner: str, redirection: str, name: str) -> None:
    program = python(SAYS_WHY.replace("asyncipc.run", f"{runner}.run"))
    outcome = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *program])
    assert outcome == ([], f"AddressError: {name} was closed when this process started\n", 1)


def test_only_once() -> None:
    code = """
import asyncio, asyncipc
from tests.child import peer
async def main():
    async with peer.stdio() as session:
        try:
            await peer.stdio()
        except asyncipc.LocalProtocolError as error:
            print(error)
        await session.wait_closed()
asyncipc.run(main())
"""
    outcome = run(python(code), input=SESSION)
    assert outcome.stderr == "standard input and output of this process were claimed before\n"
    assert [message[0] for message in outcome.messages] == [HELLO, REPLY, REPLY, GOODBYE]


def test_a_socketpair_that_is_none() -> None:
    environment = {**os.environ, "ASYNCIPC_CHANNEL_FD": "1000"}
    outcome = run(python(SAYS_WHY), env=environment)
    assert outcome.stderr.startswith("AddressError: ASYNCIPC_CHANNEL_FD must name an inherited")
    assert outcome.status == 1


def test_a_lifeline_that_was_meant_for_another() -> None:
    """The variable was inherited further than the descriptor."""
    environment = {**os.environ, "ASYNCIPC_LIFELINE_FD": "0:1"}
    outcome = run(CHILD, input=SESSION, env=environment)
    assert [message[0] for message in outcome.messages] == [HELLO, REPLY, REPLY, GOODBYE]
    assert (outcome.status, outcome.stderr) == (0, "")
