"""Four tiny models, a tokenizer and prompts, the same at each call: what TRL is run on to make its fixture."""

import copy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

EOS, PAD, VOCAB_SIZE = 30, 31, 32
EOS_BIAS, PAD_BIAS = 1.2, -30.0  # on the logits: about one sampled token in forty is EOS, and none is padding
MODEL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 12,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words t0 to t31, of which the last two are EOS and padding."""
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCAB_SIZE)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=f"t{EOS}", pad_token=f"t{PAD}", padding_side="left"
    )


def make_models() -> dict[str, nn.Module]:
    """Policy, reference, value and reward model, all different, float32, the same at each call."""
    policy = _randomised(LlamaForCausalLM(LlamaConfig(**MODEL)), seed=0)
    _bias_logits(policy)
    scalar = LlamaConfig(**MODEL, num_labels=1)
    return {
        "policy": policy,
        "reference": _perturbed(policy, seed=1),
        "value": _randomised(LlamaForSequenceClassification(scalar), seed=2),
        "reward": _randomised(LlamaForSequenceClassification(scalar), seed=3),
    }


def make_prompts(number: int) -> list[list[int]]:
    """Prompts of 2 to 7 tokens."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 8, (number,), generator=generator).tolist()
    return [torch.randint(EOS, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def _randomised(model: nn.Module, seed: int) -> nn.Module:
    """`model` with weights large enough for peaked distributions, and for values of the scores' size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.4 * noise)
    return model


@torch.no_grad()
def _perturbed(model: nn.Module, seed: int) -> nn.Module:
    """A copy of `model` with each weight about a tenth larger or smaller."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def _bias_logits(model: nn.Module) -> None:
    """Give EOS and padding a constant logit.

    The head has no bias, so the first hidden coordinate is made a constant that no layer writes to. A sampled padding
    token must not occur: TRL takes it for the end of the response.
    """
    model.model.embed_tokens.weight[:, 0] = 2.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    for token, bias in ((EOS, EOS_BIAS), (PAD, PAD_BIAS)):
        model.lm_head.weight[token] = 0.0
        model.lm_head.weight[token, 0] = bias
