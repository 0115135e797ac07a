"""The rules of ``docs/design.md`` that can be read off the code.

Each rule is a function from one module's syntax tree to what is wrong with it. It is run over the
whole package, and over a snippet that breaks it.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import asyncipc

PACKAGE = Path(asyncipc.__file__).parent

# A module or package directly below asyncipc, and how high it stands. Imports point downward; what
# stands on one level does not import each other.
LAYERS = {
    "errors": 0,
    "config": 0,
    "lazy": 0,
    "callbacks": 0,
    "wire": 1,
    "transport": 1,
    "process": 1,
    "session": 2,
    "testing": 2.5,  # imports the session and below; nobody imports it
    "runner": 3,
    "peer": 3,
    "service": 3,
    "pool": 4,
    "daemon": 5,
    "gateway": 5,
    "cli": 6,
}

LAZY_IMPORTS = {"LazyModule", "import_module", "__import__"}

NO_INPUT_OUTPUT = {"asyncio", "os", "selectors", "socket", "subprocess", "threading"}

MAX_LINES = 400

# (module, function): why it may wait for time to pass. Nothing else may.
SLEEPERS = {
    ("asyncipc.peer.connecting", "retry"): "no event tells that somebody has begun to listen",
}


@dataclass(frozen=True)
class Module:
    """The source of a module; an ``__init__`` goes by the name of its package."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return parse(self.source)

    @property
    def top(self) -> str:
        """The name directly below ``asyncipc``; empty for the package itself."""
        return self.name.partition(".")[2].partition(".")[0]


@cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, file.read_text(), is_package))
    return tuple(found)


def imports(module: Module) -> Iterator[tuple[int, str, str]]:
    """Line, module and name ("" for the module itself) of each import, wherever it stands.

    Those that happen later, ``LazyModule("asyncipc.transport.tls")``, are imports like the others.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = module.name.split(".")
                parents = parents[: len(parents) - node.level + module.is_package]
                origin = ".".join([*parents, *filter(None, [origin])])
            for alias in node.names:
                yield node.lineno, origin, alias.name
        elif isinstance(node, ast.Call) and called_name(node) in LAZY_IMPORTS:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value), ""


def called_name(call: ast.Call) -> str:
    """``f`` for ``f()`` as well as for ``module.f()``."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def imported_layers(module: Module) -> Iterator[tuple[int, str]]:
    """Line and name directly below ``asyncipc`` of each import of our own."""
    for line, origin, name in imports(module):
        root, _, rest = origin.partition(".")
        if root == "asyncipc" and (rest or name in LAYERS):
            yield line, rest.partition(".")[0] or name


# The rules


def imports_that_point_up(module: Module) -> Iterator[str]:
    """Imports point downward only, and siblings never import each other."""
    if not module.top:
        return  # the public face knows everybody
    if module.top not in LAYERS:
        yield f"{module.name} has no layer: give it one here and in docs/design.md"
        return
    for line, top in imported_layers(module):
        if top != module.top and LAYERS.get(top, 99) >= LAYERS[module.top]:
            yield f"{module.name}:{line} imports {top}, which does not stand below {module.top}"


def imports_of_testing(module: Module) -> Iterator[str]:
    """What is made for users' tests is no part of the machine."""
    for line, top in imported_layers(module):
        if top == "testing" and module.top not in {"", "testing"}:
            yield f"{module.name}:{line} imports asyncipc.testing"


def imports_in_functions(module: Module) -> Iterator[str]:
    """An import inside a function hides a cycle."""
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield f"{module.name}:{node.lineno} imports inside of {function.name}"


def imports_of_the_root(module: Module) -> Iterator[str]:
    """``asyncipc/__init__.py`` is for users; inside, each name comes from where it lives."""
    for line, origin, name in imports(module):
        if origin == "asyncipc" and name not in LAYERS:
            yield f"{module.name}:{line} imports the package asyncipc itself"


