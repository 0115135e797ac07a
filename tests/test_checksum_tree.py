"""The main job: right results also while children die, and nothing is left running."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.programs import LIMIT, ROOT, read_until, run, run_in_terminal, start

PROGRAM = ROOT / "examples" / "checksum_tree.py"

NAMES = ("a", "ü", "-dash", "with space", "tab\there", "\udcff no unicode", "empty")


def make_tree(folder: Path, *, files: int = 20) -> Path:
    """Folders with files of many sizes, some with odd names, and an empty folder."""
    source = random.Random(7)
    (folder / "empty").mkdir(parents=True)
    for number in range(files):
        below = folder / f"{number % 3}" / f"{number % 5}"
        below.mkdir(parents=True, exist_ok=True)
        size = 0 if number == 3 else source.randrange(50_000)
        (below / f"{number}.data").write_bytes(source.randbytes(size))
    for name in NAMES:
        (folder / "0" / name).write_text(ascii(name))
    (folder / "1" / "large").write_bytes(source.randbytes(3_000_000))
    return folder


def expected_digest(*folders: Path) -> str:
    """What ``sha256sum`` would print for all files, sorted by path, hashed."""
    paths = [os.fsencode(path) for folder in folders for path in folder.rglob("*")]
    lines = [
        hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest().encode() + b"  " + path
        for path in sorted(paths)
        if os.path.isfile(path) and not os.path.islink(path)
    ]
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def figures(written: str) -> dict[str, str]:
    """The totals at the end, by name."""
    return dict(re.findall(r"^([a-z]+) +(.*)$", written, re.MULTILINE))


def test_the_totals_are_right(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    finished = run(PROGRAM, tree)
    assert (finished.stderr, finished.returncode) == ("", 0)
    found = figures(finished.stdout)
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert found["files"] == f"{len(files):,}"
    assert found["bytes"] == f"{sum(path.stat().st_size for path in files):,}"
    assert found["digest"] == expected_digest(tree)
    assert found["checked"] == "8 against hashlib, 8 right"
    assert found["children"].endswith("of which 0 died and were replaced")
    lines = [line for line in finished.stdout.splitlines() if "%" in line]
    assert lines[0].startswith("  0%  0 B of 3.")
    assert lines[-1].startswith("100%  3.")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_the_digest_is_the_one_that_other_tools_find(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    pipeline = f"find {tree} -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    theirs = subprocess.run(["sh", "-c", pipeline], capture_output=True, text=True, check=True)
    assert figures(run(PROGRAM, tree).stdout)["digest"] == theirs.stdout.split()[0]


def test_killed_children_change_nothing(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=600)
    finished = run(PROGRAM, "--chaos", tree)
    assert (finished.stderr, finished.returncode) == ("", 0)
    found = figures(finished.stdout)
    assert found["files"] == f"{600 + len(NAMES) + 1:,}"
    assert found["digest"] == expected_digest(tree)
    died = re.search(r"of which (\d+) died", found["children"])
    assert died is not None
    assert 1 <= int(died[1]) <= 5


def test_what_cannot_be_hashed_is_told(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("1/large")
    (tree / "loop").symlink_to(tree)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tree):
        listener.bind("socket")
    missing = tmp_path / "mis\nsing"
    finished = run(PROGRAM, tree, missing)
    assert finished.returncode == 1
    assert finished.stderr == f"checksum_tree: {str(missing)!r}: No such file or directory\n"
    assert figures(finished.stdout)["digest"] == expected_digest(tree)
    assert "skipped  2 special files (fifos, sockets, devices)\n" in finished.stdout
    assert "skipped  2 symbolic links, which are not followed\n" in finished.stdout


def unprivileged() -> list[str]:
    """What stands before a command so that permissions hold for it."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    digest = expected_digest(tree)
    (tree / "file").write_text("secret")
    (tree / "file").chmod(0)
    (tree / "folder").mkdir(mode=0)
    finished = run(PROGRAM, tree, prefix=unprivileged())
    assert finished.returncode == 1
    assert set(finished.stderr.splitlines()) == {
        f"checksum_tree: {tree}/file: Permission denied",
        f"checksum_tree: {tree}/folder: Permission denied",
    }
    assert figures(finished.stdout)["digest"] == digest


def test_a_file_or_a_link_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(file)
    finished = run(PROGRAM, file, link, file)
    assert (finished.stderr, finished.returncode) == ("", 0)
    assert figures(finished.stdout)["files"] == "2"


def test_nothing_to_do_is_no_error(tmp_path: Path) -> None:
    finished = run(PROGRAM, tmp_path)
    assert (finished.stderr, finished.returncode) == ("", 0)
    assert figures(finished.stdout)["files"] == "0"


def test_bad_arguments() -> None:
    finished = run(PROGRAM, "--nonsense")
    assert finished.returncode == 2
    assert "unrecognized arguments: --nonsense" in finished.stderr


@pytest.mark.parametrize("columns", [100, 60, 30, 10])
def test_the_bar_fits_the_terminal(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which would say more than the terminal
    tree = make_tree(tmp_path / "tree")
    code, written, errors = run_in_terminal(PROGRAM, tree, columns=columns)
    assert (code, errors) == (0, "")
    bar, _, totals = written.rpartition("\rfiles ")
    assert totals.startswith("   28\r\n")
    assert "\n" not in bar
    drawn = bar.removeprefix("looking for files ...").split("\r")
    assert all(len(line) < columns for line in drawn)
    assert any("%" in line for line in drawn)
    if columns >= 60:
        assert any(re.match(r"\[[#.]+\]   0%", line) for line in drawn)
    assert drawn[-1] == " " * (columns - 1)  # cleared, and the cursor is in front again


def begin_large_job(folder: Path, *, size: int = 16 * 1024**3) -> "subprocess.Popen[str]":
    """The program at work on files that take no room, but seconds to hash; for several children.

    :param size: bytes of each of the files
    """
    files = [folder / f"large{number}" for number in range(3)]
    for file in files:
        with file.open("wb") as opened:
            opened.truncate(size)
    process = start(PROGRAM, *files)
    assert process.stdout is not None
    read_until(process.stdout.fileno(), "  0%")  # which comes of a child's report
    return process


def expect_interrupted(process: "subprocess.Popen[str]") -> None:
    # The children have its stderr as well, so that this ends when the last of them has.
    _, errors = process.communicate(timeout=LIMIT)
    assert errors == "interrupted; nothing is left running\n"
    assert process.returncode == 130


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    with begin_large_job(tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        expect_interrupted(process)


def test_impatience_with_an_interrupt_does_no_harm(tmp_path: Path) -> None:
    with begin_large_job(tmp_path) as process:
        for _ in range(1000):
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
                break
        expect_interrupted(process)


def test_a_killed_parent_leaves_nothing_running(tmp_path: Path) -> None:
    with begin_large_job(tmp_path) as process:
        process.kill()
        _, errors = process.communicate(timeout=LIMIT)
    assert errors == ""
    assert process.returncode == -signal.SIGKILL


def test_a_reader_that_leaves_ends_the_job(tmp_path: Path) -> None:
    # Noticed with the next line of output, so at a tenth of the job.
    with begin_large_job(tmp_path, size=1024**3) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=LIMIT)
    assert errors == ""
    assert process.returncode == 1
