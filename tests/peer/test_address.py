"""Addresses: every text stands for one, or is refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncipc import AddressError, Peer, register_scheme
from asyncipc.peer import address as module
from asyncipc.peer.address import (
    Address,
    ExecAddress,
    FdAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)

GOOD = {
    "unix:/run/app.sock": UnixAddress("/run/app.sock"),
    "unix:relative.sock": UnixAddress("relative.sock"),
    "unix:/with:colon": UnixAddress("/with:colon"),
    "unix:" + "a" * 107: UnixAddress("a" * 107),
    "unix:@name": UnixAddress("@name"),
    "tcp:localhost:80": TcpAddress("localhost", 80),
    "tcp:127.0.0.1:0": TcpAddress("127.0.0.1", 0),
    "tcp:example.org:65535": TcpAddress("example.org", 65535),
    "tcp:[::1]:80": TcpAddress("::1", 80),
    "fd:3": FdAddress(3),
    "exec:program": ExecAddress(("program",)),
    "exec:python -c 'print(1)'": ExecAddress(("python", "-c", "print(1)")),
}

BAD = {
    "": "should begin with one of exec:, fd:, tcp:, unix:",
    "/run/app.sock": "should begin with one of",
    "http://localhost": "should begin with one of",
    "UNIX:/run/app.sock": "should begin with one of",
    "unix:": "has nothing behind unix:",
    "unix:" + "a" * 108: "may have 107 bytes",
    "unix:" + "ä" * 54: "has 108",
    "unix:a\0b": "cannot contain a NUL",
    "unix:@": "need a name",
    "unix:\ud800": "cannot be encoded",
    "tcp:localhost": "expected tcp:host:port",
    "tcp:80": "expected tcp:host:port",
    "tcp:localhost:": "port from 0 to 65535",
    "tcp:localhost:65536": "port from 0 to 65535",
    "tcp:localhost:-1": "port from 0 to 65535",
    "tcp:localhost:http": "port from 0 to 65535",
    "tcp:localhost:٣": "port from 0 to 65535",
    "tcp:localhost:" + "9" * 5000: "port from 0 to 65535",
    "tcp://localhost:80": "expected tcp:host:port",
    "tcp:a\0b:80": "expected tcp:host:port",
    "tcp:::1:80": r"tcp:\[::1\]:80",
    "tcp::80": "names no host; tcp:localhost:80 is this machine",
    "tcp:[]:80": "names no host",
    "fd:": "has nothing behind fd:",
    "fd:x": "expected fd: and the number",
    "fd:-1": "expected fd: and the number",
    "fd:" + "9" * 5000: "expected fd: and the number",
    "exec:": "has nothing behind exec:",
    "exec: ": "names no program",
    "exec:'open": "cannot be split into words",
    "exec:a\0b": "cannot contain a NUL",
}


@pytest.mark.parametrize("text", GOOD)
def test_an_address_that_is_right(text: str) -> None:
    assert parse_address(text) == GOOD[text]
    assert type(parse_address(text)) is type(GOOD[text])
    assert str(GOOD[text]) == text


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text)[:30])
def test_an_address_that_is_wrong(text: str) -> None:
    with pytest.raises(AddressError, match=BAD[text]):
        parse_address(text)


def test_an_address_must_be_text() -> None:
    with pytest.raises(AddressError, match=r"must be a string .* not b'unix:/x'"):
        parse_address(b"unix:/x")  # type: ignore[arg-type]


@given(st.sampled_from(["", "unix:", "tcp:", "tcp:[", "fd:", "exec:"]), st.text())
def test_any_text_is_an_address_or_refused(scheme: str, rest: str) -> None:
    try:
        address = parse_address(scheme + rest)
    except AddressError:
        return
    assert parse_address(str(address)) == address


def test_a_wrong_address_is_an_error_where_it_is_written() -> None:
    peer = Peer()
    with pytest.raises(AddressError):
        peer.connect("nonsense")
    with pytest.raises(AddressError):
        peer.serve("nonsense")


# Schemes


@pytest.fixture
def scheme(monkeypatch: pytest.MonkeyPatch) -> str:
    """A scheme of the test's own; the table is put back at the end."""
    monkeypatch.setattr(module, "_schemes", dict(module._schemes))

    def parse(rest: str) -> Address:
        if rest == "unknown":
            raise AddressError("there is no such service")
        return UnixAddress(f"/run/{rest}.sock")

    register_scheme("service", parse)
    return "service"


def test_a_scheme_of_ones_own(scheme: str) -> None:
    assert parse_address("service:calculator") == UnixAddress("/run/calculator.sock")
    with pytest.raises(AddressError, match="no such service"):
        parse_address("service:unknown")
    with pytest.raises(AddressError, match="exec:, fd:, service:, tcp:, unix:"):
        parse_address("nonsense")


@pytest.mark.parametrize("name", ["service", "unix"])
def test_a_scheme_is_registered_once(name: str, scheme: str) -> None:
    with pytest.raises(ValueError, match="exists already"):
        register_scheme(name, UnixAddress)


@pytest.mark.parametrize("name", ["", "a:b"])
def test_what_cannot_be_a_scheme(name: str) -> None:
    with pytest.raises(ValueError, match="a word without a colon"):
        register_scheme(name, UnixAddress)
