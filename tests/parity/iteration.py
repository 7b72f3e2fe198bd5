"""An iteration of our trainer on what TRL's policy answered: the same weights, prompts, responses and settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from tasks.generation import Responses
from tasks.models.modeling import save_model
from tasks.ppo.config import PPOConfig
from tasks.ppo.rollout import Rollout, Run, roll_out
from tasks.ppo.setup import set_up
from tests.parity.recorded import Recorded, classifier, language_model
from tests.parity.tiny_models import make_tokenizer

SAME_NAMES = (
    "num_ppo_epochs",
    "num_mini_batches",
    "total_episodes",
    "kl_coef",
    "kl_estimator",
    "whiten_rewards",
    "missing_eos_penalty",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "learning_rate",
)
OTHERS = {
    "tuning": "full",
    "lr_schedule": "constant",  # theirs falls once an iteration, and a recorded run has one
    "warmup_ratio": 0.0,
    "max_grad_norm": 1e9,  # theirs is not applied
    "old_logprobs": "forward",  # ours, to be compared with theirs
}


def config_of(run: Recorded, **options: Any) -> PPOConfig:
    """TRL's settings in our words."""
    settings = run.settings
    sizes = {
        "batch_size": len(run.prompts),
        "value_learning_rate": settings["learning_rate"],
        "sampling": {"response_length": settings["response_length"], "temperature": settings["temperature"]},
    }
    return PPOConfig.model_validate({name: settings[name] for name in SAME_NAMES} | OTHERS | sizes | options)


def rolled_out(run: Recorded, folder: Path, **options: Any) -> tuple[Run, Rollout]:
    """Our rollout with TRL's responses in place of generated ones."""
    ours, prompts = set_up(config_of(run, **options), write_inputs(run, folder), folder)
    responses = Responses(run["postprocessed_responses"], run.mask, run["logprobs"] * run.mask, run.ended)
    ours = replace(ours, engine=lambda *_: responses)
    rollout = roll_out(ours, prompts.train, "rollout", 0)
    assert rollout.episodes.prompt_lengths.tolist() == [len(prompt) for prompt in run.prompts]
    return ours, rollout


def write_inputs(run: Recorded, root: Path) -> dict[str, Path]:
    """The folders that our PPO reads: TRL's models before training, and the prompts as text."""
    tokenizer = make_tokenizer()
    inputs = {name: root / name for name in ("policy", "reference", "start_value", "reward_model", "data")}
    for name in ("policy", "reference"):
        save_model(inputs[name], language_model(name), tokenizer)
    for name, part in (("start_value", "value"), ("reward_model", "reward")):
        classifier(part).save_pretrained(inputs[name])
        tokenizer.save_pretrained(inputs[name])
    inputs["data"].mkdir()
    for split in ("train", "test"):
        texts = [tokenizer.decode(prompt) for prompt in run.prompts]
        Dataset.from_dict({"prompt": texts}).to_parquet(inputs["data"] / f"prompts_{split}.parquet")
    return inputs
