"""The finished model as users load it: weights, tokenizer, chat template, generation config and model card.

    python -m tasks.export.run --config config.json --input model=DIR [--input evaluation=DIR]
        [--input data=DIR --input base=DIR --input sft=DIR --input reward_model=DIR --input ppo=DIR] --output DIR

The optional inputs are described on the card. Everything is written aside, each form is loaded from there as a user
would and compared with the model it came from, and only then it is moved into place, config.json last.
`python -m tasks.export` exports any model by hand.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.export.card import Facts, model_card
from tasks.export.config import ExportConfig
from tasks.export.forms import check_forms, make_forms
from tasks.export.front_matter import check_card
from tasks.export.hub import push
from tasks.export.origins import read_origins
from tasks.export.package import try_package, write_package
from tasks.export.parents import read_lineage, read_parents, read_tree
from tasks.export.reproduction import REPRODUCE, read_reproduction
from tasks.export.serving import SERVE, serve_command, serve_script
from tasks.export.source import Source, read_source
from tasks.export.trial import Exam, Trial
from tasks.models.model_files import require_kind, write_json
from tasks.models.modeling import quiet_libraries
from tasks.models.unchecked import unchecked
from tasks.program import require, run_program
from tasks.tracking import MetricsLog

NUM_STEPS = 2


@dataclass(frozen=True)
class Proof:
    """How a copy of the export is proved to be one."""

    exam: Exam
    tolerance: float


def main(config: ExportConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Write the model in `inputs` to `output` in every form that the config asks for, and push it if it asks so."""
    proof = export(config, inputs, output)
    if config.hub is not None:
        print(f"pushed to {push(config.hub, output, proof.exam, proof.tolerance).url}")


def export(config: ExportConfig, inputs: Mapping[str, Path], output: Path) -> Proof:
    """Fill `output` with every form, each loaded and compared with the model in `inputs`, or with no model."""
    quiet_libraries()
    require(inputs, "model", *inputs)
    require_kind(inputs["model"], "model")
    check_forms(config, inputs)
    output.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(output)
    source = read_source(config, inputs)
    log.write(1, NUM_STEPS, {"num_parameters": source.num_parameters})
    dtype = source.dtype if config.dtype == "as_is" else config.dtype
    proof = Proof(source.exam, 0.0 if dtype == source.dtype else config.logit_tolerance)
    with unchecked(output) as folder:
        write_package(
            folder,
            source.folder,
            source.tokenizer,
            sampling=source.evaluation.sampling,
            dtype=dtype,
            max_shard_size=config.max_shard_size,
        )
        trial = try_package(folder, source.exam, proof.tolerance)
        forms = make_forms(config, inputs, source, folder)
        describe(folder, config, gather(config, inputs, source, folder, dtype=dtype, trial=trial, forms=forms))
    log.write(2, NUM_STEPS, {"max_logit_difference": trial.max_logit_difference})
    print(f"{trial.loaded_class} loads with {trial.loads_with}; its answer to {trial.prompt!r}: {trial.answer!r}")
    return proof


def gather(
    config: ExportConfig,
    inputs: Mapping[str, Path],
    source: Source,
    folder: Path,
    *,
    dtype: str,
    trial: Trial,
    forms: Mapping[str, Trial],
) -> Facts:
    """What the card of the export in `folder` tells; `trial` is of its weights in `dtype`."""
    lineage = read_lineage(inputs)
    return Facts(
        parents=read_parents(inputs),
        origins=read_origins(config, inputs, lineage),
        reproduction=read_reproduction(config, lineage),
        results=source.evaluation.results,
        num_parameters=source.num_parameters,
        dtype=dtype,
        conversational=not isinstance(source.exam.question, str),
        sampling=source.evaluation.sampling,
        trial=trial,
        serve=serve_command(folder, ".", dtype, config.name),
        forms=forms,
        tree=read_tree(inputs),
    )


def describe(folder: Path, config: ExportConfig, facts: Facts) -> None:
    """Write the model card, what goes with it, and report.json beside the weights in `folder`."""
    card = model_card(config, facts)
    check_card(card)
    (folder / "README.md").write_text(card)
    (folder / SERVE).write_text(serve_script(folder, facts.dtype, config.name))
    if facts.results:
        (folder / "report.md").write_text(facts.results)
    if facts.reproduction.pipeline:
        (folder / REPRODUCE).write_text(facts.reproduction.entry())
    report = {
        **dataclasses.asdict(facts.trial),
        "num_parameters": facts.num_parameters,
        "dtype": facts.dtype,
        "weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "license": facts.origins.license,
        "forms": {name: dataclasses.asdict(trial) for name, trial in facts.forms.items()},
    }
    write_json(folder / "report.json", report)


if __name__ == "__main__":
    run_program(main, ExportConfig)
