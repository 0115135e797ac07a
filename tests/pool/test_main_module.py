"""Functions of the user's own program, however that is run."""

import subprocess
import sys
from pathlib import Path

import pytest

from asyncipc.pool.main_module import describe_main, is_importing_main
from tests.pool.support import LIMIT, START_METHODS
from tests.programs import environment

SCRIPT = """
import asyncio, os, sys
from dataclasses import dataclass
import asyncipc

# In one write, also where output is not buffered: workers may do it at the same time.
print(f"body {__name__}\\n", end="", flush=True)

@dataclass
class Point:
    x: int

class OwnError(Exception):
    pass

def double(value):
    return 2 * value

async def double_async(value):
    return 2 * value

def move(point):
    return Point(point.x + 1)

def fail():
    raise OwnError("of the script")

def arguments():
    return sys.argv, __name__

async def main(start_method):
    async with asyncipc.Pool(2, start_method=start_method) as pool:
        assert await pool.run(double, 2) == 4
        assert await pool.run(double_async, 2) == 4
        assert await pool.run(move, Point(1)) == Point(2)
        try:
            await pool.run(fail)
        except OwnError as error:
            assert str(error) == "of the script"
        assert [x async for x in pool.map(double, range(3))] == [0, 2, 4]
        assert await pool.run(arguments) == (sys.argv, "__mp_main__")
    print("done", flush=True)
"""

GUARD = """
if __name__ == "__main__":
    asyncipc.run(main(sys.argv[1]))
"""


