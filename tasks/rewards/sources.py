"""What scores a batch of answers: one or several sources, each reported by itself, and their weighted sum.

Shapes: B episodes, T tokens of the longest row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.episodes import Episodes
from tasks.errors import InputError
from tasks.models.model_files import kind_of, require_kind
from tasks.models.modeling import ScalarModel, load_reward_model, load_tokenizer, reads_same_tokens
from tasks.program import explain, require
from tasks.prompts import Prompt
from tasks.rewards.api import Message, Service, check_service, load_service
from tasks.rewards.config import OWN_MODEL, ApiReward, FunctionReward, ModelReward, RewardConfig
from tasks.rewards.functions import RewardFunction, check_call, function_scores, load_reward_function
from tasks.rewards.models import check_lengths, encode_answered, model_scores, row_scores, was_trained_here
from tasks.rewards.rules import FormatTags
from tasks.templates import ConversationTemplate

ADAPTER = "reward_adapter"
TAGS = "response_format_tags"


@dataclass(frozen=True)
class Answers:
    """What is scored: prompts with their responses, as tokens and as text."""

    prompts: Sequence[Prompt]
    episodes: Episodes
    texts: Sequence[str]  # the responses, without special tokens


class Scorer(Protocol):
    """A source of scores."""

    def __call__(self, answers: Answers) -> Tensor:
        """The score of each answer, [B] float32 on the episodes' device."""
        ...


@dataclass(frozen=True)
class Reward:
    """A source of scores, what it is called, and how much it counts."""

    name: str
    weight: float
    scorer: Scorer


def combine(scores: Mapping[str, Tensor], rewards: Sequence[Reward]) -> Tensor:
    """The weighted sum, [B] float32, of each source's scores [B]."""
    return torch.stack([reward.weight * scores[reward.name] for reward in rewards]).sum(dim=0)


def check_finite(scores: Sequence[float], source: str) -> None:
    """Raise InputError, naming the source and the first such prompt, if a score is NaN or infinite."""
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise InputError(f"{source} gave the score {score} for prompt {index} of the batch; it must be finite.")


