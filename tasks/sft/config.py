"""Options of supervised fine-tuning."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.config import Config
from tasks.trainer_config import TrainerConfig


class ScratchConfig(Config):
    """A new model with random weights, and a tokenizer trained on the SFT records. For demos and tests."""

    model_type: Literal["llama", "qwen2", "mistral"] = "llama"
    """Architecture, as transformers names it."""
    hidden_size: int = Field(128, ge=8)
    """Width; divisible by num_heads, even per head."""
    num_layers: int = Field(4, ge=1)
    """Decoder layers."""
    num_heads: int = Field(4, ge=1)
    """Attention heads per layer."""
    intermediate_size: int = Field(352, ge=8)
    """Width of the feed-forward layers."""
    max_position_embeddings: int = Field(512, ge=8)
    """Longest text, prompt and response together, in tokens."""
    tie_word_embeddings: bool = True
    """One matrix for reading and predicting tokens."""
    tokenizer: Literal["bpe", "word"] = "bpe"
    """bpe: byte-level, any text. word: whole words of the corpus, others become <unk>; short rows."""
    vocab_size: int = Field(4096, ge=300)
    """Most tokens of the vocabulary, special ones included; a small corpus has fewer."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ScratchConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by 2 x num_heads {self.num_heads}. "
                f"Set hidden_size to a multiple of {2 * self.num_heads}."
            )
        return self


class SFTConfig(TrainerConfig):
    """Supervised fine-tuning on prompt and completion; the loss counts completions only."""

    from_scratch: ScratchConfig | None = None
    """Start from this new model instead of the input `model`."""

    @model_validator(mode="after")
    def _lora_needs_a_base(self) -> "SFTConfig":
        if self.from_scratch and self.lora:
            raise ValueError(
                "lora adapts a model that knows something, but from_scratch has random weights. Drop one of them."
            )
        return self