def input_and_output_in_wire(module: Module) -> Iterator[str]:
    """Bytes in, messages out: the protocol does no I/O."""
    if module.top == "wire":
        for line, origin, _ in imports(module):
            if origin.partition(".")[0] in NO_INPUT_OUTPUT:
                yield f"{module.name}:{line} imports {origin}"


def missing_docstring(module: Module) -> Iterator[str]:
    """A module says what it owns."""
    if not ast.get_docstring(module.tree):
        yield f"{module.name} has no docstring"


def missing_all(module: Module) -> Iterator[str]:
    """A module says which of its names are for others; a subpackage's ``__init__`` has none."""
    targets: list[ast.expr] = []
    for node in module.tree.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    if "__all__" not in names and not (module.is_package and module.top):
        yield f"{module.name} has no __all__"


def too_many_lines(module: Module) -> Iterator[str]:
    """A long file tells that two things live in it."""
    lines = module.source.count("\n")
    if lines > MAX_LINES:
        yield f"{module.name} has {lines} lines; {MAX_LINES} is the most"


def sleeps(module: Module) -> Iterator[str]:
    """Events and deadlines, never sleep-polling; ``sleep(0)``, which only yields, is allowed."""
    for name, node in calls(module.tree, "the module"):
        if (module.name, name) in SLEEPERS or not is_sleep(node, module):
            continue
        if not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0):
            yield f"{module.name}:{node.lineno} sleeps in {name}"


