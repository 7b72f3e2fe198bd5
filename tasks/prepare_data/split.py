"""Which prompts are held out: a property of the prompt's text alone."""

import hashlib
from typing import Literal

Side = Literal["train", "test"]
SIDES: tuple[Side, Side] = ("train", "test")


def side_of(prompt: str, test_share: float, salt: str) -> Side:
    """'test' for a share `test_share` of all texts, chosen by a hash: stable over runs, machines and other records."""
    digest = hashlib.sha256(f"{salt}\n{prompt}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_share * 2**64 else "train"


def fingerprint(text: str) -> bytes:
    """16 bytes that tell texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
