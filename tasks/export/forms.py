"""The further forms of an export, each in a folder of its own beside the weights, and each proved."""

from collections.abc import Mapping
from pathlib import Path

from tasks.export.adapter import ADAPTER, find_base, try_adapter, write_adapter_form
from tasks.export.config import ExportConfig
from tasks.export.hub import read_token
from tasks.export.ollama import MODELFILE, modelfile
from tasks.export.package import give_template
from tasks.export.parents import read_lineage
from tasks.export.quantized import require_library, try_quantized, write_quantized
from tasks.export.source import Source
from tasks.export.trial import Trial
from tasks.export.turns import take_apart
from tasks.models.modeling import load_tokenizer


def check_forms(config: ExportConfig, inputs: Mapping[str, Path]) -> None:
    """Raise InputError, before any model is loaded, for a form that cannot be made here."""
    if config.adapter is not None:
        find_base(config.adapter, inputs, read_lineage(inputs))
    if config.quantized:
        require_library()
    if config.hub is not None:
        read_token()
    if config.modelfile:
        tokenizer = load_tokenizer(inputs["model"])
        give_template(tokenizer)
        take_apart(tokenizer)


def make_forms(config: ExportConfig, inputs: Mapping[str, Path], source: Source, folder: Path) -> dict[str, Trial]:
    """Write the forms that the config asks for into `folder`, and try each; by the name of its folder or file.

    Raises ModelsDiffer for one that is not the source any more.
    """
    trials: dict[str, Trial] = {}
    if config.adapter is not None:
        base = find_base(config.adapter, inputs, read_lineage(inputs))
        write_adapter_form(folder / ADAPTER, inputs[ADAPTER], base, source.tokenizer)
        tolerance = config.adapter.tolerance if source.dtype == "float32" else config.logit_tolerance
        trials[ADAPTER] = try_adapter(folder / ADAPTER, base, source.exam, tolerance)
    for form in config.quantized:
        write_quantized(folder / form, folder, form, config.max_shard_size)
        trials[form] = try_quantized(folder / form, source.exam, config.quantized_tolerance(form))
    if config.modelfile:
        text = modelfile(
            folder,
            source.tokenizer,
            weights=".",
            sampling=source.evaluation.sampling,
            stop_strings=source.evaluation.stop_strings,
        )
        (folder / MODELFILE).write_text(text)
    return trials
