"""Base and adapter in, one plain language model out, compared with the two before it is kept.

The merge happens in a float32 copy and is saved in the base's own precision. OUTPUT holds either a model that passed
both comparisons, or no model.

Inputs: adapter (kind `adapter`), model (kind `model`, its base), data (optional: prompts to compare on).
Output: kind `model`; report.json.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.adapters import load_adapter
from tasks.data import encode_prompt, read_split
from tasks.logits import Difference, difference, logits_of, random_rows
from tasks.merge_lora.config import MergeLoraConfig
from tasks.model_files import CONFIG, read_json, require_kind, write_json
from tasks.modeling import load_causal_lm, load_tokenizer, quiet_libraries, save_model, torch_dtype
from tasks.program import require, run_program

UNCHECKED = "unchecked"


class MergeError(RuntimeError):
    """The merged model says something else than base and adapter; carries the figures, and nothing was kept."""


def main(config: MergeLoraConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Merge, compare, save, load, compare again, and only then put the model into OUTPUT."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "adapter", "model")
    require_kind(inputs["adapter"], "adapter")
    require_kind(inputs["model"], "model")
    tokenizer = load_tokenizer(inputs["adapter"])
    unmerged = load_adapter(load_causal_lm(inputs["model"]), inputs["adapter"], "default").eval()
    rows = comparison_rows(config, inputs.get("data"), tokenizer, unmerged.config.vocab_size)
    before = logits_of(unmerged, rows)
    merged = unmerged.merge_and_unload(safe_merge=True)
    in_float32 = check(before, logits_of(merged, rows), config.tolerance, "in float32")
    dtype = base_dtype(inputs["model"])
    as_saved = save_checked(output, merged.to(dtype), tokenizer, rows, before, config.saved_tolerance)
    report = {
        "max_abs_difference": in_float32.largest,
        "max_relative_difference": in_float32.relative,
        "tolerance": config.tolerance,
        "max_abs_difference_as_saved": as_saved.largest,
        "max_relative_difference_as_saved": as_saved.relative,
        "saved_tolerance": config.saved_tolerance,
        "largest_logit": in_float32.scale,
        "num_prompts": in_float32.num_rows,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - started, 2),
    }
    write_json(output / "report.json", report)


def comparison_rows(
    config: MergeLoraConfig, data: Path | None, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> list[list[int]]:
    """Token rows of the config's prompts, of held-out prompts in `data`, and drawn from the vocabulary."""
    prompts = list(config.prompts)
    if data is not None:
        prompts += [record["prompt"] for record in read_split(data, "prompts", "test")[: config.num_prompts]]
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    return [row for row in rows if row] + random_rows(vocab_size, config.num_prompts, config.seed)


def check(before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float, when: str) -> Difference:
    """How far the merged model's logits are from the unmerged one's; raises MergeError beyond `tolerance`."""
    found = difference(before, after)
    if not found.relative <= tolerance:
        raise MergeError(
            f"The merged model differs from base and adapter {when}: largest difference of a logit "
            f"{found.largest:.3g}, {found.relative:.3g} of the largest logit {found.scale:.3g}, "
            f"over {found.num_rows} prompts; allowed {tolerance:.3g}. Nothing was saved."
        )
    return found


def save_checked(
    output: Path,
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    before: Sequence[Tensor],
    tolerance: float,
) -> Difference:
    """Save into a folder aside, load and compare what was saved, and move it into OUTPUT if it passed."""
    aside = output / UNCHECKED
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save_model(aside, merged, tokenizer)
        found = check(before, logits_of(load_causal_lm(aside), rows), tolerance, f"as saved in {merged.dtype}")
        # config.json makes a folder a model: it comes last.
        for path in sorted(aside.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def base_dtype(base: Path) -> torch.dtype:
    """The precision that the base was saved in."""
    config = read_json(base / CONFIG)
    return torch_dtype(config.get("dtype") or config.get("torch_dtype") or "float32")


if __name__ == "__main__":
    run_program(main, MergeLoraConfig)
