"""4. Seal and open over bare AES-256-GCM-SIV: the same plaintext, a nonce of the same size, the same associated data."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from harness import Effort, Figure, alternate, calls

from tokenkeeper import Keyring, Secret
from tokenkeeper.crypto import Context, generate_key

NUMBER = 100


def run(effort: Effort) -> list[Figure]:
    """Measure both directions."""
    ring = Keyring.parse(generate_key("2026-11"))
    cipher = AESGCMSIV(os.urandom(32))
    text = "x" * 1000
    secret, plaintext = Secret(text), text.encode()
    place = ("tokenkeeper_grant", "access_token", "0" * 32, "acme", "ann", 7)
    associated_data = Context(*place).associated_data
    sealed, nonce = ring.seal(secret, Context(*place)), os.urandom(12)
    encrypted = cipher.encrypt(nonce, plaintext, associated_data)
    blocks = {
        "seal": calls(lambda: ring.seal(secret, Context(*place))),
        "bare encrypt": calls(lambda: cipher.encrypt(os.urandom(12), plaintext, associated_data)),
        "open": calls(lambda: ring.open(sealed, Context(*place))),
        "bare decrypt": calls(lambda: cipher.decrypt(nonce, encrypted, associated_data)),
    }
    times = alternate(blocks, rounds=effort.of(301, 101), number=NUMBER)
    return [
        Figure(
            f"{ours} / {theirs}, 1 000 characters",
            times.ratio(ours, theirs),
            "x",
            note=f"adds {times.added(ours, theirs):.1f} µs to {times.median(theirs):.1f}",
        )
        for ours, theirs in (("seal", "bare encrypt"), ("open", "bare decrypt"))
    ]
