"""docs/errors.md tells of every exception there is, and has the right fault codes."""

import re

from asyncipc import errors
from asyncipc.errors import FaultCode, IPCError, fault_exception
from asyncipc.session import channel
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text()

EXCEPTIONS = {
    name: value
    for name, value in {**vars(errors), **vars(channel)}.items()
    if isinstance(value, type) and issubclass(value, IPCError)
}


def test_every_exception_has_its_section() -> None:
    sections = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted(set(EXCEPTIONS) - {"IPCError"})


def test_the_tree_is_the_one_of_the_classes() -> None:
    [tree] = re.findall(r"^```\n(IPCError\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    missing, parents = dict(EXCEPTIONS), list[str]()
    for line in tree.splitlines():
        depth = len(re.match(r"[│├└─ ]*", line)[0]) // 4  # type: ignore[index]
        name, *also = re.findall(r"\b[A-Z]\w+", line)
        bases = [base.__name__ for base in missing.pop(name).__bases__]
        assert bases == [parents[depth - 1] if depth else "Exception", *also]
        parents[depth:] = [name]
    assert not missing


def test_the_fault_codes_are_right() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (str(int(code)), code.name, type(fault_exception(code, "", {})).__name__)
        for code in FaultCode
    ]


def test_a_code_that_is_not_known_counts_as_an_error() -> None:
    assert "A code that is not known counts as 1." in PAGE
    assert type(fault_exception(99, "", {})) is type(fault_exception(FaultCode.ERROR, "", {}))
