"""From the input folders to a run; whatever can be refused is refused before the models are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.model_files import CONFIG, read_json, require_kind
from tasks.modeling import load_tokenizer, stop_token_ids
from tasks.ppo.config import PPOConfig
from tasks.ppo.memory import check_memory
from tasks.ppo.metrics import Clock
from tasks.ppo.models import load_models
from tasks.ppo.rollout import Run
from tasks.processes import Processes
from tasks.program import require
from tasks.prompts import Prompt, read_prompts
from tasks.rewards import load_reward_function


@dataclass(frozen=True)
class Prompts:
    """What is answered to learn from, and what to see how far the policy has come."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]


def set_up(config: PPOConfig, inputs: Mapping[str, Path]) -> tuple[Run, Prompts]:
    """The run and its prompts; raises InputError for what does not fit together."""
    processes = Processes()
    check_batch(config, processes.count)
    reward = _reward_folder(config, inputs)
    reward_function = None if config.reward_function is None else load_reward_function(config.reward_function)
    policy = inputs["policy"]
    require_kind(policy, "model")
    tokenizer = load_tokenizer(policy)
    if reward is not None:
        _check_reward_model(reward, tokenizer)
    prompts = _read_prompts(config, inputs["data"], tokenizer, context_length(policy))
    longest = max(len(prompt.ids) for prompt in [*prompts.train, *prompts.held_out])
    check_memory(config, policy, reward, longest + config.sampling.response_length, processes)
    models = load_models(config, policy, reward, processes.device)
    run = Run(
        config=config,
        processes=processes,
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(models.language_model, tokenizer),
        models=models,
        reward_function=reward_function,
        clock=Clock(),
    )
    return run, prompts


def check_batch(config: PPOConfig, num_processes: int) -> None:
    """Raise InputError unless each process gets the same number of episodes of each mini-batch."""
    parts = config.num_mini_batches * num_processes
    if config.batch_size % parts:
        raise InputError(
            f"batch_size {config.batch_size} is not divisible by num_mini_batches {config.num_mini_batches} x "
            f"processes {num_processes} = {parts}. Set batch_size to a multiple of {parts}."
        )


def context_length(policy: Path) -> int | None:
    """The most tokens that the model in `policy` can attend to, prompt and response together; None: no limit."""
    config = read_json(policy / CONFIG)
    return config.get("max_position_embeddings") or config.get("n_positions")


def _read_prompts(config: PPOConfig, data: Path, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Prompts:
    length = config.sampling.response_length
    if context is not None and length >= context:
        raise InputError(
            f"sampling.response_length {length} leaves no room for a prompt in the model's context of {context} "
            "tokens. Lower it."
        )
    longest = None if context is None else context - length
    train, held_out = (read_prompts(data, split, tokenizer, longest) for split in ("train", "test"))
    return Prompts(train, held_out[: config.num_eval_prompts])


def _reward_folder(config: PPOConfig, inputs: Mapping[str, Path]) -> Path | None:
    """The reward model's folder, or None where a function scores."""
    require(inputs, "data", "policy")
    if config.reward_function is None:
        require(inputs, "reward_model")
        return inputs["reward_model"]
    if "reward_model" in inputs:
        raise InputError(
            f"Both --input reward_model and reward_function {config.reward_function!r} are given. Leave out one: "
            "a single source scores the responses."
        )
    return None


def _check_reward_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless `folder` is a reward model that reads the policy's tokens as the policy does."""
    require_kind(folder, "reward_model", "reward_adapter")
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"{folder}: the reward model has another tokenizer than the policy, so it cannot read its tokens. "
            "Train the reward model from the policy's model."
        )
