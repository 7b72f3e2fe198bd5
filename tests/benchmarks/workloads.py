"""What is trained on to be timed: models, tokenizer and prompts, the same for TRL, for us and for the floor.

Imported by TRL's environment too: torch, transformers and tokenizers only.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

SHORTEST_PROMPT, LONGEST_PROMPT = 8, 64
PAD_BIAS = -1e3  # a sampled padding token must not occur: TRL takes it for the end of the response
NEVER = -1e3
CONSTANT = 0.5  # the hidden coordinate that carries the bias, about as large as the others
TEMPERATURE = 0.7  # TRL's default
LEARNING_RATE = 1e-9  # so small that the responses' lengths stay what they are
LORA_RANK = 16
MODES = ("separate", "shared", "cached")  # see our_worker.py
WORKLOAD_FILE, PROMPTS_FILE = "workload.json", "prompts.json"


@dataclass(frozen=True)
class Workload:
    """One iteration of PPO: its models, prompts, responses and epochs."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    response_length: int = 48  # tokens of each response; with an EOS bias of the longest
    eos_bias: float = NEVER  # on the logit of EOS
    batch_size: int = 32
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1

    @property
    def eos(self) -> int:
        """The token that ends a response."""
        return self.vocab_size - 2

    @property
    def pad(self) -> int:
        """The token that fills rows up."""
        return self.vocab_size - 1

    @property
    def trainable_layers(self) -> int:
        """Last layers that get adapters where the lower ones are cached: a quarter, rounded up."""
        return -(-self.num_layers // 4)


_TINY = Workload("tiny", 128, 344, 4, 4, 4, vocab_size=1500)  # 1.2M parameters
_SMALL = Workload("small", 512, 1376, 8, 8, 8, vocab_size=8000)  # 33M
_1B = Workload("1b", 2048, 8192, 16, 32, 8, vocab_size=32_000)  # 1.1B, for a GPU
WORKLOADS = {
    workload.name: workload
    for workload in (
        _TINY,
        replace(_TINY, name="tiny-4-mini-batches", num_mini_batches=4),
        replace(_TINY, name="tiny-long-tailed", response_length=64, eos_bias=0.71),
        _SMALL,
        replace(_SMALL, name="small-4-mini-batches", num_mini_batches=4),
        replace(_SMALL, name="small-long-tailed", response_length=64, eos_bias=5.18),
        _1B,
    )
}


def write_models(folder: Path, workload: Workload) -> None:
    """Write folders policy, value and reward_model (each with the tokenizer), the prompts and the workload itself."""
    tokenizer = make_tokenizer(workload)
    parts = {
        "policy": make_policy(workload),
        "value": make_classifier(workload, seed=1),
        "reward_model": make_classifier(workload, seed=2),
    }
    for name, model in parts.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / PROMPTS_FILE).write_text(json.dumps(make_prompts(workload)))
    (folder / WORKLOAD_FILE).write_text(json.dumps(asdict(workload), indent=1))


def read_workload(folder: Path) -> Workload:
    """The workload that was written to the folder."""
    return Workload(**json.loads((folder / WORKLOAD_FILE).read_text()))


def read_prompts(folder: Path) -> list[list[int]]:
    """The prompts that were written to the folder."""
    return json.loads((folder / PROMPTS_FILE).read_text())


def make_config(workload: Workload) -> LlamaConfig:
    """The shape that all of a workload's models have."""
    return LlamaConfig(
        vocab_size=workload.vocab_size,
        hidden_size=workload.hidden_size,
        intermediate_size=workload.intermediate_size,
        num_hidden_layers=workload.num_layers,
        num_attention_heads=workload.num_heads,
        num_key_value_heads=workload.num_kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,  # the bias on EOS needs a head of its own
        bos_token_id=None,
        eos_token_id=workload.eos,
        pad_token_id=workload.pad,
        num_labels=1,
    )


def make_policy(workload: Workload) -> nn.Module:
    """The language model, float32, the same at each call, its logits of EOS and padding made constants."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(make_config(workload))
    _bias_logits(model, {workload.eos: workload.eos_bias, workload.pad: PAD_BIAS})
    return model


def make_classifier(workload: Workload, seed: int) -> nn.Module:
    """A model of one number per token, float32, the same at each call."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(make_config(workload))


def make_tokenizer(workload: Workload) -> PreTrainedTokenizerFast:
    """Words t0, t1, ..., of which the last two are EOS and padding."""
    words = {f"t{index}": index for index in range(workload.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=f"t{workload.eos}",
        pad_token=f"t{workload.pad}",
        padding_side="left",
    )


def make_prompts(workload: Workload) -> list[list[int]]:
    """A prompt for each episode of an iteration: lengths spread evenly over the range, in random order."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.linspace(SHORTEST_PROMPT, LONGEST_PROMPT, workload.batch_size).round().long()
    lengths = spread[torch.randperm(workload.batch_size, generator=generator)]
    return [torch.randint(workload.eos, (length,), generator=generator).tolist() for length in lengths.tolist()]


def texts(prompts: Sequence[Sequence[int]]) -> list[str]:
    """The prompts as text that the tokenizer reads as the same ids."""
    return [" ".join(f"t{token}" for token in prompt) for prompt in prompts]


@torch.no_grad()
def _bias_logits(model: nn.Module, biases: dict[int, float]) -> None:
    """Give tokens a logit of their own, nearly a constant.

    The head has no bias, so the first hidden coordinate is made a constant that no layer writes to. The final norm
    divides it by the size of the hidden state, which differs little from token to token.
    """
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    for token, bias in biases.items():
        model.lm_head.weight[token] = 0.0
        model.lm_head.weight[token, 0] = bias
