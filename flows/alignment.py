"""The flow `alignment`: from data to a verified export, each stage a process of its own."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import State

from flows.pipeline import Pipeline
from flows.recording import pipeline_name, recorded
from flows.release import release_model
from flows.scoring import reward_models
from flows.summary import Summary, summarise
from tasks import stages
from tasks.certification import FailedByCertificate
from tasks.champion import pointer_name
from tasks.release import FailedByGate
from tasks.runner import Workplace


@flow(name="alignment", description="SFT, reward model and PPO, then value-head removal, merge, evaluation and export.")
def alignment(
    pipeline: Pipeline,
    model: str | None = None,
    seed: int | None = None,
    overrides: dict[str, Any] | None = None,
) -> Summary | State[Any]:
    """Run the chain; what is already in the store is not computed again.

    A reward model that its certificate refuses fails the run, and so does a model that the gate refuses.

    Args:
        pipeline: The options of every stage.
        model: Another base model than the pipeline's.
        seed: The seed of every stage.
        overrides: Single options of the pipeline, such as {"ppo.kl_coef": 0.1}.
    """
    options = pipeline.overridden(overrides or {}, seed, model)
    pointer_name(pipeline_name())  # raises InputError for one that cannot stand there, before any work
    told = {"model": model, "seed": seed, **(overrides or {})}
    try:
        with recorded(options.workplace(), told, options.model_dump(mode="json")) as place:
            return run_chain(options, place)
    except (FailedByCertificate, FailedByGate) as refusal:
        return refusal.state()


def run_chain(options: Pipeline, place: Workplace) -> Summary:
    """Every stage of the chain, and what came of it.

    Raises FailedByCertificate before PPO if the reward model is refused, and FailedByGate before the export if the
    model is.
    """
    existing = options.existing_artifacts()

    base = existing.get("model")
    data = existing.get("prepare_data") or stages.prepare_data(options.prepare_data, place)
    sft = existing.get("sft") or stages.sft(options.sft, data, base, place)
    start = sft if sft.kind != "adapter" else stages.merge_lora(options.merge_lora, sft, base, data, place)
    scoring = reward_models(options, place, existing, data=data, sft=start).by_name()
    ppo = existing.get("ppo") or stages.ppo(options.ppo, data, start, scoring, place)
    policy = stages.remove_value_head(options.remove_value_head, ppo, start, data, place)
    tuned = policy if policy.kind != "adapter" else stages.merge_lora(options.merge_lora, policy, start, data, place)
    parents = {"data": data, "sft": sft, **scoring, "ppo": ppo}
    alone = {"adapter": policy, "adapter_base": start} if options.export.adapter is not None else {}
    release = release_model(options, place, data=data, model=tuned, sft=start, base=base, parents=parents | alone)

    made = {**parents, "evaluate": release.evaluation, "export": release.export}
    summary = summarise(made, release.verdicts, release.rival, place)
    description = f"Export: `{release.export.uri}`"
    create_markdown_artifact(summary.as_markdown(), key="alignment-summary", description=description)
    return summary
