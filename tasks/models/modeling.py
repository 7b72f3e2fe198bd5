"""Language models and scalar models (reward, value): load them, save them.

Adapters are in adapters.py, kinds of folders in model_files.py, what PPO saves in tasks/actor_critic/.

Shapes: B rows, T tokens, D hidden size.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks.errors import InputError
from tasks.models.model_files import CONFIG, SCALAR_HEAD, SCALAR_HEAD_WEIGHTS, read_json, require_kind, write_json
from tasks.models.safe_loading import no_custom_code, require_safetensors

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ScalarHead(nn.Linear):
    """One number per token: hidden states [B, T, D] -> [B, T], in float32, less a constant `offset` (0 unless set)."""

    offset: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=torch.float32)
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.weight.float()).squeeze(-1) - self.offset


class ScalarModel(nn.Module):
    """A transformer without its language-model head, and a ScalarHead: a reward model or a value model."""

    def __init__(self, backbone: nn.Module, head: ScalarHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The head's number at every token of ids [B, T], as [B, T] float32.

        Rows padded on the right need no mask [B, T]: attention is causal, so no token sees the padding after it.
        """
        hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.head(hidden)

    def score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The number at the last token that counts, [B] float32, of ids [B, T] padded on the right (mask [B, T])."""
        return last_value(self(ids), mask)


def last_value(values: Tensor, mask: Tensor) -> Tensor:
    """values [B, T] at each row's last token where mask [B, T] is True: [B]. The mask alone says what is padding."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask.bool()).argmax(dim=1, keepdim=True)
    return values.gather(1, last).squeeze(1)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, with a pad token: one without is given EOS as its pad token, and that is said.

    Raises InputError where there is no tokenizer, or one without EOS: nothing could end a response.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{folder}: expected a tokenizer ({' or '.join(TOKENIZER_FILES)}), found neither.")
    with no_custom_code(folder) as options:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no EOS token. Name one as eos_token in tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        print(f"{folder}: the tokenizer has no pad token; padding with EOS ({tokenizer.eos_token!r}).")
    return tokenizer


def reads_same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether token ids of the one mean the same to the other."""
    return first.get_vocab() == second.get_vocab()


def load_causal_lm(
    folder: Path, dtype: str = "float32", quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """The language model in `folder`, in evaluation mode.

    Raises InputError if `folder` holds another kind, no safetensors, or a model that needs code of its own.
    """
    require_kind(folder, "model")
    return _load(AutoModelForCausalLM, folder, dtype=torch_dtype(dtype), quantization_config=quantization)


def load_classifier(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """A sequence classifier with one label, from a reward model or a language model; the latter gets a random head."""
    require_kind(folder, "model", "reward_model")
    return _load(AutoModelForSequenceClassification, folder, num_labels=1, dtype=torch_dtype(dtype))


def load_reward_model(folder: Path, base: Path | None = None, dtype: str = "float32") -> ScalarModel:
    """The reward model in `folder`, frozen and in evaluation mode, whichever of its two kinds it is.

    A `reward_adapter` is merged, in float32, into a copy of the language model in `base` of its own.
    """
    if require_kind(folder, "reward_model", "reward_adapter") == "reward_model":
        classifier = load_classifier(folder, dtype)
        model = ScalarModel(backbone(classifier), classifier_head(classifier, read_offset(folder)))
    else:
        if base is None:
            raise InputError(f"{folder} is a LoRA reward model: the language model it was trained on is needed too.")
        from tasks.models.adapters import load_merged

        model = ScalarModel(backbone(load_merged(base, folder)).to(torch_dtype(dtype)), load_scalar_head(folder))
    return model.requires_grad_(False).eval()


def backbone(model: nn.Module) -> nn.Module:
    """The transformer of `model` (plain, or with adapters) without its head: input_ids -> last_hidden_state."""
    plain: Any = model
    return (plain.get_base_model() if hasattr(model, "get_base_model") else plain).base_model


def classifier_head(classifier: nn.Module, offset: float = 0.0) -> ScalarHead:
    """A copy of the one-label head of a Hugging Face sequence classifier, in float32."""
    score: Any = getattr(classifier, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1 or score.bias is not None:
        raise InputError(f"{type(classifier).__name__}: expected a linear head `score` with one output and no bias.")
    return make_scalar_head(score.weight, offset)


def make_scalar_head(weight: Tensor, offset: float = 0.0) -> ScalarHead:
    """A head with a copy of `weight` [1, D]."""
    head = ScalarHead(weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.offset.fill_(offset)
    return head


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_shard_size: str = "5GB"
) -> None:
    """Write a `model` folder: safetensors, tokenizer and a generation_config.json that knows EOS and padding."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    save_generation_config(folder, model, tokenizer)


