"""Hello and authentication: what two sides settle before a session stands. Does no I/O.

Each side sends exactly one hello. The connecting side speaks first, the listening side answers;
where neither is the listener (a wrapped pair of streams) both speak at once. Hello and
authentication are always MessagePack, whatever codec is settled.

The codec is the one that the hello of the connecting side names. Where both spoke at once, the
side with the larger ``instance`` (compared as bytes) counts as the connecting one. An
``instance`` that comes back is an echo: the other side is a program such as ``cat``.

Authentication is mutual: each side proves that it knows the token, without sending it; see
`asyncipc.wire.authentication`.

Layer 1. Above: the session. Below: errors and config.
"""

from collections.abc import Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from asyncipc.config import Limits
from asyncipc.errors import AuthenticationError, IPCError, RemoteProtocolError, SessionClosed
from asyncipc.lazy import LazyModule
from asyncipc.wire.messages import AUTH, GOODBYE, HELLO, GoodbyeCode, check_fields, shown
from asyncipc.wire.packed import check_lengths

if TYPE_CHECKING:
    from asyncipc.wire import authentication
else:
    authentication = LazyModule("asyncipc.wire.authentication")

__all__ = [
    "DESCRIPTORS_FEATURE",
    "HANDSHAKE_MAX_FRAME",
    "MEMORY_FEATURE",
    "VERSIONS",
    "Agreement",
    "Handshake",
    "HandshakeRejected",
    "RemoteLimits",
    "Role",
    "encode_goodbye",
]

# The lowest and the highest version of docs/protocol.md that this code speaks.
VERSIONS: Final = (1, 1)

# Nothing larger is read from a stranger.
HANDSHAKE_MAX_FRAME: Final = 16 * 1024

HMAC_SHA256: Final = "hmac-sha256"

# What a side can do beyond the rest of docs/protocol.md; it is done where both sides can.
DESCRIPTORS_FEATURE: Final = "descriptors"
MEMORY_FEATURE: Final = "shared memory"


class Role(Enum):
    """Who begins: the connecting side, the listening side, or both at once."""

    CONNECTING = "connecting"
    LISTENING = "listening"
    EITHER = "either"


class HandshakeRejected(RemoteProtocolError):
    """The two sides cannot work together; ``code`` is what the goodbye tells the other side."""

    def __init__(self, message: str, code: GoodbyeCode) -> None:
        super().__init__(message)
        self.code = code


class RemoteLimits(NamedTuple):
    """The limits of the other side that this side has to respect; see `asyncipc.config.Limits`."""

    max_frame: int
    max_message: int
    max_requests: int
    notification_credit: int
    stream_credit: int
    max_descriptors: int = 0


class Agreement(NamedTuple):
    """What a handshake settled."""

    version: int
    codec: str
    limits: RemoteLimits
    features: frozenset[str]


# A hello that leaves a limit out means these. They are the smallest a side may announce.
SMALLEST_LIMITS: Final = RemoteLimits(
    max_frame=HANDSHAKE_MAX_FRAME,
    max_message=HANDSHAKE_MAX_FRAME,
    max_requests=1,
    notification_credit=HANDSHAKE_MAX_FRAME,
    stream_credit=HANDSHAKE_MAX_FRAME,
    max_descriptors=0,
)