def check_rewards(
    configs: Sequence[RewardConfig], folders: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise InputError for a source that is not what it should be, from its files and settings alone."""
    for config in configs:
        match config:
            case ModelReward():
                _check_model(config, folders, tokenizer)
            case FunctionReward():
                load_reward_function(config.path)
            case ApiReward():
                check_service(config)


def check_prompts(
    configs: Sequence[RewardConfig],
    folders: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    template: ConversationTemplate | None = None,
) -> None:
    """Raise InputError for a source that cannot score answers to these prompts, written as the template says."""
    columns = column_names(prompts)
    are_plain = template is None and all(isinstance(prompt.prompt, str) for prompt in prompts)
    for config in configs:
        match config:
            case ModelReward():
                _check_template(folders[config.input_name], tokenizer, are_plain)
            case FunctionReward():
                check_call(config.path, columns, _arguments(config, template))


def load_rewards(
    configs: Sequence[RewardConfig],
    folders: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: str,
    micro_batch_tokens: int,
    log_folder: Path,
    rank: int,
    shared_model: Callable[[], ScalarModel] | None = None,
    template: ConversationTemplate | None = None,
    refuse_not_finite: bool = True,
) -> list[Reward]:
    """The sources of `configs`; `folders` are the program's inputs, `tokenizer` and the folder `policy` the policy's.

    shared_model switches the chain's own LoRA reward model in on the policy's base and gives it; any other is merged
    into a copy of that base. The template is what the policy's prompts were written with, if not with the tokenizer's.
    With refuse_not_finite a source raises InputError instead of giving a score that is NaN or infinite.
    """

    def load(config: RewardConfig) -> Scorer:
        match config:
            case ModelReward():
                folder = folders[config.input_name]
                if shared_model is not None and folder == folders.get(OWN_MODEL) and kind_of(folder) == ADAPTER:
                    return _model_scorer(shared_model, micro_batch_tokens)
                model = load_reward_model(folder, folders["policy"], dtype).to(device)
                if reads_same_tokens(load_tokenizer(folder), tokenizer):
                    return _model_scorer(lambda: model, micro_batch_tokens)
                return _foreign_model_scorer(model, folder, template, micro_batch_tokens)
            case FunctionReward():
                return _function_scorer(load_reward_function(config.path), _arguments(config, template))
            case ApiReward():
                return _service_scorer(load_service(config, log_folder, rank), tokenizer, config.label_column)

    def checked(config: RewardConfig) -> Scorer:
        return _checked(config.name, load(config)) if refuse_not_finite else load(config)

    return [Reward(config.name, config.weight, checked(config)) for config in configs]


def _check_model(config: ModelReward, folders: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> None:
    require(folders, config.input_name)
    folder = folders[config.input_name]
    kind = require_kind(folder, "reward_model", ADAPTER)
    if kind == ADAPTER and not reads_same_tokens(load_tokenizer(folder), tokenizer):
        raise InputError(
            f"{folder}: the LoRA reward model has another tokenizer than the policy, so it is not of the policy's "
            "base. Train it from the policy's model, or merge it into its own base."
        )


def _check_template(folder: Path, tokenizer: PreTrainedTokenizerBase, prompts_are_plain: bool) -> None:
    own = load_tokenizer(folder)
    if not prompts_are_plain and own.chat_template is None and not reads_same_tokens(own, tokenizer):
        raise InputError(
            f"{folder}: the prompts are conversations, and the reward model's tokenizer, which is not the policy's, "
            "has no chat template to write them in. Give one that has."
        )


def _checked(name: str, scorer: Scorer) -> Scorer:
    """`scorer`, which raises InputError for a score that is not finite."""

    def score(answers: Answers) -> Tensor:
        scores = scorer(answers)
        check_finite(scores.tolist(), f"rewards.{name}")
        return scores

    return score


def _model_scorer(model: Callable[[], ScalarModel], micro_batch_tokens: int) -> Scorer:
    """By a reward model that reads the policy's token rows; it is asked for anew each time, switched in."""

    def score(answers: Answers) -> Tensor:
        return model_scores(model(), answers.episodes, micro_batch_tokens)

    return score


def _foreign_model_scorer(
    model: ScalarModel, folder: Path, template: ConversationTemplate | None, micro_batch_tokens: int
) -> Scorer:
    """By a reward model that reads the same texts in tokens of its own."""
    tokenizer, ends_at_eos = load_tokenizer(folder), was_trained_here(folder)

    def row(prompt: Prompt, response: str) -> list[int]:
        asked = prompt.prompt if template is None else template.conversation(prompt.prompt)
        return encode_answered(tokenizer, asked, response, ends_at_eos)

    def score(answers: Answers) -> Tensor:
        rows = [row(prompt, text) for prompt, text in zip(answers.prompts, answers.texts, strict=True)]
        check_lengths(rows, model, f"The reward model {folder}")
        return row_scores(model, rows, micro_batch_tokens)

    return score


def _function_scorer(function: RewardFunction, arguments: Mapping[str, Any]) -> Scorer:
    """By a Python function, which gets the columns of the prompts' records."""

    def score(answers: Answers) -> Tensor:
        prompts = answers.prompts
        columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in column_names(prompts)}
        numbers = function_scores(function, [prompt.text for prompt in prompts], answers.texts, columns, arguments)
        return _tensor(numbers, answers)

    return score


def _service_scorer(service: Service, tokenizer: PreTrainedTokenizerBase, label_column: str) -> Scorer:
    """By a service, which reads prompt and response with their special tokens."""

    def score(answers: Answers) -> Tensor:
        rows = zip(answers.episodes.ids.tolist(), answers.episodes.lengths.tolist(), strict=True)
        texts = [_decode(tokenizer, row[:length]) for row, length in rows]
        messages = [
            Message(text, _decode(tokenizer, prompt.ids), _label(prompt, label_column))
            for text, prompt in zip(texts, answers.prompts, strict=True)
        ]
        return _tensor(service(messages), answers)

    return score


def _arguments(config: FunctionReward, template: ConversationTemplate | None) -> dict[str, Any]:
    """The config's, and for a rule that states no tags the template's; raises InputError for tags that are none."""
    tags = None if template is None or not config.is_rule else template.response_format_tags
    if tags is None:
        return config.arguments
    try:
        FormatTags.model_validate(tags)
    except ValidationError as error:
        raise InputError(f"conversation_template.response_format_tags:\n{explain(error)}") from error
    return {TAGS: tags, **config.arguments}


def column_names(prompts: Sequence[Prompt]) -> list[str]:
    """The columns that any of the prompts has, each once, in the order in which they appear."""
    return list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))


def _label(prompt: Prompt, column: str) -> str:
    value = prompt.columns.get(column)
    return "" if value is None else str(value)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _tensor(numbers: Sequence[float], answers: Answers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=answers.episodes.ids.device)
