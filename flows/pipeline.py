"""What a run of the chain can be told: one options group per stage, and where it runs."""

import difflib
import os
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from infra import local_s3
from tasks.artifacts import Artifact, import_external, store_at
from tasks.certify.config import CertifyConfig
from tasks.config import Config
from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.names import judge_names, possible_figures
from tasks.export.config import ExportConfig
from tasks.gate import GateConfig, check_figures
from tasks.merge_lora.config import MergeLoraConfig
from tasks.ppo.config import PPOConfig
from tasks.prepare_data.config import PrepareDataConfig
from tasks.program import explain
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.reward_model.config import RewardModelConfig
from tasks.runner import PROJECT, Workplace
from tasks.sft.config import SFTConfig

WORK_VARIABLE = "ALIGNMENT_WORK_DIR"
Replaceable = Literal["prepare_data", "sft", "reward_model", "second_reward_model", "ppo"]


class Pipeline(Config):
    """The chain's options. A stage's group holds what its program takes; see each field."""

    model: str | None = None
    """Where SFT starts: a hub name (`org/name` or `org/name@revision`), a folder, or an artifact's URI; none if
    sft.from_scratch describes a new model."""
    prepare_data: PrepareDataConfig
    """Where the records come from."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning."""
    reward_model: RewardModelConfig | None = RewardModelConfig()
    """Reward-model training; none: there is none, and ppo.rewards name other sources of the score."""
    second_reward_model: RewardModelConfig | None = None
    """A second one that PPO does not follow: it judges the result, and is the guard's second signal where ppo.rewards
    name it with the weight 0. Give one half: first and the other half: second. None = there is none."""
    certify: CertifyConfig | None = CertifyConfig()
    """What a reward model has to prove before PPO starts; None = nothing."""
    ppo: PPOConfig = PPOConfig()
    """PPO."""
    remove_value_head: RemoveValueHeadConfig = RemoveValueHeadConfig()
    """Taking the policy out of what PPO saved."""
    merge_lora: MergeLoraConfig = MergeLoraConfig()
    """Adding an adapter to its base."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """PPO against SFT and the champion on held-out prompts."""
    gate: GateConfig = GateConfig()
    """What a model has to prove in the evaluation before it is exported and becomes the champion."""
    export: ExportConfig = ExportConfig()
    """What users get."""
    existing: dict[Replaceable, str] = Field(default_factory=dict)
    """Stages that are not run, and what stands in their place: hub name, folder or artifact's URI. For ppo also a
    checkpoint of TRL 0.x or LLaMA-Factory with its value head; see docs/checkpoints.md."""
    store: str | None = None
    """s3://bucket/prefix or file:///folder for artifacts; none: $ALIGNMENT_STORE, else the local S3."""
    accelerate_config: str = "infra/accelerate/cpu.yaml"
    """File that says how many processes and devices the training stages use; relative to the project."""

    @model_validator(mode="after")
    def _score_has_a_source(self) -> "Pipeline":
        trained = self.reward_model is not None or "reward_model" in self.existing
        if not trained and self.ppo.uses_reward_model:
            raise ValueError(
                "ppo.rewards asks for the chain's reward model, but neither reward_model nor existing.reward_model is "
                "given. Set one of them, or other ppo.rewards (a function, a service, a model of its own)."
            )
        return self

    @model_validator(mode="after")
    def _second_reward_model_is_another_one(self) -> "Pipeline":
        trained = self.second_reward_model is not None or "second_reward_model" in self.existing
        if not trained and self.ppo.uses_second_reward_model:
            raise ValueError(
                "ppo.rewards name second_reward_model, but neither second_reward_model nor "
                "existing.second_reward_model is given. Set one of them."
            )
        if self.second_reward_model is not None and self.second_reward_model == self.reward_model:
            raise ValueError(
                "second_reward_model has the options of reward_model, so it would be the same model. Set "
                "reward_model.half: first and second_reward_model.half: second."
            )
        return self

    @model_validator(mode="after")
    def _evaluation_has_a_judge(self) -> "Pipeline":
        if self.reward_model is None and "reward_model" not in self.existing and not self.evaluate.metrics:
            raise ValueError(
                "Nothing would judge the answers at the end: there is no reward model and no evaluate.metrics. "
                "Name a function in evaluate.metrics, such as the one in ppo.rewards."
            )
        return self

    @model_validator(mode="after")
    def _gate_names_figures_that_there_will_be(self) -> "Pipeline":
        metrics, llm = self.evaluate.metrics, self.evaluate.llm_judge
        has_reward_model = self.reward_model is not None or "reward_model" in self.existing
        judges = judge_names(metrics, has_reward_model, has_second_reward_model=True)
        check_figures(
            self.gate,
            metrics,
            possible_figures(judges, None if llm is None else llm.name, self.evaluate.harness is not None),
        )
        return self

    @model_validator(mode="after")
    def _export_has_its_adapter(self) -> "Pipeline":
        if self.export.adapter is not None and not self.ppo.has_adapters and "ppo" not in self.existing:
            raise ValueError(
                "export.adapter asks for the adapter alone, but PPO trains none. Set ppo.tuning lora, or leave "
                "export.adapter out."
            )
        return self

    @model_validator(mode="after")
    def _sft_has_a_start(self) -> "Pipeline":
        if self.model is None and self.sft.from_scratch is None and "sft" not in self.existing:
            raise ValueError("SFT has nothing to start from: set model, or sft.from_scratch, or existing.sft.")
        return self

    def overridden(self, overrides: Mapping[str, Any], seed: int | None = None, model: str | None = None) -> "Pipeline":
        """This pipeline with single options replaced, e.g. {"ppo.kl_coef": 0.1}, and with every seed replaced.

        Raises InputError for a name that is no option, with the nearest names, or a value that is refused.
        """
        options = self.model_dump()
        for name, value in overrides.items():
            _replace(options, name, value)
        if seed is not None:
            _replace_seeds(options, seed)
        if model is not None:
            options["model"] = model
        try:
            return Pipeline.model_validate(options)
        except ValidationError as error:
            raise InputError(f"The pipeline's options are refused:\n{explain(error)}") from error

    def workplace(self) -> Workplace:
        """The store and folders that this run uses; raises InputError where they cannot be used."""
        uri = self.store or os.environ.get(local_s3.STORE_VARIABLE) or local_s3.use_if_running()
        if not uri:
            raise InputError(
                f"No store for the artifacts. Set {local_s3.STORE_VARIABLE}, or the pipeline's store, to "
                "s3://bucket/prefix or file:///folder, or start the local S3 server with `make s3`."
            )
        accelerate_config = PROJECT / self.accelerate_config
        if not accelerate_config.is_file():
            raise InputError(
                f"accelerate_config: {accelerate_config} does not exist. Name a file of infra/accelerate/."
            )
        folder = Path(os.environ.get(WORK_VARIABLE, PROJECT / ".local" / "work")).absolute()
        return Workplace(store_at(uri), folder, accelerate_config)

    def existing_artifacts(self) -> dict[str, Artifact]:
        """The artifact that stands in for each stage named in `existing`, and for `model`."""
        sources = {str(stage): source for stage, source in self.existing.items()}
        if self.model is not None:
            sources["model"] = self.model
        return {name: import_external(source) for name, source in sources.items()}


def _replace(options: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    try:
        group = reduce(lambda inner, key: inner[key], groups, options)
        group[last]
    except (KeyError, TypeError):
        near = difflib.get_close_matches(name, _names(options), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"overrides: '{name}' is no option of the pipeline.{hint}") from None
    group[last] = value


def _replace_seeds(options: Any, seed: int) -> None:
    """Every option named seed, those of generators of records included."""
    if isinstance(options, dict) and "seed" in options:
        options["seed"] = seed
    inner = options.values() if isinstance(options, dict) else options if isinstance(options, list) else ()
    for value in inner:
        _replace_seeds(value, seed)


def _names(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in options.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _names(value, f"{prefix}{key}.")
    return names