class Handshake:
    """One side of the handshake.

    :param role: who begins
    :param codec: name of the codec this side asks for when it counts as the connecting one
    :param codecs: names of all codecs this side speaks
    :param limits: what this side announces
    :param instance: 16 random bytes, new for each session
    :param features: names of what this side can do beyond the rest
    :param token: the shared secret: a listener then asks for a proof, a connecting side insists
        on being asked
    """

    def __init__(
        self,
        role: Role,
        *,
        codec: str,
        codecs: Collection[str],
        limits: Limits,
        instance: bytes,
        features: Sequence[str] = (),
        token: bytes | None = None,
    ) -> None:
        self._role = role
        self._codec = codec
        self._codecs = codecs
        self._limits = limits
        self._features = features
        self._token = token
        self._instance = instance
        self._sent_hello = b""
        self._received_hello = b""
        self._pending: Agreement | None = None
        self.agreement: Agreement | None = None

    def start(self) -> list[bytes]:
        """The envelopes to send before anything came."""
        if self._role is Role.LISTENING:
            return []
        return [self._hello(self._codec)]

    def receive(self, envelope: bytes) -> list[bytes]:
        """Take an envelope; return those to send. Afterwards `agreement` may be set.

        :raises HandshakeRejected: no session can come of this
        :raises AuthenticationError: a proof is missing or wrong
        :raises SessionClosed: the other side gave up, with its reason
        """
        message = _unpack(envelope)
        kind = message[0]
        if kind == HELLO and not self._received_hello:
            return self._receive_hello(envelope, message[1])
        if kind == AUTH and self._pending is not None and self._token is not None:
            return self._receive_proof(message[1])
        if kind == GOODBYE:
            raise _farewell(message)
        raise HandshakeRejected(
            f"the other side sent kind {shown(kind)} before the session stood; "
            "only one hello and authentication may come",
            GoodbyeCode.PROTOCOL_ERROR,
        )

    @property
    def heard(self) -> bool:
        """A hello of the other side came."""
        return bool(self._received_hello)

    def _hello(self, codec: str) -> bytes:
        parameters: dict[str, Any] = {
            "versions": list(VERSIONS),
            "instance": self._instance,
            "codec": codec,
            "features": list(self._features),
            "limits": {
                "max_frame": self._limits.max_frame,
                "max_message": self._limits.max_message,
                "max_requests": self._limits.max_requests,
                "notification_credit": self._limits.notification_credit,
                "stream_credit": self._limits.stream_credit,
            },
        }
        if DESCRIPTORS_FEATURE in self._features:
            parameters["limits"]["max_descriptors"] = self._limits.max_descriptors
        if self._token is not None and self._role is Role.LISTENING:
            parameters["auth"] = [HMAC_SHA256]
        self._sent_hello = msgpack.packb([HELLO, parameters])
        return self._sent_hello

    def _receive_hello(self, envelope: bytes, parameters: dict[str, Any]) -> list[bytes]:
        self._received_hello = envelope
        instance = _field(parameters, "instance", bytes)
        if len(instance) != 16:
            raise HandshakeRejected(
                f"the hello's instance has {len(instance)} bytes instead of 16",
                GoodbyeCode.PROTOCOL_ERROR,
            )
        if instance == self._instance:
            raise HandshakeRejected(
                "the other side echoes what it is sent; it does not speak this protocol",
                GoodbyeCode.PROTOCOL_ERROR,
            )
        version = _common_version(_field(parameters, "versions", list))
        codec = self._settle_codec(_field(parameters, "codec", str), instance)
        features = _field(parameters, "features", list, [])
        self._pending = Agreement(
            version,
            codec,
            _remote_limits(_field(parameters, "limits", dict, {})),
            frozenset(feature for feature in features if isinstance(feature, str)),
        )
        if self._role is Role.LISTENING:
            reply = [self._hello(codec)]
            if self._token is None:
                self.agreement = self._pending
            return reply
        return self._answer_challenge(_field(parameters, "auth", list, []))

    def _settle_codec(self, offered: str, instance: bytes) -> str:
        decides = self._role is Role.CONNECTING or (
            self._role is Role.EITHER and self._instance > instance
        )
        codec = self._codec if decides else offered
        if codec not in self._codecs:
            raise HandshakeRejected(
                f"the other side asks for the codec {codec!r}; "
                f"this side speaks {', '.join(sorted(self._codecs))}",
                GoodbyeCode.UNSUPPORTED,
            )
        if self._role is Role.CONNECTING and offered != codec:
            raise HandshakeRejected(
                f"this side asked for the codec {codec!r}, the other side answered {offered!r}",
                GoodbyeCode.UNSUPPORTED,
            )
        return codec

    def _answer_challenge(self, schemes: list[Any]) -> list[bytes]:
        if not schemes:
            if self._token is not None:
                raise AuthenticationError(
                    "this side has a token, but the other side asks for none; "
                    "it may not be the listener it should be"
                )
            self.agreement = self._pending
            return []
        if self._token is None:
            raise AuthenticationError("the other side asks for a token; give token= to connect")
        if HMAC_SHA256 not in schemes:
            raise AuthenticationError(
                f"the other side asks for {', '.join(map(shown, schemes[:4]))}; "
                f"this side can do {HMAC_SHA256}"
            )
        return [self._proof_message(Role.CONNECTING)]

    def _receive_proof(self, proof: bytes) -> list[bytes]:
        prover = Role.CONNECTING if self._role is Role.LISTENING else Role.LISTENING
        assert self._token is not None
        if not authentication.is_proof(proof, self._token, prover.value, *self._hellos()):
            raise AuthenticationError("the other side does not know the token")
        self.agreement = self._pending
        return [self._proof_message(Role.LISTENING)] if self._role is Role.LISTENING else []

    def _proof_message(self, prover: Role) -> bytes:
        assert self._token is not None
        proof = authentication.make_proof(self._token, prover.value, *self._hellos())
        packed: bytes = msgpack.packb([AUTH, proof])
        return packed

    def _hellos(self) -> tuple[bytes, bytes]:
        """Both hellos, that of the connecting side first."""
        if self._role is Role.LISTENING:
            return self._received_hello, self._sent_hello
        return self._sent_hello, self._received_hello


