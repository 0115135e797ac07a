"""What the README and other pages for users show works: their code runs and says what they say.

How the pages are read:

- a ``python`` block is a program; the comment in its first line is the name of its file;
- a ``console`` block is run by ``sh`` in the folder where the page's programs are: the lines that
  begin with ``$`` or, continuing them, ``>``. The other lines are what must come out;
- an ``sh`` block is for the reader's own terminal; what can be checked of it is.

The blocks of a page are run in their order, each once.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs import LIMIT, ROOT, environment

PAGES = [
    "README.md",
    "docs/errors.md",
    "docs/fork-safety.md",
    "docs/pool.md",
    "docs/shared-memory.md",
    "docs/stdio.md",
]

LINK = re.compile(r"\[[^]\[]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, and where it begins."""

    language: str
    text: str
    line: int


def blocks(page: str, *languages: str) -> Iterator[Block]:
    language, start, lines = "", 0, list[str]()
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start:
            if language in languages:
                yield Block(language, "\n".join(lines) + "\n", start)
            start = 0
        else:
            language, start, lines = line.removeprefix("```"), number, []


def file_name(block: Block) -> str:
    name = re.match(r"# (\w+\.py)\n", block.text)
    assert name is not None, f"the program in line {block.line} does not begin with its file name"
    return name[1]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "python"):
        (tmp_path / file_name(block)).write_text(block.text)
    commands = "".join(run_console(block, tmp_path, page) for block in blocks(page, "console"))
    for block in blocks(page, "python"):
        used = commands + "".join(
            other.text for other in blocks(page, "python") if other is not block
        )
        assert re.search(rf"\b{file_name(block)}\b", used), f"nothing runs {file_name(block)}"


def run_console(block: Block, folder: Path, page: str) -> str:
    """Run a console block, and compare; returns the commands."""
    lines = block.text.splitlines()
    commands = "".join(f"{line[2:]}\n" for line in lines if line.startswith(("$ ", "> ")))
    expected = [line for line in lines if not line.startswith(("$ ", "> "))]
    with subprocess.Popen(
        ["sh", "-c", commands],
        cwd=folder,
        env={**environment(), "PATH": f"{python_folder(folder)}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            written, errors = shell.communicate(timeout=LIMIT)
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what it left in the background
                os.killpg(shell.pid, signal.SIGKILL)
    where = f"{page}, line {block.line}"
    assert (where, written.splitlines()) == (where, expected), errors
    assert (where, errors) == (where, "")
    return commands


def python_folder(folder: Path) -> Path:
    """A folder for PATH in which ``python`` is the interpreter of the tests."""
    program = folder / "bin" / "python"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        program.chmod(0o755)
    return program.parent


def test_the_pages_hold_nothing_that_is_not_checked() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        found = set(re.findall(r"^```(.+)$", text, re.MULTILINE))
        assert found <= {"python", "console", "sh"}, page


def test_the_commands_for_the_reader_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = [line for block in blocks("README.md", "sh") for line in block.text.splitlines()]
    assert shown[0].startswith("make demo ")
    for line in shown:
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), line
        else:
            assert [program, *arguments] == ["python", "-m", "pip", "install", "."], line


def test_the_readme_names_the_right_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text()


def test_the_readme_names_every_example() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in LINK.findall(text) if not target.startswith("https://")]
    broken = [target for target in targets if not leads_somewhere(ROOT / page, target)]
    assert not broken


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, heading = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not heading or heading in anchors(file))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
