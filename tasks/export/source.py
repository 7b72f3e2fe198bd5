"""The model that is exported, and what it answered: every form is held against that."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.data import Text, encode_prompt
from tasks.export.config import ExportConfig
from tasks.export.parents import Evaluation, read_evaluation
from tasks.export.trial import Exam
from tasks.export.weights import own_dtype
from tasks.models.logits import answers_of, comparison_rows
from tasks.models.modeling import load_causal_lm, load_tokenizer, read_config

QUESTION = "Hello"
HELD_OUT = "prompts_test.parquet"


@dataclass(frozen=True)
class Source:
    """The model that is exported."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    num_parameters: int
    evaluation: Evaluation
    exam: Exam


def read_source(config: ExportConfig, inputs: Mapping[str, Path]) -> Source:
    """The model before export, asked what every form will be asked; it is in memory only here."""
    folder, evaluation = inputs["model"], read_evaluation(inputs)
    dtype = own_dtype(folder)
    tokenizer = load_tokenizer(folder)
    rows = [encode_prompt(tokenizer, question) for question in evaluation.questions]
    rows += [
        encode_prompt(tokenizer, question) + tokenizer(answer, add_special_tokens=False)["input_ids"]
        for question, answer in zip(evaluation.questions, evaluation.answers, strict=True)
    ]
    held_out = inputs["data"] if "data" in inputs and (inputs["data"] / HELD_OUT).is_file() else None
    rows += comparison_rows(config, held_out, tokenizer, read_config(folder))
    model = load_causal_lm(folder, dtype)
    exam = Exam(_question(config, evaluation, tokenizer), rows, answers_of(model, rows))
    return Source(folder, tokenizer, dtype, model.num_parameters(), evaluation, exam)


def _question(config: ExportConfig, evaluation: Evaluation, tokenizer: PreTrainedTokenizerBase) -> Text:
    """What a user asks first: an evaluated prompt, else one of the config's."""
    if evaluation.questions:
        return evaluation.questions[0]
    text = config.prompts[0] if config.prompts else QUESTION
    return text if tokenizer.chat_template is None else [{"role": "user", "content": text}]
