"""What a caller may give to a `Peer`, checked and brought into the one form that is used inside.

Layer 3, inside the peer. Below: session, wire.
"""

import functools
import os
import ssl
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from asyncipc.errors import AddressError
from asyncipc.lazy import LazyModule
from asyncipc.peer.address import Address, ExecAddress, FdAddress, TcpAddress, UnixAddress
from asyncipc.session.settings import CodecMaker
from asyncipc.wire.codec import Codec
from asyncipc.wire.msgpack_codec import MessagePack

if TYPE_CHECKING:
    from asyncipc.peer import resolving
    from asyncipc.wire import json_codec
else:
    resolving = LazyModule("asyncipc.peer.resolving")
    json_codec = LazyModule("asyncipc.wire.json_codec")

__all__ = [
    "RequestIds",
    "Users",
    "allowed_users",
    "check_client_tls",
    "check_connecting",
    "check_kind",
    "check_listening",
    "check_network_security",
    "check_seconds",
    "check_server_tls",
    "codec_choice",
    "file_mode",
    "id_source",
    "token_bytes",
]

RequestIds: TypeAlias = Iterator[object] | Callable[[], object]

# Who may be at the other end of a unix socket: the user of this process, anybody, or these ids.
Users: TypeAlias = Literal["same", "any"] | Collection[int]

# A socket's file for this user alone, and one that all may connect to.
PRIVATE: Final = 0o600
PUBLIC: Final = 0o666


def codec_choice(chosen: str | Codec) -> tuple[str, dict[str, CodecMaker]]:
    """The name of the codec that was chosen, and what makes each that is spoken, by name.

    :raises TypeError: it is neither a name nor a codec
    :raises ValueError: there is none of that name
    """
    makers: dict[str, CodecMaker] = {
        "msgpack": functools.cache(MessagePack),
        "json": functools.cache(lambda: json_codec.JSON()),  # noqa: PLW0108 - lazy, as the module is
    }
    if not isinstance(chosen, str):
        if isinstance(chosen, type) or not isinstance(chosen, Codec):
            raise TypeError(
                f"codec must be one of {', '.join(makers)} or an object with the methods of Codec, "
                f"not {chosen!r:.60}"
            )
        makers[chosen.name] = lambda: chosen
        return chosen.name, makers
    if chosen not in makers:
        raise ValueError(f"codec must be one of {', '.join(makers)} or a Codec, not {chosen!r}")
    return chosen, makers


def id_source(request_ids: RequestIds | None) -> Callable[[], object] | None:
    """The function that makes request ids.

    :raises TypeError: it is neither an iterator nor a function
    """
    if request_ids is None or callable(request_ids):
        return request_ids
    if isinstance(request_ids, Iterator):
        return request_ids.__next__
    raise TypeError(f"request_ids must be an iterator or a function, not {request_ids!r:.60}")


def token_bytes(token: str | bytes | None) -> bytes | None:
    """The secret as the handshake uses it.

    :raises TypeError: it is neither a string nor bytes
    :raises ValueError: it is empty
    """
    if token is None:
        return None
    if not isinstance(token, str | bytes):
        raise TypeError(f"a token must be a string or bytes, not {type(token).__name__}")
    if not token:
        raise ValueError("a token must not be empty")
    return token.encode() if isinstance(token, str) else token


