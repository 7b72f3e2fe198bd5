"""The adapter alone, as PEFT loads it on the base that its config names."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import peft
from transformers import PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.export.config import AdapterForm
from tasks.export.origins import HUB_MODEL
from tasks.export.trial import Exam, Trial, try_form
from tasks.export.weights import own_dtype
from tasks.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json, require_kind, write_json
from tasks.models.modeling import load_causal_lm, load_tokenizer
from tasks.models.safe_loading import require_safetensors
from tasks.program import require

ADAPTER, BASE = "adapter", "adapter_base"  # the inputs; the first is also the form's folder
LOADS_WITH = "peft.AutoPeftModelForCausalLM.from_pretrained"


@dataclass(frozen=True)
class Base:
    """What the adapter stands on: its folder here, and how PEFT finds it elsewhere."""

    folder: Path
    name: str  # hub name or folder
    revision: str | None = None


def find_base(form: AdapterForm, inputs: Mapping[str, Path], lineage: Mapping[str, Any]) -> Base:
    """The base that the adapter will name; raises InputError if inputs are missing or users could not find it."""
    require(inputs, ADAPTER, BASE)
    require_kind(inputs[ADAPTER], "adapter")
    require_kind(inputs[BASE], "model")
    require_safetensors(inputs[ADAPTER], ADAPTER_WEIGHTS)
    known = lineage.get(BASE, {})
    uri = known.get("uri", "")
    if form.base is not None:
        return Base(inputs[BASE], form.base)
    if match := HUB_MODEL.fullmatch(uri):
        return Base(inputs[BASE], match["name"], match["commit"])
    if uri.startswith("file://") and "stage" not in known:
        return Base(inputs[BASE], unquote(urlsplit(uri).path))
    raise InputError(
        f"export.adapter: the adapter was trained on {uri or inputs[BASE]}, where PEFT finds no model. Put that model "
        "where users find it, and set export.adapter.base to its hub name or folder."
    )


def write_adapter_form(folder: Path, adapter: Path, base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill `folder` with the files of `adapter`, its config naming the base, and the tokenizer."""
    tokenizer.save_pretrained(folder)
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    where = {"base_model_name_or_path": base.name, "revision": base.revision, "inference_mode": True}
    write_json(folder / ADAPTER_CONFIG, read_json(adapter / ADAPTER_CONFIG) | where)


def try_adapter(folder: Path, base: Base, exam: Exam, tolerance: float) -> Trial:
    """What came of loading the adapter on its base and asking it; raises ModelsDiffer beyond `tolerance`."""
    tokenizer = load_tokenizer(folder)
    model = peft.PeftModel.from_pretrained(load_causal_lm(base.folder, own_dtype(base.folder)), folder).eval()
    return try_form(model, tokenizer, exam, tolerance, LOADS_WITH)
