"""Every form of an export is loaded as a user loads it, asked, and compared with the model that it came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data import Text, encode_prompt
from tasks.models.logits import Answers, answers_of, require_agreement

ANSWER_LENGTH = 32


@dataclass(frozen=True)
class Exam:
    """What every form is asked, and what the source answered."""

    question: Text  # asked as a user asks, seed 0
    prompts: Sequence[Sequence[int]]
    source: Answers


@dataclass(frozen=True)
class Trial:
    """What came of loading a finished form and using it."""

    loads_with: str
    loaded_class: str
    transformers_version: str
    prompt: str
    answer: str
    max_logit_difference: float
    max_logit: float  # largest absolute logit of the source: what the difference is to be seen against
    tolerance: float  # of the difference, as a share of max_logit; 0: equal bits
    num_greedy_texts: int
    num_greedy_texts_equal: int


def try_form(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exam: Exam,
    tolerance: float,
    loads_with: str,
) -> Trial:
    """Ask a loaded form the exam's question and prompts.

    Raises ModelsDiffer where it and the source are further apart than `tolerance`, a share of the largest logit.
    """
    answer = ask(model, tokenizer, encode_prompt(tokenizer, exam.question) or exam.prompts[0])
    what = f"What {loads_with} loads says something else than the model before export"
    found = require_agreement(exam.source, answers_of(model, exam.prompts, exam.source), tolerance, what)
    return Trial(
        loads_with=loads_with,
        loaded_class=type(model).__name__,
        transformers_version=transformers.__version__,
        prompt=exam.question if isinstance(exam.question, str) else exam.question[-1]["content"],
        answer=answer,
        max_logit_difference=found.largest,
        max_logit=found.scale,
        tolerance=tolerance,
        num_greedy_texts=found.num_greedy,
        num_greedy_texts_equal=found.num_greedy_equal,
    )


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """The answer as the model's generation config has it made, seed 0; a short one where it gives no length."""
    ids = torch.tensor([list(prompt)])
    length = {} if model.generation_config.max_new_tokens else {"max_new_tokens": ANSWER_LENGTH}
    torch.manual_seed(0)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **length)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
