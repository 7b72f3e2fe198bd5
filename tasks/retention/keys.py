"""The keys of stages' work, as names in a store and addresses spell them."""

import re
from dataclasses import dataclass

_IN_TEXT = re.compile(r"artifacts/(\w+)/([0-9a-f]{32})(?![0-9a-f])")
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
KEYED = ("artifacts", "checkpoints", "logs")


@dataclass(frozen=True, order=True)
class Key:
    """What a stage makes of one config, its inputs and its code: KEYED/<stage>/<key>/ hold all that it leaves."""

    stage: str
    key: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"


def key_of(name: str) -> Key | None:
    """Whose work the stored file of that name belongs to; None if it is no stage's."""
    top, *rest = name.split("/")
    return Key(rest[0], rest[1]) if top in KEYED and len(rest) > 2 else None


def keys_in(text: str) -> set[Key]:
    """The key of every artifact whose address stands in `text`, in whatever store that is."""
    return {Key(stage, key) for stage, key in _IN_TEXT.findall(text.replace("\\/", "/"))}


def digests_in(text: str) -> set[str]:
    """Everything in `text` that has the form of an artifact's digest."""
    return set(_DIGEST.findall(text))
