"""The options of policy and value model: which weights they have, where these start, how they are stepped."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.config import Config, LoraConfig

Schedule = Literal["constant", "linear", "cosine"]
Share = Annotated[float, Field(ge=0, lt=1)]


class ActorCriticConfig(Config):
    """A policy and its value model, and the frozen reference that the policy is kept near."""

    tuning: Literal["full", "freeze", "lora", "qlora"] = "lora"
    """full: every weight; freeze: the last trainable_layers; lora: adapters; qlora: on 4-bit weights."""
    trainable_layers: int | None = Field(None, ge=1)
    """With freeze the layers that are trained, with LoRA those that get adapters: the last so many; None = all.
    What the layers below make of a rollout is computed once, for all models and epochs."""
    lora: LoraConfig = LoraConfig()
    """The adapters of policy and value model; used with lora and qlora."""
    value_model: Literal["adapter", "head", "separate"] | None = None
    """adapter: on the policy's frozen base; head: on the policy's own trunk, which both losses then train; separate: a
    model of its own, tuned like the policy. None = adapter with LoRA, else separate."""
    value_init: Literal["reward_model", "base"] | None = None
    """What the value model starts as: the reward model, or the policy's start with a head that says 0. None = the
    reward model where it has the form of value_model, else base."""
    start_policy: str | None = None
    """What the policy starts as instead of the SFT model, which stays the reference: what PPO saved, or a model or
    adapter; hub name, folder or artifact."""
    start_value: str | None = None
    """What the value model starts as, instead of value_init: what PPO saved, or a reward model."""
    reference_model: str | None = None
    """Another model to stay near, of the same tokens. None = the SFT model: with LoRA the base without adapters."""
    reference_decay: float = Field(1.0, gt=0, le=1)
    """The reference is an exponential moving average of the policy with this decay per iteration; 1 = it stays."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all weights. What is trained also has a float32 copy that the optimizer steps, so small steps are not lost."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a fraction of their memory for a third more time."""

    learning_rate: float = Field(1e-5, ge=0)
    """Peak, of the policy, for AdamW. LoRA wants 10 to 50 times that of full tuning."""
    value_learning_rate: float = Field(1e-5, ge=0)
    """Peak, of the value model."""
    lr_schedule: Schedule = "linear"
    """How the policy's learning rate falls from its peak to 0 over the run."""
    value_lr_schedule: Schedule | None = None
    """The value model's; None = lr_schedule."""
    warmup_ratio: Share = 0.03
    """Share of the policy's steps in which its rate rises from 0."""
    value_warmup_ratio: Share | None = None
    """The value model's; None = warmup_ratio."""
    adam_beta1: Share = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: Share = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of Adam's second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, of policy and value model."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are shortened to this L2 norm; policy and value model each."""

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA adapters are trained on a frozen base."""
        return self.tuning in ("lora", "qlora")

    @property
    def value_kind(self) -> str:
        """How the value model is held: adapter, head or separate."""
        return self.value_model or ("adapter" if self.has_adapters else "separate")

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if (self.tuning == "freeze") != (self.trainable_layers is not None) and not self.has_adapters:
            raise ValueError(
                f"tuning {self.tuning}, trainable_layers {self.trainable_layers} do not fit: freeze needs the number "
                "of layers to train, full trains all. Set trainable_layers with freeze, lora or qlora only."
            )
        if self.value_kind == "adapter" and not self.has_adapters:
            raise ValueError(f"value_model adapter needs tuning lora or qlora, not {self.tuning}. Set another.")
        if self.value_kind == "separate" and self.tuning == "qlora":
            raise ValueError("value_model separate is not offered with qlora. Set adapter or head.")
        if self.start_value and self.value_init:
            raise ValueError("Both start_value and value_init say what the value model starts as. Leave out one.")
        if self.reference_model and self.reference_decay < 1:
            raise ValueError("reference_decay averages the policy; a reference_model has other weights. Leave out one.")
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout {self.lora.dropout} would make the probability ratio compare two different random "
                "networks. Set it to 0: in PPO the KL penalty does the regularising."
            )
        return self