def calls(tree: ast.AST, name: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call below a node, with the name of the innermost function around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield name, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from calls(node, node.name)
        else:
            yield from calls(node, name)


def is_sleep(call: ast.Call, module: Module) -> bool:
    if called_name(call) != "sleep":
        return False
    sleepy = {"anyio", "asyncio", "time"}
    if isinstance(call.func, ast.Attribute):
        return isinstance(call.func.value, ast.Name) and call.func.value.id in sleepy
    return any(name == "sleep" and origin in sleepy for _, origin, name in imports(module))


Rule = Callable[[Module], Iterator[str]]

RULES: dict[Rule, list[Module]] = {
    imports_that_point_up: [
        Module("asyncipc.wire.framing", "from asyncipc.session.calls import Calls"),
        Module("asyncipc.wire.framing", "from asyncipc.transport.base import Transport"),
        Module("asyncipc.wire.framing", "import asyncipc.transport.base"),
        Module("asyncipc.wire.framing", "from asyncipc import transport"),
        Module("asyncipc.wire.framing", "from ..transport import base"),
        Module("asyncipc.wire", "from ..transport import base", is_package=True),
        Module("asyncipc.wire.framing", 'tls = LazyModule("asyncipc.transport.tls")'),
        Module("asyncipc.wire.framing", 'importlib.import_module("asyncipc.transport.tls")'),
        Module("asyncipc.config", "from asyncipc.errors import IPCError"),
        Module("asyncipc.peer.peer", "from asyncipc.service.service import Service"),
        Module("asyncipc.testing", "from asyncipc.peer.peer import Peer"),
        Module("asyncipc.session.calls", "if TYPE_CHECKING:\n    import asyncipc.peer.peer"),
        Module("asyncipc.errors", "from asyncipc.unheard_of import something"),
        Module("asyncipc.unheard_of", ""),
    ],
    imports_of_testing: [Module("asyncipc.pool.pool", "from asyncipc.testing import pair")],
    imports_in_functions: [
        Module("asyncipc.pool.pool", "class Pool:\n    async def run(self):\n        import os"),
        Module("asyncipc.pool.pool", "def run():\n    if True:\n        from os import path"),
    ],
    imports_of_the_root: [
        Module("asyncipc.pool.pool", "import asyncipc"),
        Module("asyncipc.pool.pool", "from asyncipc import Peer"),
        Module("asyncipc.pool.pool", "from .. import Peer"),
    ],
    input_and_output_in_wire: [
        Module("asyncipc.wire.framing", "import os.path"),
        Module("asyncipc.wire.framing", "from asyncio import Future"),
    ],
    missing_docstring: [Module("asyncipc.wire", "", is_package=True)],
    missing_all: [
        Module("asyncipc.errors", "class IPCError(Exception): ..."),
        Module("asyncipc", "", is_package=True),
    ],
    too_many_lines: [Module("asyncipc.errors", "\n" * (MAX_LINES + 1))],
    sleeps: [
        Module("asyncipc.pool.pool", "async def run():\n    await asyncio.sleep(1)"),
        Module("asyncipc.pool.pool", "import time\ntime.sleep(pause)"),
        Module("asyncipc.pool.pool", "from asyncio import sleep\nasync def f(): await sleep(0.1)"),
    ],
}

GOOD = [
    Module("asyncipc.session.calls", "from asyncipc.wire.framing import Frame"),
    Module("asyncipc.session.calls", "from asyncipc.session.pings import Pings"),
    Module("asyncipc.session.calls", "from . import pings\nfrom .pings import Pings"),
    Module("asyncipc.session", "from .pings import Pings", is_package=True),
    Module("asyncipc.testing", "from asyncipc.session.session import Session"),
    Module("asyncipc.session.calls", "if TYPE_CHECKING:\n    from asyncipc.errors import IPCError"),
    Module("asyncipc.session.calls", "async def f():\n    await asyncio.sleep(0)\n    sleep(1)"),
    Module("asyncipc.session.calls", 'types = LazyModule("asyncipc.wire.types")'),
    Module("asyncipc.transport.pipes", "import asyncio, os"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    problems = [problem for module in modules() for problem in rule(module)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "module"),
    [(rule, module) for rule, breakers in RULES.items() for module in breakers],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_breach_is_noticed(rule: Rule, module: Module) -> None:
    assert len(list(rule(module))) == 1


@pytest.mark.parametrize("module", GOOD, ids=lambda module: module.name)
def test_what_is_allowed_passes(module: Module) -> None:
    rules = [rule for rule in RULES if rule not in {missing_docstring, missing_all}]
    assert [problem for rule in rules for problem in rule(module)] == []


def test_the_exempted_functions_exist() -> None:
    found = {(module.name, name) for module in modules() for name, _ in calls(module.tree, "")}
    assert SLEEPERS.keys() <= found


# The public face


def public_names() -> set[str]:
    return set(asyncipc.__all__) - {"__version__"}


def exports() -> dict[str, list[object]]:
    """What the modules offer in their ``__all__``, by name."""
    found: dict[str, list[object]] = {}
    for module in modules():
        if module.top:
            loaded = import_module(module.name)
            for name in getattr(loaded, "__all__", ()):
                found.setdefault(name, []).append(getattr(loaded, name))
    return found


def test_every_public_name_is_there() -> None:
    assert len(asyncipc.__all__) == len(set(asyncipc.__all__))
    assert set(asyncipc.__all__) <= set(dir(asyncipc))
    exported = exports()
    for name in public_names():
        value = getattr(asyncipc, name)
        assert any(value is offered for offered in exported.get(name, ())), name


def test_every_exception_and_setting_is_public() -> None:
    errors, config = import_module("asyncipc.errors"), import_module("asyncipc.config")
    types = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert types | set(config.__all__) <= public_names()


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        asyncipc.no_such_name  # noqa: B018 - reading it is the test


def test_type_checkers_see_the_same_names() -> None:
    """What is loaded lazily is imported once more under ``if TYPE_CHECKING``."""
    (face,) = (module for module in modules() if not module.top)
    seen = {name for _, origin, name in imports(face) if origin.startswith("asyncipc.")}
    assert seen == public_names()


def test_importing_the_package_imports_nothing_of_it() -> None:
    program = "import sys, asyncipc; print(*(m for m in sys.modules if m.startswith('asyncipc.')))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
