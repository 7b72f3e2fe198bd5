"""What gives each answer a number: reward models and Python functions.

Letter: N prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tasks.data import Text, prompt_text
from tasks.errors import InputError
from tasks.evaluate.answers import Rows, as_episodes, same_tokens
from tasks.evaluate.comparison import Answers, Floats
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.names import SCORE, SECOND_SCORE
from tasks.models.modeling import load_tokenizer, reads_same_tokens
from tasks.prompts import NAMELESS, Prompt
from tasks.rewards.config import OWN_MODEL, ModelReward
from tasks.rewards.functions import RewardFunction, function_scores, load_reward_function
from tasks.rewards.sources import Answers as Asked
from tasks.rewards.sources import check_finite, check_prompts, check_rewards, load_rewards

NO_COLUMNS = ("prompt", "source")  # of a record, that are not handed to metrics
REWARD_MODELS = {SCORE: "reward_model", SECOND_SCORE: "second_reward_model"}  # judge: the program's input

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    records: Sequence[Record]  # N

    @property
    def prompts(self) -> list[Text]:
        """As the records have them."""
        return [record["prompt"] for record in self.records]

    @property
    def texts(self) -> list[str]:
        """As a person reads them."""
        return [prompt_text(prompt) for prompt in self.prompts]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The records' other columns."""
        return {name: [record[name] for record in self.records] for name in self.records[0] if name not in NO_COLUMNS}


def check_judges(
    config: EvaluateConfig, inputs: Mapping[str, Path], home: PreTrainedTokenizerBase, questions: Questions
) -> None:
    """Raise InputError if nothing judges the answers, or a judge is not what it should be.

    A reward model may have another tokenizer than SFT, as in PPO: it reads the texts then.
    """
    models = [inputs[name] for name in REWARD_MODELS.values() if name in inputs]
    if not config.metrics and "reward_model" not in inputs:
        raise InputError("Nothing judges the answers. Give --input reward_model=DIR, or `metrics` in the config.")
    for folder in models:
        check_rewards([ModelReward()], {OWN_MODEL: folder}, home)
        check_prompts(
            [ModelReward()], {OWN_MODEL: folder}, home, _as_prompts(questions.prompts), config.conversation_template
        )
        if reads_same_tokens(home, load_tokenizer(folder)):
            require_same_tokens(inputs["sft"], home, folder)  # their EOS too
    for name, path in config.metrics.items():
        _load_metric(name, path)


def judge_all(
    answers: Mapping[str, Rows], questions: Questions, config: EvaluateConfig, inputs: Mapping[str, Path]
) -> dict[str, Answers]:
    """Each set of answers with the judgement of every judge; a reward model is in memory only while it judges."""
    home = load_tokenizer(inputs["sft"])
    judgements: dict[str, dict[str, Floats]] = {name: {} for name in answers}
    for judge, judge_input in REWARD_MODELS.items():
        if judge_input in inputs:
            score = _scorer(inputs[judge_input], inputs["sft"], home, config)
            for name, rows in answers.items():
                judgements[name][judge] = score(questions.prompts, rows)
    for metric, path in config.metrics.items():
        function = _load_metric(metric, path)
        for name, rows in answers.items():
            numbers = function_scores(function, questions.texts, rows.texts, questions.columns)
            judgements[name][metric] = np.asarray(numbers, dtype=np.float64)
    return {name: _judged(rows, judgements[name]) for name, rows in answers.items()}


def require_same_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, other_folder: Path) -> None:
    """Raise InputError unless the tokenizer in `other_folder` is `tokenizer`, which lies in `folder`."""
    other = load_tokenizer(other_folder)
    if same_tokens(tokenizer, other):
        return
    ids, other_ids = tokenizer.get_vocab(), other.get_vocab()
    differing = sorted(token for token in ids.keys() | other_ids.keys() if ids.get(token) != other_ids.get(token))
    raise InputError(
        f"The tokenizers in {folder} ({len(ids)} tokens, EOS {tokenizer.eos_token_id}) and {other_folder} "
        f"({len(other_ids)} tokens, EOS {other.eos_token_id}) differ"
        f"{f', first at {differing[0]!r}' if differing else ''}: "
        "they have to be of one chain. Give models that share their tokenizer."
    )


def _scorer(
    folder: Path, base: Path, home: PreTrainedTokenizerBase, config: EvaluateConfig
) -> Callable[[Sequence[Text], Rows], Floats]:
    """As PPO asks the reward model in `folder`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    [reward] = load_rewards(
        [ModelReward()],
        {"policy": base, OWN_MODEL: folder},
        home,
        device=device,
        dtype=config.dtype,
        micro_batch_tokens=config.token_budget,
        log_folder=folder,
        rank=0,
        template=config.conversation_template,
        refuse_not_finite=False,
    )

    def score(prompts: Sequence[Text], rows: Rows) -> Floats:
        episodes = as_episodes(home, prompts, rows, config).each(lambda tensor: tensor.to(device))
        scores = reward.scorer(Asked(_as_prompts(prompts), episodes, rows.texts))
        check_finite(scores.tolist(), f"the reward model {folder}")
        return scores.double().cpu().numpy()

    return score


def _as_prompts(prompts: Sequence[Text]) -> list[Prompt]:
    """The prompts as texts or messages alone."""
    return [Prompt([], prompt, {}, NAMELESS) for prompt in prompts]


def _judged(rows: Rows, judgements: Mapping[str, Floats]) -> Answers:
    tokens = [row[:-1] if ended else row for row, ended in zip(rows.ids, rows.ended, strict=True)]
    return Answers(texts=rows.texts, tokens=tokens, ended=rows.ended, judgements=judgements)


def _load_metric(name: str, path: str) -> RewardFunction:
    try:
        return load_reward_function(path)
    except InputError as error:
        raise InputError(f"metrics.{name}: {error}") from error
