"""From the input folders to a run; whatever can be refused is refused before the models are loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tasks.actor_critic.loading import check_models, load_models
from tasks.callables import load_callable
from tasks.engines.loading import load_engine
from tasks.engines.vllm import check_server
from tasks.errors import InputError
from tasks.language_data import read_language_data
from tasks.models.model_files import context_length, hidden_size, require_kind
from tasks.models.modeling import load_tokenizer
from tasks.ppo.config import PPOConfig
from tasks.ppo.memory import check_memory
from tasks.ppo.rollout import Run
from tasks.processes import Processes
from tasks.program import require
from tasks.prompts import Prompt, check_proportions, longest_prompt, read_prompts
from tasks.rewards.sources import check_prompts, check_rewards, load_rewards
from tasks.trackers import check_trackers
from tasks.tracking import Clock

TRACKERS = "trackers"
GPU_TOKENS, CPU_TOKENS, CPU_TOKENS_OF_NARROW_MODELS = 8192, 512, 1024
NARROW = 256  # a hidden size below it


@dataclass(frozen=True)
class Prompts:
    """What is answered to learn from, and what to see how far the policy has come."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]


def set_up(config: PPOConfig, inputs: Mapping[str, Path], output: Path) -> tuple[Run, Prompts]:
    """The run and its prompts; raises InputError for what does not fit together."""
    check_trackers(config.trackers)
    processes = Processes(config.trackers, output / TRACKERS)
    check_batch(config, processes.count)
    tokenizer = _check_inputs(config, inputs)
    context = context_length(inputs["policy"])
    prompts = _read_prompts(config, inputs["data"], tokenizer, context)
    check_prompts(config.rewards, inputs, tokenizer, [*prompts.train, *prompts.held_out], config.conversation_template)
    template = config.conversation_template
    ptx = read_language_data(inputs["data"], tokenizer, context, template) if config.ptx_coef else None
    longest = max(len(prompt.ids) for prompt in [*prompts.train, *prompts.held_out])
    longest += config.sampling.response_length
    if config.rollout_engine == "vllm":
        check_server(config.vllm, prompts.train[0].ids, longest, str(inputs["policy"]), config.lora.r)
    token_budget = config.micro_batch_tokens or token_budget_for(inputs["policy"], processes.device)
    check_memory(config, inputs, longest, token_budget, processes)
    models = load_models(config, inputs, processes.device, config.seed)
    rewards = load_rewards(
        config.rewards,
        inputs,
        tokenizer,
        device=processes.device,
        dtype=config.dtype,
        micro_batch_tokens=token_budget,
        log_folder=output,
        rank=processes.rank,
        shared_model=None if models.reward_model is None else models.reward,
        template=config.conversation_template,
        refuse_not_finite=config.guard is None,
    )
    run = Run(
        config=config,
        processes=processes,
        tokenizer=tokenizer,
        engine=load_engine(config, config.conversation_template, models, tokenizer, processes),
        models=models,
        rewards=rewards,
        ptx=ptx,
        token_budget=token_budget,
        clock=Clock(),
    )
    return run, prompts


def token_budget_for(policy: Path, device: torch.device) -> int:
    """Tokens of one forward and backward where the config names none: on a CPU what its caches hold activations of."""
    if device.type != "cpu":
        return GPU_TOKENS
    return CPU_TOKENS_OF_NARROW_MODELS if hidden_size(policy) < NARROW else CPU_TOKENS


def load_callbacks(config: PPOConfig) -> list[Callable[..., bool | None]]:
    """The config's callbacks; raises InputError for one that is not there."""
    return [load_callable(path, "callbacks") for path in config.callbacks]


def check_batch(config: PPOConfig, num_processes: int) -> None:
    """Raise InputError unless each process gets the same number of episodes of each mini-batch."""
    parts = config.num_mini_batches * num_processes
    if config.batch_size % parts:
        raise InputError(
            f"batch_size {config.batch_size} is not divisible by num_mini_batches {config.num_mini_batches} x "
            f"processes {num_processes} = {parts}. Set batch_size to a multiple of {parts}."
        )


def _check_inputs(config: PPOConfig, inputs: Mapping[str, Path]) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, after each folder was found to be of the kind that it is needed for."""
    require(inputs, "data", "policy", *config.sources())
    require_kind(inputs["policy"], "model")
    tokenizer = load_tokenizer(inputs["policy"])
    if config.conversation_template is not None:
        config.conversation_template.apply_to(tokenizer)
    check_rewards(config.rewards, inputs, tokenizer)
    check_models(config, inputs, tokenizer)
    names = {"eval_score", "eval_kl", "eval_response_length", "eval_ended", "eval_entropy"}
    names |= {f"eval_score_{reward.name}" for reward in config.rewards}
    if config.best_metric.removeprefix("-") not in names:
        raise InputError(f"best_metric {config.best_metric!r}: expected one of {', '.join(sorted(names))}.")
    return tokenizer


def _read_prompts(config: PPOConfig, data: Path, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Prompts:
    longest = longest_prompt(context, config.sampling.response_length, config.max_prompt_length)
    train, held_out = (
        read_prompts(data, split, tokenizer, longest, config.conversation_template) for split in ("train", "test")
    )
    check_proportions(train, config.prompt_proportions)
    return Prompts(train, held_out[: config.num_eval_prompts])