def encode_goodbye(code: GoodbyeCode, reason: str) -> bytes:
    """A goodbye to somebody with whom no codec has been settled."""
    packed: bytes = msgpack.packb([GOODBYE, 0, int(code), reason])
    return packed


def _unpack(envelope: bytes) -> list[Any]:
    """The message in an envelope of the handshake: always MessagePack, and never a batch.

    Extension values in it are left as they are: no code of any class runs for a stranger.
    """
    try:
        check_lengths(envelope)
        message = msgpack.unpackb(envelope, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _no_hello(envelope) from error
    if type(message) is not list or not message or type(message[0]) is not int:
        raise _no_hello(envelope)
    if message[0] in (HELLO, AUTH, GOODBYE):
        check_fields(message)
    return message


def _no_hello(envelope: bytes) -> HandshakeRejected:
    return HandshakeRejected(
        f"the other side sent something else than a hello: {shown(envelope)}",
        GoodbyeCode.PROTOCOL_ERROR,
    )


def _field(parameters: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = parameters.get(name, default)
    if not isinstance(value, kind):
        raise HandshakeRejected(
            f"the hello's {name} should be {kind.__name__}, not {shown(value)}",
            GoodbyeCode.PROTOCOL_ERROR,
        )
    return value


def _common_version(versions: list[Any]) -> int:
    if len(versions) != 2 or not all(version.__class__ is int for version in versions):
        raise HandshakeRejected(
            f"the hello's versions should be [lowest, highest], not {shown(versions)}",
            GoodbyeCode.PROTOCOL_ERROR,
        )
    lowest, highest = versions
    version = min(highest, VERSIONS[1])
    if version < max(lowest, VERSIONS[0]):
        raise HandshakeRejected(
            f"the other side speaks versions {lowest} to {highest} of the protocol, "
            f"this side {VERSIONS[0]} to {VERSIONS[1]}",
            GoodbyeCode.UNSUPPORTED,
        )
    return int(version)


def _remote_limits(limits: dict[str, Any]) -> RemoteLimits:
    values = {}
    for name in RemoteLimits._fields:
        smallest = getattr(SMALLEST_LIMITS, name)
        value = limits.get(name, smallest)
        if value.__class__ is not int or value < smallest:
            raise HandshakeRejected(
                f"the hello's limit {name} should be an integer from {smallest}, "
                f"not {shown(value)}",
                GoodbyeCode.PROTOCOL_ERROR,
            )
        values[name] = value
    return RemoteLimits(**values)


def _farewell(message: list[Any]) -> IPCError:
    reason = f"the other side refused the session: {message[3]}"
    if message[2] == GoodbyeCode.AUTHENTICATION:
        return AuthenticationError(reason)
    if message[2] in (GoodbyeCode.NORMAL, GoodbyeCode.OVERLOADED):
        return SessionClosed(reason)
    return RemoteProtocolError(reason)
