"""Every example runs, keeps what it promises (each asserts its own outcome), and says it nicely."""

import re
import signal
from pathlib import Path

import pytest

from tests.programs import LIMIT, ROOT, run, run_in_terminal, start

EXAMPLES = ROOT / "examples"

# What each says last, as a pattern, and what on stderr.
ALONE = {
    "chat": (r"Ada heard: Bob comes in, .*, goodbye", ""),
    "hello": (r"the child says that 1 \+ 2 = 3", "this goes to stderr and harms nobody\n"),
    "hand_over": ("12 connections handed to 3 processes", ""),
    "image_filter": (r"60 frames of 2\.8 MB, \d+ a second", ""),
    "json_wire": (r'child:  \[3, 3, "hello Zoë"\]', ""),
    "messages": ("sold out: no tea left 1", ""),
    "pool_files": (r"\.\.\. \d+ modules in all", ""),
    "pool_instead_of_executor": ("they agree", ""),
    "pool_map": ("4,203 primes below 40,000, of which 303 are below 2,000", ""),
    "pool_numpy": (r"tones at \[440, 880, 1760, 3520\] Hz", ""),
    "pool_timeouts": ("3 workers died, and 2 were there at the end", ""),
    "progress": ("20 loaves", ""),
    "status": (r"the child has stopped after \d+ steps", ""),
    "tail": ("nobody reads the log any longer", ""),
    "timeouts": ("the child woke up each time", ""),
    "upload": ("33,554,432 bytes, the same on both sides", ""),
    "workers": (r"4,203 primes below 40,000; portions done: \{.*\}", ""),
}

# Run by another example, or tested elsewhere in this module and in test_checksum_tree.
OTHERS = {"checksum_tree", "hello_child", "socket_client", "socket_server"}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*ALONE, *OTHERS}


@pytest.mark.parametrize("name", ALONE)
def test_example(name: str) -> None:
    last_line, errors = ALONE[name]
    finished = run(EXAMPLES / f"{name}.py")
    assert finished.stderr == errors
    assert finished.returncode == 0
    assert re.fullmatch(last_line, finished.stdout.splitlines()[-1]), finished.stdout


def test_progress_is_a_bar_in_a_terminal() -> None:
    code, written, errors = run_in_terminal(EXAMPLES / "progress.py", columns=80)
    assert (code, errors) == (0, "")
    bar, result, end = written.split("\r\n")
    states = bar.split("\r")[1:]  # each drawn over the one before
    assert len(states) == 20
    assert states[9].rstrip() == f"[{'#' * 20}{'.' * 20}]  50%  loaf 10"
    assert (result, end) == ("20 loaves", "")


def test_two_programs_over_a_unix_socket(tmp_path: Path) -> None:
    address = "unix:board.sock"
    with start(EXAMPLES / "socket_server.py", address, cwd=tmp_path) as server:
        try:
            first = run(EXAMPLES / "socket_client.py", address, cwd=tmp_path)
            second = run(EXAMPLES / "socket_client.py", address, cwd=tmp_path)
            rival = run(EXAMPLES / "socket_server.py", address, cwd=tmp_path)
            server.send_signal(signal.SIGINT)
            written, errors = server.communicate(timeout=LIMIT)
        finally:
            server.kill()
    assert (first.stderr, first.returncode) == ("", 0)
    assert (second.stderr, second.returncode) == ("", 0)
    assert first.stdout.startswith("on the board, 1 in all:\n")
    assert second.stdout.startswith("on the board, 2 in all:\n")
    assert rival.returncode == 1
    assert rival.stderr.startswith("socket_server: a live server owns unix:board.sock")
    assert (written, errors) == ("listening on unix:board.sock\nclosed\n", "")
    assert server.returncode == 0
    assert not Path(tmp_path, "board.sock").exists()
