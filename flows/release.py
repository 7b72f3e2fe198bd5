"""The end of the chain: prove that a model is good enough, export it, and make it the champion."""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.pipeline import Pipeline
from flows.recording import pipeline_name
from tasks import release, stages
from tasks.artifacts import Artifact
from tasks.champion import Champion, read_pointer, rival_of
from tasks.rules import Verdict
from tasks.runner import Workplace

MOST_ROUNDS = 3


@dataclass(frozen=True)
class Release:
    """A model that went out."""

    evaluation: Artifact
    verdicts: list[Verdict]
    export: Artifact
    rival: Champion | None  # the champion that it was compared with


def release_model(
    options: Pipeline,
    place: Workplace,
    *,
    data: Artifact,
    model: Artifact,
    sft: Artifact,
    base: Artifact | None,
    parents: Mapping[str, Artifact | None],
) -> Release:
    """Evaluate `model` against `sft` and the champion, pass the gate, export, and move the champion's pointer.

    Where another run's model became the champion meanwhile, this one has to prove itself against that. Raises
    FailedByGate if it cannot, RuntimeError if the champion changes again and again.
    """
    for _ in range(MOST_ROUNDS):
        pointer = read_pointer(place.store, pipeline_name())
        rival = rival_of(pointer, model)
        champion = None if rival is None else rival.artifact()
        judges = {name: parents.get(name) for name in ("reward_model", "second_reward_model")}
        evaluation = stages.evaluate(
            options.evaluate, data, sft, model, {"base": base, "champion": champion, **judges}, place
        )
        verdicts = release.gate(options.gate, list(options.evaluate.metrics), evaluation, pointer, place)
        export = stages.export(options.export, model, evaluation, {**parents, "base": base}, place)
        if release.crown(pipeline_name(), export, model, rival, evaluation, place):
            return Release(evaluation, verdicts, export, rival)
    raise RuntimeError(
        f"The champion of {pipeline_name()} changed {MOST_ROUNDS} times while this run compared itself with it. "
        "Run it again: only the evaluation is left to do."
    )