def check_kind(name: str, value: object, kind: type) -> None:
    """Check that a setting is of its type.

    :raises TypeError: it is not
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "aeiou" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, not {value!r:.60}")


def check_client_tls(tls: object) -> None:
    """Check that what is to be connected with is a TLS context for it; None is none.

    :raises TypeError: it is no context
    :raises ValueError: it is one for listening
    """
    _check_tls(tls, "client", ssl.PROTOCOL_TLS_SERVER)


def check_server_tls(tls: object) -> None:
    """`check_client_tls` for what is to be listened with."""
    _check_tls(tls, "server", ssl.PROTOCOL_TLS_CLIENT)


def _check_tls(tls: object, side: str, wrong: int) -> None:
    if tls is None:
        return
    if not isinstance(tls, ssl.SSLContext):
        raise TypeError(f"tls must be an ssl.SSLContext, not {tls!r:.60}")
    if tls.protocol == wrong:
        raise ValueError(f"tls must be a {side}-side context, not one of {tls.protocol.name}")


def check_seconds(name: str, value: object) -> None:
    """Check a number of seconds that must be given.

    :raises TypeError: it is no number
    :raises ValueError: it is negative or not a number
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds, not {value!r:.60}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, but is {value!r}")


def allowed_users(users: Users) -> frozenset[int] | None:
    """The ids of the users who may be at the other end; None for all of them.

    :raises TypeError: it is neither a collection of user ids nor one of the two words
    :raises ValueError: it would be nobody
    """
    if users == "same":
        return frozenset((os.geteuid(),))
    if users == "any":
        return None
    if isinstance(users, str | bytes) or not isinstance(users, Collection):
        raise TypeError(f'users must be "same", "any" or a collection of user ids, not {users!r}')
    for user in users:
        if isinstance(user, bool) or not isinstance(user, int):
            raise TypeError(f"users must contain user ids, which are integers, not {user!r:.60}")
    if not users:
        raise ValueError("users must not be empty: that would be nobody")
    return frozenset(users)


def check_connecting(
    address: Address,
    *,
    tls: ssl.SSLContext | None,
    token: bytes | None,
    users: Users,
    retry_for: float,
) -> None:
    """:raises AddressError: an option is not for such an address"""
    if retry_for and isinstance(address, FdAddress | ExecAddress):
        raise AddressError(f"retry_for= is for who may listen later, not for {address}")
    if tls is not None and not isinstance(address, TcpAddress):
        raise AddressError(f"TLS is for tcp: addresses, not for {address}")
    if users != "any" and not isinstance(address, UnixAddress):
        raise AddressError(f"users= is for unix: addresses, not for {address}")
    if token is not None and isinstance(address, ExecAddress):
        raise AddressError("exec: takes no token; the pipes are private")


def check_listening(
    address: UnixAddress | TcpAddress,
    *,
    tls: ssl.SSLContext | None,
    users: Users,
    mode: int | None,
) -> None:
    """:raises AddressError: an option is not for such an address"""
    if isinstance(address, TcpAddress):
        if users != "same" or mode is not None:
            raise AddressError(f"users= and mode= are for unix sockets, not for {address}")
        return
    if tls is not None:
        raise AddressError(f"TLS is for tcp: addresses, not for {address}")
    if mode is not None and address.is_abstract:
        raise AddressError(f"mode= is for the files of unix sockets; {address} has none")


def file_mode(mode: int | None, users: Users) -> int:
    """The permissions of a socket's file; by default those that let the users in.

    :raises TypeError: it is no integer
    :raises ValueError: it is no set of permissions
    """
    if mode is None:
        return PRIVATE if users == "same" else PUBLIC
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode must be an integer such as 0o600, not {mode!r:.60}")
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode must be from 0 to 0o777, not {mode:#o}")
    return mode


def check_network_security(
    address: TcpAddress,
    resolved: "Sequence[resolving.Resolved]",
    tls: ssl.SSLContext | None,
    token: bytes | None,
) -> None:
    """:raises AddressError: anybody could connect, or listen in"""
    if tls is None and not resolving.is_loopback(resolved):
        raise AddressError(
            f"{address} can be reached from other machines: give tls=, or insecure=True"
        )
    certificates = tls is not None and tls.verify_mode is ssl.CERT_REQUIRED
    if token is None and not certificates:
        raise AddressError(
            f"whoever can reach {address} could connect, be it other users of this machine: give "
            "token=, or a tls context that requires client certificates, or insecure=True"
        )
