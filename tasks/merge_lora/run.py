"""Base and adapter in, one plain language model out, compared with the two before it is kept.

    python -m tasks.merge_lora.run --config config.json --input adapter=DIR --input model=DIR [--input data=DIR]
        --output DIR

Layers are merged one by one in float32 and saved in the base's own precision. Then one model at a time is loaded and
asked: base and adapter, and the merged one. OUTPUT holds either a model that passed, or no model.

Inputs: adapter (kind `adapter`, ours or PEFT's), model (kind `model`, its base), data (optional: held-out prompts to
compare on).
Output: kind `model`; report.json.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.merge_lora.config import MergeLoraConfig
from tasks.merge_lora.merging import merge_layerwise, outline, why_not_layerwise
from tasks.models.adapters import load_adapter, load_merged
from tasks.models.logits import answers_of, comparison_rows, require_agreement
from tasks.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, read_json, require_kind, write_json
from tasks.models.modeling import (
    TOKENIZER_FILES,
    load_causal_lm,
    load_tokenizer,
    quiet_libraries,
    read_config,
    save_description,
    save_model,
)
from tasks.models.shards import main_dtype, weights_in, write_shards
from tasks.models.unchecked import unchecked
from tasks.program import require, run_program


def main(config: MergeLoraConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Ask base and adapter, merge, save, load, ask again, and only then put the model into OUTPUT."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "adapter", "model", *inputs)
    base, adapter = inputs["model"], inputs["adapter"]
    _require_mergeable(base, adapter)
    tokenizer = _tokenizer(adapter, base)
    rows = comparison_rows(config, inputs.get("data"), tokenizer, read_config(base))
    before = answers_of(load_adapter(load_causal_lm(base), adapter, "default").eval(), rows)
    with unchecked(output) as aside:
        merging = write_merged(aside, base, adapter, tokenizer, config)
        dtype = main_dtype(weights_in(aside, "model"))
        tolerance = config.tolerance if dtype == torch.float32 else config.saved_tolerance
        after = answers_of(load_causal_lm(aside), rows, before)
        found = require_agreement(before, after, tolerance, "The merged model differs from base and adapter")
        report = {
            **found.figures(),
            "tolerance": tolerance,
            **merging,
            "greedy_text": tokenizer.decode(after.texts[0]),
            "dtype": str(dtype).removeprefix("torch."),
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(aside / "report.json", report)


def write_merged(
    folder: Path, base: Path, adapter: Path, tokenizer: PreTrainedTokenizerBase, config: MergeLoraConfig
) -> dict[str, Any]:
    """Write the merged model, layer by layer where its adapter and architecture allow that; returns how it went."""
    lora, stored, model = peft.LoraConfig.from_pretrained(adapter), weights_in(base, "model"), outline(base)
    reason = why_not_layerwise(lora, model, stored)
    if reason is not None:
        print(f"Merging the whole model in memory: {reason}.")
        save_model(folder, load_merged(base, adapter).to(main_dtype(stored)), tokenizer, config.max_shard_size)
        return {"merged": f"in memory: {reason}"}
    state = load_file(adapter / ADAPTER_WEIGHTS)
    merge = merge_layerwise(model, stored, lora, state, config.tolerance, source=str(adapter))
    write_shards(folder, merge.outlines(), merge.tensor, config.max_shard_size, "model")
    save_description(folder, base, main_dtype(stored), tokenizer, untied=bool(merge.untied))
    return {
        "merged": "layer by layer",
        "num_merged_layers": merge.num_merged,
        "max_layer_difference": merge.largest,
        "layer_tolerance": config.tolerance,
    }


def _require_mergeable(base: Path, adapter: Path) -> None:
    require_kind(adapter, "adapter")
    require_kind(base, "model")
    method = read_json(adapter / ADAPTER_CONFIG).get("peft_type")
    if method != "LORA":
        raise InputError(f"{adapter}: expected a LoRA adapter, found {method}. Merge it with PEFT's merge_and_unload.")
    quantization = read_json(base / CONFIG).get("quantization_config")
    if quantization:
        raise InputError(
            f"{base}: its weights are quantised ({quantization.get('quant_method')}), and a sum with them would be "
            "rounded to their few bits. Give the model that it was quantised from."
        )


def _tokenizer(adapter: Path, base: Path) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer, which may have been changed in training; the base's where it has none."""
    return load_tokenizer(adapter if any((adapter / name).is_file() for name in TOKENIZER_FILES) else base)


if __name__ == "__main__":
    run_program(main, MergeLoraConfig)
