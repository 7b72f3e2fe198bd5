"""What PPO saved in, the policy alone out: nothing of value or reward is left, and it says the same to the bit.

    python -m tasks.remove_value_head.run --config config.json --input actor_critic=DIR [--input model=DIR]
        [--input data=DIR] --output DIR

Inputs: actor_critic (kind `actor_critic`, or a checkpoint of TRL or LLaMA-Factory: see source.py), model (kind
`model`, the base; needed where PPO trained adapters, or where config.json or the tokenizer is missing), data (optional:
held-out prompts to compare on).
Output: kind `model`, or `adapter` where PPO trained adapters; report.json.

The weights pass shard by shard. One model at a time is loaded and asked: the one in `actor_critic`, and the new one.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.models.adapters import attach_adapter, load_adapter
from tasks.models.logits import answers_of, comparison_rows, require_agreement
from tasks.models.model_files import ADAPTER_CONFIG, require_kind, write_json
from tasks.models.modeling import (
    causal_lm_class,
    load_causal_lm,
    load_tokenizer,
    quiet_libraries,
    read_config,
    read_generation_config,
    save_description,
)
from tasks.models.shards import listed, main_dtype, write_shards
from tasks.models.unchecked import unchecked
from tasks.program import require, run_program
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.remove_value_head.source import Source, read_source

ONE_FILE = 2**62  # bytes: PEFT reads an adapter from one file


def main(config: RemoveValueHeadConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Ask the policy inside, write it out as a plain artifact, and keep that if it answers the same."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "actor_critic", *inputs)
    base = inputs.get("model")
    source = read_source(inputs["actor_critic"], base)
    base = _base(source, inputs)
    tokenizer = load_tokenizer(source.tokenizer_folder)
    model_config = read_config(base or source.config_folder)
    rows = comparison_rows(config, inputs.get("data"), tokenizer, model_config)
    before = answers_of(load_policy(source, base), rows)
    with unchecked(output) as aside:
        write_policy(aside, source, tokenizer, config.max_shard_size)
        after = answers_of(load_plain(aside, base, main_dtype(source.policy)), rows, before)
        found = require_agreement(before, after, 0.0, f"The policy taken out of {source.folder} says something else")
        report = {
            "tuning": source.tuning,
            **found.figures(),
            "greedy_text": tokenizer.decode(after.texts[0]),
            "num_policy_tensors": len(source.policy),
            "num_removed_tensors": len(source.value),
            "files_left_behind": ", ".join(source.value_files) or "none",
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(aside / "report.json", report)


def load_policy(source: Source, base: Path | None) -> PreTrainedModel:
    """The policy in evaluation mode, of the tensors of `source`; raises InputError where they are not its config's."""
    state = {name: stored.read() for name, stored in source.policy.items()}
    if base is not None:
        adapter = PeftLoraConfig.from_pretrained(source.config_folder)
        return attach_adapter(load_causal_lm(base), adapter, state, "default", source=str(source.folder)).eval()
    config = read_config(source.config_folder)
    model, found = causal_lm_class(config, source.config_folder).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=main_dtype(source.policy),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    missing = set(found["missing_keys"]) - set(model.all_tied_weights_keys)
    of_other_shape = {mismatch[0] for mismatch in found["mismatched_keys"]}
    if missing or found["unexpected_keys"] or of_other_shape:
        raise InputError(
            f"{source.folder}: the policy does not fit its config.json: missing {listed(missing) or 'none'}, "
            f"unexpected {listed(found['unexpected_keys']) or 'none'}, "
            f"of another shape {listed(of_other_shape) or 'none'}."
        )
    model.generation_config = read_generation_config(source.config_folder, config)
    return model.eval()


def write_policy(folder: Path, source: Source, tokenizer: PreTrainedTokenizerBase, max_shard_size: str) -> None:
    """Write the policy as a `model`, or as an `adapter`, with one shard of its weights in memory."""
    full = source.tuning == "full"
    outlines = {name: stored.outline() for name, stored in source.policy.items()}
    stem, size = ("model", max_shard_size) if full else ("adapter_model", ONE_FILE)
    write_shards(folder, outlines, lambda name: source.policy[name].read(), size, stem)
    if full:
        save_description(folder, source.config_folder, main_dtype(source.policy), tokenizer)
    else:
        shutil.copyfile(source.config_folder / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
        tokenizer.save_pretrained(folder)


def load_plain(folder: Path, base: Path | None, dtype: torch.dtype) -> PreTrainedModel:
    """The saved policy in evaluation mode, loaded as anyone loads a `model` or an `adapter`."""
    if base is None:
        return load_causal_lm(folder, str(dtype).removeprefix("torch."))
    return load_adapter(load_causal_lm(base), folder, "default").eval()


def _base(source: Source, inputs: Mapping[str, Path]) -> Path | None:
    """The folder of the base model that the policy's adapter sits on; none for a full policy."""
    if source.tuning == "full":
        return None
    require(inputs, "model")
    require_kind(inputs["model"], "model")
    return inputs["model"]


if __name__ == "__main__":
    run_program(main, RemoveValueHeadConfig)
