"""The model in 8 or 4 bits by bitsandbytes: transformers and vLLM load the folder as it is.

int8 is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), int4 the 4-bit NormalFloat of QLoRA with its scales
quantized too (Dettmers et al. 2023, arXiv:2305.14314). Embeddings, norms and the head keep their precision.
"""

import importlib.util
import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tasks.errors import InputError
from tasks.export.config import Quantization
from tasks.export.trial import Exam, Trial, try_form
from tasks.models.modeling import load_tokenizer
from tasks.models.safe_loading import no_custom_code
from tasks.models.tuning import four_bits

LIBRARY = "bitsandbytes"
logging.getLogger(LIBRARY).setLevel(logging.ERROR)  # int8 tells at every layer that it computes in float16
LOADS_WITH = f"AutoModelForCausalLM.from_pretrained, with {LIBRARY} installed"


def require_library() -> None:
    """Raise InputError unless the library that quantizes is installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise InputError(
            f"export.quantized needs {LIBRARY}, which is not installed. Install the extra `quantized`: "
            "pip install -c constraints.txt -e '.[quantized]'."
        )


def write_quantized(folder: Path, package: Path, form: Quantization, max_shard_size: str) -> None:
    """Fill `folder` with the finished `package` in fewer bits."""
    _load(package, _config(form)).save_pretrained(folder, max_shard_size=max_shard_size)
    load_tokenizer(package).save_pretrained(folder)


def try_quantized(folder: Path, exam: Exam, tolerance: float) -> Trial:
    """What came of loading `folder` and asking it; raises ModelsDiffer beyond `tolerance`."""
    return try_form(_load(folder), load_tokenizer(folder), exam, tolerance, LOADS_WITH)


def _load(folder: Path, config: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    given = {} if config is None else {"quantization_config": config}
    with no_custom_code(folder) as options:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, device_map={"": "cpu"}, **given, **options
        )


def _config(form: Quantization) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True) if form == "int8" else four_bits(torch.bfloat16)
