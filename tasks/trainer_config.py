"""The options that supervised fine-tuning and reward-model training share."""

from typing import Literal, Self

from pydantic import Field

from tasks.config import Config, Device, LoraConfig
from tasks.templates import ConversationTemplate


class TrainerConfig(Config):
    """How a Hugging Face Trainer optimises; one step = processes x per_device_batch_size x accumulation records."""

    lora: LoraConfig | None = None
    """Train adapters only; none = all weights."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak rate of AdamW; LoRA and tiny models want 10 to 50 times it."""
    lr_schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0 to its peak."""
    num_epochs: float = Field(1.0, gt=0)
    """Passes over the records."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; replaces num_epochs where it is given."""
    per_device_batch_size: int = Field(8, ge=1)
    """Records per process in one forward: halve it when memory runs out."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forwards per optimizer step: double it where the batch was halved."""
    conversation_template: ConversationTemplate | None = None
    """How a conversation is written, as fields or as the path of a JSON file; saved with the tokenizer. Plain records
    become conversations with it. None = the tokenizer's chat template, and plain records stay plain."""
    max_length: int = Field(1024, ge=2)
    """Longest record, prompt and completion together, in tokens; the rest of a longer one is cut."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embeddings and of the last hidden states dropped in training: against overfitting."""
    average_from: float | None = Field(None, ge=0, lt=1)
    """Share of the steps after which the weights of every step are averaged; the mean is the result (Izmailov et al.
    2018). 0.25 lets a long training on few records overfit less; None = the last weights."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Longest gradient, in L2 norm; 0 = not clipped."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: half the memory and the time on a GPU; weights in training stay float32 until saved."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, a third more time."""
    eval_steps: int = Field(100, ge=1)
    """Optimizer steps between two passes over the held-out records."""
    save_steps: int = Field(500, ge=1)
    """Optimizer steps between checkpoints: the most that a resume repeats."""
    seed: int = Field(0, ge=0)
    """Of fresh weights, the order of the records and dropout."""

    @property
    def weights_dtype(self) -> str:
        """Of the model as it is loaded: weights in training are kept in float32, LoRA's frozen base is not."""
        return self.dtype if self.lora else "float32"

    def with_less_memory(self, device: Device) -> Self | None:
        """Fewer records in one forward, so many more forwards in one step: divided by the smallest factor there is."""
        size = self.per_device_batch_size
        if size == 1:
            return None
        factor = next(number for number in range(2, size + 1) if size % number == 0)
        changes = {
            "per_device_batch_size": size // factor,
            "gradient_accumulation_steps": self.gradient_accumulation_steps * factor,
        }
        return self.model_copy(update=changes)