def save_generation_config(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the model's generation_config.json; what it lacks of EOS and padding is the tokenizer's."""
    write_generation_config(folder, model.generation_config, tokenizer)


def write_generation_config(folder: Path, given: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `given` as generation_config.json; what it lacks of EOS and padding is the tokenizer's."""
    config = GenerationConfig.from_dict(given.to_dict())
    config.pad_token_id = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id
    config.save_pretrained(folder)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: the tokenizer's EOS and those in the model's generation config."""
    configured: int | Sequence[int] | None = model.generation_config.eos_token_id
    others = [configured] if isinstance(configured, int) else list(configured or [])
    return sorted({tokenizer.eos_token_id, *others})


def save_description(
    folder: Path, source: Path, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, *, untied: bool = False
) -> None:
    """Write what makes weights in `folder` a `model`: the config and the generation config of `source`, the tokenizer.

    The config says that the weights are of `dtype` and those of a causal language model; with `untied` that input and
    output embeddings are two.
    """
    config = read_config(source)
    config.dtype = dtype
    config.architectures = [causal_lm_class(config, source).__name__]
    if untied:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_generation_config(folder, read_generation_config(source, config), tokenizer)


def read_config(folder: Path) -> PreTrainedConfig:
    """What config.json in `folder` says of its model; raises InputError where that needs code of its own."""
    with no_custom_code(folder) as options:
        return AutoConfig.from_pretrained(folder, **options)


def read_generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """That of `folder`; where it has none, what the model's `config` says of generation."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def causal_lm_class(config: PreTrainedConfig, source: Path) -> type[PreTrainedModel]:
    """The class of causal language models of that `config`; raises InputError, naming `source`, for other models."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{source / CONFIG}: transformers knows no causal language model of type {config.model_type}.")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def save_scalar_head(folder: Path, head: ScalarHead) -> None:
    """Write a head that stands beside an adapter: scalar_head.safetensors and scalar_head.json."""
    save_file({"weight": head.weight.detach().float().cpu().contiguous()}, folder / SCALAR_HEAD_WEIGHTS)
    save_offset(folder, head.offset.item())


def load_scalar_head(folder: Path) -> ScalarHead:
    """The head of a `reward_adapter` folder."""
    require_safetensors(folder, SCALAR_HEAD_WEIGHTS)
    return make_scalar_head(load_file(folder / SCALAR_HEAD_WEIGHTS)["weight"], read_offset(folder))


def save_offset(folder: Path, offset: float) -> None:
    """Write what is subtracted from every score of the reward model in `folder`."""
    write_json(folder / SCALAR_HEAD, {"offset": offset})


def read_offset(folder: Path) -> float:
    """What is subtracted from every score of the reward model in `folder`; 0 for a classifier made elsewhere."""
    return float(read_json(folder / SCALAR_HEAD)["offset"]) if (folder / SCALAR_HEAD).is_file() else 0.0


def quiet_libraries() -> None:
    """Keep transformers and the hub client from progress bars, advice, deprecation notices and network."""
    constants.HF_HUB_OFFLINE = True
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def torch_dtype(name: str) -> torch.dtype:
    """The floating-point type of that name; raises InputError for any other."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype {name!r}: expected float32, bfloat16 or float16.")
    return dtype


def _load(loader: Any, folder: Path, **arguments: Any) -> PreTrainedModel:
    require_safetensors(folder)
    with no_custom_code(folder) as options:
        return loader.from_pretrained(folder, use_safetensors=True, **options, **arguments)
