"""The finished model as users load it: weights, tokenizer, chat template, generation config and model card.

    python -m tasks.export.run --config config.json --input model=DIR --input evaluation=DIR \\
        [--input data=DIR --input sft=DIR --input reward_model=DIR --input ppo=DIR] --output DIR

The optional inputs are described on the card. Everything is written to OUTPUT/.unfinished, loaded from there as a user
would, compared with the model it came from, and only then moved into place, config.json last.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import Text, encode_prompt
from tasks.errors import InputError
from tasks.export.card import Facts, Parent, model_card
from tasks.export.config import ExportConfig
from tasks.export.package import (
    cast,
    encode_samples,
    own_dtype,
    try_package,
    write_package,
)
from tasks.logits import answers_of
from tasks.model_files import CONFIG, read_json, require_kind, write_json
from tasks.modeling import load_causal_lm, load_tokenizer, quiet_libraries
from tasks.program import require, run_program
from tasks.tracking import MetricsLog

UNFINISHED = ".unfinished"
NUM_STEPS = 2
NUM_COMPARED = 3


@dataclass(frozen=True)
class Evaluation:
    """What the export needs of the `evaluation` artifact."""

    results: str  # report.md
    sampling: Mapping[str, Any]
    conversational: bool
    questions: list[Text]  # of the first samples: the export is tried and compared on them
    answers: list[str]


def main(config: ExportConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Write the model in `inputs` to `output`, with its card, and prove that it loads."""
    quiet_libraries()
    require(inputs, "model", "evaluation", *inputs)
    require_kind(inputs["model"], "model")
    evaluation = read_evaluation(inputs["evaluation"])
    log = MetricsLog(output)
    folder = output / UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    dtype = own_dtype(inputs["model"]) if config.dtype == "as_is" else config.dtype
    tokenizer, model = load_tokenizer(inputs["model"]), load_causal_lm(inputs["model"], own_dtype(inputs["model"]))
    prompts = [encode_prompt(tokenizer, question) for question in evaluation.questions]
    prompts += encode_samples(tokenizer, evaluation.questions, evaluation.answers)
    source, num_parameters = answers_of(model, prompts), model.num_parameters()
    write_package(folder, cast(model, dtype), tokenizer, evaluation.sampling, config.max_shard_size)
    del model  # one model in memory at a time
    log.write(1, NUM_STEPS, {"num_parameters": num_parameters})
    tolerance = 0.0 if dtype == own_dtype(inputs["model"]) else config.logit_tolerance
    trial = try_package(folder, evaluation.questions[0], prompts, source, tolerance)
    facts = Facts(
        parents=read_parents(inputs),
        results=evaluation.results,
        num_parameters=num_parameters,
        dtype=dtype,
        conversational=evaluation.conversational,
        sampling=evaluation.sampling,
        trial=trial,
        tree=read_tree(inputs),
    )
    describe(folder, config, facts)
    move_into_place(folder, output)
    log.write(2, NUM_STEPS, {"max_logit_difference": trial.max_logit_difference})
    print(f"{trial.loaded_class} loads with {trial.loads_with}; its answer to {trial.prompt!r}: {trial.answer!r}")


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`; raises InputError if a part of it is missing."""
    content = read_json(folder / "evaluation.json")
    if not (folder / "report.md").is_file() or not (folder / "samples.json").is_file():
        raise InputError(
            f"{folder}: expected what evaluate writes; report.md or samples.json is missing. Run it again."
        )
    samples = json.loads((folder / "samples.json").read_text())[:NUM_COMPARED]
    prompts = [sample["prompt"] for sample in samples]
    conversational = bool(content["conversational"])
    return Evaluation(
        results=(folder / "report.md").read_text(),
        sampling=content["config"]["sampling"],
        conversational=conversational,
        questions=[[{"role": "user", "content": prompt}] if conversational else prompt for prompt in prompts],
        answers=[sample["after"] for sample in samples],
    )


def read_parents(inputs: Mapping[str, Path]) -> dict[str, Parent]:
    """What each input tells of itself in its report.json, and what the input `lineage`, where given, tells of it."""
    lineage = _json_in(inputs["lineage"], "lineage.json") if "lineage" in inputs else {}
    return {
        name: Parent(_json_in(folder, "report.json"), lineage.get(name, {}))
        for name, folder in inputs.items()
        if name != "lineage"
    }


def read_tree(inputs: Mapping[str, Path]) -> str:
    """What the inputs were made of, as lines of text; empty where the input `lineage` was not given."""
    tree = inputs["lineage"] / "tree.txt" if "lineage" in inputs else None
    return tree.read_text() if tree is not None and tree.is_file() else ""


def _json_in(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def describe(folder: Path, config: ExportConfig, facts: Facts) -> None:
    """Write the model card, the evaluation's report and report.json beside the weights in `folder`."""
    (folder / "README.md").write_text(model_card(config, facts))
    (folder / "report.md").write_text(facts.results)
    report = {
        **dataclasses.asdict(facts.trial),
        "num_parameters": facts.num_parameters,
        "dtype": facts.dtype,
        "weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    }
    write_json(folder / "report.json", report)


def move_into_place(folder: Path, output: Path) -> None:
    """Move what is in `folder` up to `output`, config.json last: without it nothing there loads as a model."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        path.replace(output / path.name)
    folder.rmdir()


if __name__ == "__main__":
    run_program(main, ExportConfig)