def run(
    *command: str | Path, cwd: Path, source: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end; nothing it says on stderr goes unseen."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(),
        input=source,
        stdin=None if source is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT + GUARD)
    output = succeeded(run("script.py", start_method, "more", cwd=tmp_path)).splitlines()
    # Its body runs again once for all workers with a zygote, and once in each without.
    again = 1 if start_method == "zygote" else 2
    assert sorted(output) == ["body __main__", *["body __mp_main__"] * again, "done"]


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script_that_lies_elsewhere_and_imports_its_neighbour(
    start_method: str, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    (folder / "neighbour.py").write_text("def triple(value):\n    return 3 * value\n")
    (folder / "script.py").write_text(
        "import sys, asyncipc, neighbour\n"
        "async def main():\n"
        "    async with asyncipc.Pool(1, start_method=sys.argv[1]) as pool:\n"
        "        print(await pool.run(neighbour.triple, 2))\n"
        "if __name__ == '__main__':\n"
        "    asyncipc.run(main())\n"
    )
    assert succeeded(run(folder / "script.py", start_method, cwd=elsewhere)) == "6\n"


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script_without_the_guard_says_what_is_missing(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT + "\nasyncipc.run(main(sys.argv[1]))\n")
    process = run("script.py", start_method, cwd=tmp_path)
    assert process.returncode == 1
    assert "asyncipc.errors.PoolError" in process.stderr
    assert 'put what starts it behind if __name__ == "__main__":' in process.stderr
    assert "done" not in process.stdout


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script_without_the_guard_that_goes_on_running_says_what_is_missing(
    start_method: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(
        "import signal, sys, asyncipc\n"
        "async def main():\n"
        "    async with asyncipc.Pool(1, start_method=sys.argv[1], spawn_timeout=3):\n"
        "        print('done')\n"
        "if __name__ == '__main__':\n"
        "    asyncipc.run(main())\n"
        "else:\n"
        "    print('serving', file=sys.stderr, flush=True)\n"
        "    signal.pause()\n"
    )
    process = run("script.py", start_method, cwd=tmp_path)
    assert process.returncode == 1
    last = process.stderr[process.stderr.rindex("asyncipc.errors.PoolError") :]
    who = "the zygote" if start_method == "zygote" else "worker 1"
    assert f"{who} was importing the application's main module" in last
    assert 'put what starts it behind if __name__ == "__main__":' in last
    assert last.endswith("last words on stderr:\nserving\n")


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_module_that_is_run(start_method: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "module.py").write_text("from . import neighbour\n" + SCRIPT + GUARD)
    (package / "neighbour.py").touch()
    output = succeeded(run("-m", "package.module", start_method, cwd=tmp_path))
    assert output.endswith("done\n")


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_package_that_is_run(start_method: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "functions.py").write_text("def double(value):\n    return 2 * value\n")
    (package / "__main__.py").write_text(
        "import sys, asyncipc\n"
        "from package.functions import double\n"
        "async def main():\n"
        "    async with asyncipc.Pool(1, start_method=sys.argv[1]) as pool:\n"
        "        print(await pool.run(double, 2))\n"
        "if __name__ == '__main__':\n"
        "    asyncipc.run(main())\n"
    )
    assert succeeded(run("-m", "package", start_method, cwd=tmp_path)) == "4\n"


INTERACTIVE = """
import asyncio, math, operator, asyncipc
def local(): return 1

async def main():
    async with asyncipc.Pool(1, start_method="{start_method}") as pool:
        assert await pool.run(math.sqrt, 4) == 2
        try:
            await pool.run(local)
        except asyncipc.DecodeError as error:
            print(error)
        print("still", await pool.run(operator.add, 1, 2))

asyncipc.run(main())
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("how", ["-c", "stdin", "-i"])
def test_interactive_programs_run_what_can_be_imported(
    how: str, start_method: str, tmp_path: Path
) -> None:
    source = INTERACTIVE.format(start_method=start_method)
    if how == "-c":
        process = run("-c", source, cwd=tmp_path)
    elif how == "stdin":
        process = run("-", cwd=tmp_path, source=source)
    else:
        # As typed: an empty line ends a block.
        process = run("-i", "-q", cwd=tmp_path, source=source)
    assert process.returncode == 0, process.stderr
    assert "the worker cannot find the function" in process.stdout
    assert "local" in process.stdout
    assert "interactive session" in process.stdout
    assert process.stdout.endswith("still 3\n")


NAMESAKES = """
import asyncio, asyncipc

def main(value): return 2 * value
def sys(value): return 3 * value
def asyncipc_main(value): return 4 * value

async def start():
    async with asyncipc.Pool(1, start_method="{start_method}") as pool:
        for function in (main, sys, asyncipc_main):
            try:
                print(await pool.run(function, 21))
            except asyncipc.DecodeError as error:
                print(function.__name__, error)

asyncio.run(start())
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("how", ["-c", "stdin", "package"])
def test_functions_that_workers_cannot_import_are_nobody_elses(
    how: str, start_method: str, tmp_path: Path
) -> None:
    source = NAMESAKES.format(start_method=start_method)
    if how == "-c":
        process = run("-c", source, cwd=tmp_path)
    elif how == "stdin":
        process = run("-", cwd=tmp_path, source=source)
    else:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__main__.py").write_text(source)
        process = run("-m", "package", cwd=tmp_path)
    lines = succeeded(process).splitlines()
    names = [line.partition(" the worker cannot find the function: ")[0] for line in lines]
    assert names == ["main", "sys", "asyncipc_main"]


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_path_that_holds_what_is_no_string(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, pathlib\nsys.path += [pathlib.Path('elsewhere'), b'odd', 7]\n" + SCRIPT + GUARD
    )
    assert succeeded(run("script.py", start_method, cwd=tmp_path)).endswith("done\n")


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_program_whose_standard_output_is_closed(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        SCRIPT + "if __name__ == '__main__':\n    os.close(1)\n    sys.stdout = None\n" + GUARD
    )
    assert succeeded(run("script.py", start_method, cwd=tmp_path)) == "body __main__\n"


def test_functions_of_a_script_are_there_after_the_zygote_was_replaced(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import asyncio, os, signal, asyncipc\n"
        "def parent(): return os.getppid()\n"
        "async def main():\n"
        "    async with asyncipc.Pool(1) as pool:\n"
        "        zygote = await pool.run(parent)\n"
        "        os.kill(zygote, signal.SIGKILL)\n"
        "        os.waitid(os.P_PIDFD, os.pidfd_open(zygote), os.WEXITED | os.WNOWAIT)\n"
        "        await pool.resize(2)\n"
        "        found = {await pool.run(parent) for _ in range(2)}\n"
        "        pool.workers[0].pause()\n"
        "        assert await pool.run(parent) not in (zygote, os.getpid())\n"
        "        print('done')\n"
        "if __name__ == '__main__':\n"
        "    asyncipc.run(main())\n"
    )
    assert succeeded(run("-W", "ignore", "script.py", cwd=tmp_path)) == "done\n"


def test_pytest_needs_no_main_module() -> None:
    assert describe_main() == {}
    assert not is_importing_main()
