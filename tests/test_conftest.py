"""The checks of ``conftest.py`` catch what they are there to catch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LOOPS

ROOT = Path(__file__).parents[1]

OFFENDERS = """
import asyncio, os, subprocess, sys, threading, types
import hypothesis, hypothesis.strategies as st, pytest, uvloop
import tests.conftest
tests.conftest.TIME_LIMIT = 0.1
tests.conftest.ENDING_LIMIT = 0.1

keep = []

def test_clean():
    pass

async def test_clean_async():
    await asyncio.create_task(asyncio.sleep(0))

@pytest.fixture
async def helper():
    task = asyncio.create_task(asyncio.Event().wait())
    yield task
    task.cancel()

async def test_clean_with_a_fixture_that_runs_a_task(helper):
    assert not helper.done()

async def test_clean_with_a_thread(tmp_path):
    await asyncio.to_thread(tmp_path.stat)

async def test_clean_with_a_process():
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0

def test_leaves_a_descriptor():
    keep.append(os.open("/dev/null", os.O_RDONLY))

async def test_leaves_a_descriptor_async():
    keep.append(os.open("/dev/null", os.O_RDONLY))

def test_leaves_a_file_in_a_cycle():
    cycle = types.SimpleNamespace(file=open("/dev/null"))
    cycle.itself = cycle

def test_leaves_a_child():
    process = subprocess.Popen(["cat"], stdin=subprocess.DEVNULL)
    keep.append(process)

def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="stray").start()

async def test_leaves_a_task():
    keep.append(asyncio.create_task(asyncio.Event().wait(), name="stray"))

async def test_hangs():
    await asyncio.Event().wait()

@hypothesis.settings(max_examples=1, database=None, phases=[hypothesis.Phase.generate])
@hypothesis.given(st.integers())
async def test_hangs_in_an_example(number):
    await asyncio.Event().wait()

async def test_has_a_timeout_of_its_own():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

async def test_shows_its_loop():
    loop = asyncio.get_running_loop()
    eager = sys.version_info >= (3, 12) and loop.get_task_factory() is asyncio.eager_task_factory
    kind = "uvloop" if isinstance(loop, uvloop.Loop) else "eager" if eager else "asyncio"
    print("ran on", kind, "in debug mode" if loop.get_debug() else "in normal mode")
"""

FAILURES = {
    "test_leaves_a_descriptor": "/dev/null",
    "test_leaves_a_descriptor_async": "/dev/null",
    "test_leaves_a_file_in_a_cycle": "ResourceWarning",
    "test_leaves_a_child": "(cat) in state",
    "test_leaves_a_thread": "Thread(stray",
    "test_leaves_a_task": "name='stray'",
    "test_hangs": "AssertionError: not done after 0.1 s",
    "test_hangs_in_an_example": "AssertionError: not done after 0.1 s",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each of the offenders the outcomes of its runs; the whole output is under ``""``."""
    folder = tmp_path_factory.mktemp("offenders")
    file = folder / "test_offenders.py"
    file.write_text(OFFENDERS)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-rA", "--color=no", "-o", "console_output_style=classic", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment.pop("PYTEST_ADDOPTS", None)
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    found: dict[str, list[str]] = {"": [run.stdout + run.stderr]}
    for line in run.stdout.partition("short test summary info")[2].splitlines():
        outcome, _, rest = line.partition(" ")
        if outcome in {"PASSED", "FAILED", "ERROR"}:
            name = rest.partition("::")[2].partition(" ")[0].partition("[")[0]
            found.setdefault(name, []).append(f"{outcome} {rest}")
    return found


@pytest.mark.parametrize("name", FAILURES)
def test_an_offender_fails(name: str, outcomes: dict[str, list[str]]) -> None:
    failed = [line for line in outcomes[name] if not line.startswith("PASSED")]
    runs = len(LOOPS) if "[" in outcomes[name][0] else 1
    assert len(failed) == runs, outcomes[""][0]
    assert FAILURES[name] in outcomes[""][0]


def test_everything_else_passes(outcomes: dict[str, list[str]]) -> None:
    good = {name: lines for name, lines in outcomes.items() if name and name not in FAILURES}
    assert len(good) == 7, outcomes[""][0]
    for name, lines in good.items():
        assert all(line.startswith("PASSED") for line in lines), outcomes[""][0]
        assert len(lines) == (1 if name == "test_clean" else len(LOOPS))


def test_each_loop_is_what_it_is_called(outcomes: dict[str, list[str]]) -> None:
    for name in LOOPS:
        mode = "debug" if name == "asyncio" else "normal"
        assert f"ran on {name} in {mode} mode" in outcomes[""][0]
