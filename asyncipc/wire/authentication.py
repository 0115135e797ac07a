"""The proof that a side knows the token, which itself never crosses the wire.

HMAC-SHA-256, keyed by the token, over a label with the prover's role and the SHA-256 of both
hellos as they were sent. The role keeps a proof from being reflected; the random instances in the
hellos make each proof good for one session.

Layer 1. Above: the handshake. Does no I/O.
"""

import hashlib
import hmac

__all__ = ["is_proof", "make_proof"]


def make_proof(token: bytes, role: str, connecting_hello: bytes, listening_hello: bytes) -> bytes:
    """The proof of the side that plays ``role`` (``"connecting"`` or ``"listening"``).

    :param connecting_hello: the envelope of the connecting side's hello, as it was sent
    :param listening_hello: the envelope of the listening side's
    """
    text = b"asyncipc %b " % role.encode()
    text += hashlib.sha256(connecting_hello).digest() + hashlib.sha256(listening_hello).digest()
    return hmac.digest(token, text, "sha256")


def is_proof(
    proof: bytes, token: bytes, role: str, connecting_hello: bytes, listening_hello: bytes
) -> bool:
    """Whether a proof is right; takes the same time whatever is wrong with it."""
    expected = make_proof(token, role, connecting_hello, listening_hello)
    return hmac.compare_digest(proof, expected)
