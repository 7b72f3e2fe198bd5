"""The champion: the export of a pipeline that went out last, and the pointer to it in the store.

    champions/<pipeline>.json     the champion, and those before it

The pointer moves from the champion that a run compared itself with to the run's own export, and from no other: under a
lock, and by a conditional write where the server heeds one. So of two runs at once the first to move it wins; the other
has to prove itself against the winner.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Literal

from pydantic import Field, ValidationError

from tasks.artifacts import Artifact
from tasks.config import Config
from tasks.errors import InputError
from tasks.program import explain
from tasks.storage.store_lock import locked
from tasks.storage.stores import Store

LONGEST_HISTORY = 10


class Champion(Config):
    """An export that was, or is, the champion."""

    uri: str
    digest: str = Field(description="the export's")
    model: str = Field(description="digest of the model that was exported: the same, whatever its card says")
    run: str = Field(description="the run that made it")
    since: str = Field(description="when it became the champion, UTC")
    figures: dict[str, float] = Field(description="of its evaluation")

    def artifact(self) -> Artifact:
        """The export, as a stage takes it; whether it is still there shows when it is fetched."""
        return Artifact(uri=self.uri, kind="export", digest=self.digest)


class Pointer(Champion):
    """What is stored: the champion, and at most ten champions before it, the last one first."""

    format: Literal[1] = 1
    pipeline: str
    history: list[Champion]


class ChampionChanged(Exception):
    """Another run moved the pointer since this run chose the champion that it compared itself with."""


def pointer_name(pipeline: str) -> str:
    """Where in a store the pointer of `pipeline` lies; raises InputError for a name that cannot stand in an address."""
    if not re.fullmatch(r"[\w][\w. -]*", pipeline, flags=re.ASCII):
        raise InputError(
            f"The pipeline's name is {pipeline!r}, expected letters, digits, '_', '-', '.' and spaces: it names the "
            "champion's pointer in the store. Rename the entry."
        )
    return f"champions/{pipeline}.json"


def read_pointer(store: Store, pipeline: str) -> Pointer | None:
    """The pipeline's pointer, or None where nothing went out yet; raises InputError for one that cannot be read."""
    name = pointer_name(pipeline)
    return _parse(store.read(name), f"{store.uri}/{name}")


def rival_of(pointer: Pointer | None, model: Artifact) -> Champion | None:
    """Whom `model` has to beat: the champion, or the one before if `model` itself was exported as the champion.

    So a run that is repeated compares itself as it did the first time, and finds its evaluation done.
    """
    if pointer is None or pointer.model != model.digest:
        return pointer
    return pointer.history[0] if pointer.history else None


def move(
    store: Store,
    pipeline: str,
    *,
    export: Artifact,
    model: Artifact,
    rival: Champion | None,
    run: str,
    figures: Mapping[str, Any],
) -> bool:
    """Make `export` the champion in the place of `rival`; False if it was the champion already.

    A new export of the champion's own model, with another card for one, takes its place without a change of champions.
    Raises ChampionChanged if the champion is neither `rival` nor of the same model.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    proof = {"model": model.digest, "run": run, "since": now, "figures": numbers_in(figures)}
    champion = Champion(uri=export.uri, digest=export.digest, **proof)
    with locked(store, pointer_name(pipeline), run) as lease:
        stored = store.read(pointer_name(pipeline))
        before = _parse(stored, f"{store.uri}/{pointer_name(pipeline)}")
        pointer = succeed(before, champion, rival, pipeline)
        if pointer == before:
            return False
        lease.require()
        if not store.replace(pointer_name(pipeline), pointer.model_dump_json(indent=1).encode(), stored):
            raise ChampionChanged("another champion was written while this run's was")
    return True


def numbers_in(report: Mapping[str, Any]) -> dict[str, float]:
    """The report's figures that are finite numbers, by name."""
    return {name: value for name, value in report.items() if isinstance(value, int | float) and isfinite(value)}


def succeed(before: Pointer | None, champion: Champion, rival: Champion | None, pipeline: str) -> Pointer:
    """The pointer after `champion` proved itself against `rival`, `before` being the pointer that is there now.

    Every decision about the pointer is made here.
    """
    if before is not None and before.model == champion.model:
        if before.digest == champion.digest:
            return before
        renewed = champion.model_dump() | {"since": before.since}
        return Pointer(**renewed, pipeline=pipeline, history=before.history)
    if (before and before.digest) != (rival and rival.digest):
        raise ChampionChanged(
            f"{_named(rival)} was the champion that this run compared itself with; now it is {_named(before)}"
        )
    history = [] if before is None else [_entry(before), *before.history][:LONGEST_HISTORY]
    return Pointer(**champion.model_dump(), pipeline=pipeline, history=history)


def _parse(data: bytes | None, place: str) -> Pointer | None:
    if data is None:
        return None
    try:
        return Pointer.model_validate(json.loads(data))
    except ValidationError as error:
        raise InputError(f"{place} is no pointer to a champion:\n{explain(error)}\n{_remedy()}") from error
    except ValueError as error:
        raise InputError(f"{place} is no pointer to a champion ({error}). {_remedy()}") from error


def _entry(pointer: Pointer) -> Champion:
    return Champion(**{name: getattr(pointer, name) for name in Champion.model_fields})


def _named(champion: Champion | None) -> str:
    return "nobody" if champion is None else f"{champion.uri} of run {champion.run}"


def _remedy() -> str:
    return "Mend it, or delete it: then the pipeline has no champion, and the next model needs to beat none."
