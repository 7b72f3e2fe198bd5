"""The options of the PPO stage."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.config import Config, LoraConfig, SamplingConfig


class PPOConfig(Config):
    """Proximal policy optimisation of a language model (Schulman et al. 2017; Ziegler et al. 2019)."""

    # What is trained
    models: Literal["shared", "separate"] = Field(
        "shared",
        title="Models",
        description="shared: policy, value and reward are LoRA adapters on one frozen base, the reference is the base "
        "without them. separate: policy, value, reference and reward are models of their own, policy and value trained "
        "in full; about 9 times the memory.",
    )
    lora: LoraConfig = Field(LoraConfig(), title="LoRA", description="The adapters; used when models are shared.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        title="Precision of the weights",
        description="Of the frozen weights. What is trained is always float32, so bfloat16 needs shared models.",
    )

    # How much
    total_episodes: int = Field(
        10_000, ge=1, title="Total episodes", description="Responses to learn from, rounded up to whole iterations."
    )
    batch_size: int = Field(
        64,
        ge=2,
        title="Batch size",
        description="Episodes of one iteration, all processes together: one rollout. "
        "A multiple of num_mini_batches x processes.",
    )
    num_mini_batches: int = Field(
        1, ge=1, title="Mini-batches", description="Optimizer steps of one epoch: parts that the batch is split into."
    )
    num_ppo_epochs: int = Field(
        4, ge=1, title="Epochs", description="Passes over each rollout. More learn faster from it and drift further."
    )

    # Rewards
    reward_function: str | None = Field(
        None,
        title="Reward function",
        description="Scores responses in place of a reward model: a Python callable `package.module:function` that "
        "gets prompts, responses and the records' other columns by name, all lists, and gives a list of numbers.",
    )
    kl_coef: float = Field(
        0.05,
        ge=0,
        title="KL coefficient",
        description="Weight of the penalty logprob - reference logprob at every token. Too small: the policy exploits "
        "the reward model; too large: it stays where it is.",
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, title="Missing-EOS penalty", description="Subtracted from the score of a response that did not end."
    )
    gamma: float = Field(1.0, gt=0, le=1, title="Discount", description="Of rewards one token later.")
    lam: float = Field(
        0.95, ge=0, le=1, title="GAE lambda", description="0 trusts the value model, 1 the sampled rewards alone."
    )

    # Losses
    cliprange: float = Field(
        0.2, gt=0, title="Clip range", description="A token's probability ratio beyond 1 +- this gets no more gradient."
    )
    cliprange_value: float = Field(
        0.2, gt=0, title="Value clip range", description="A value further than this from the rollout's is clipped."
    )
    vf_coef: float = Field(
        0.1,
        gt=0,
        title="Value coefficient",
        description="Weight of the value loss. The value model has parameters of its own and Adam divides the scale "
        "out again, so it decides only when max_grad_norm cuts in; the value's speed is value_learning_rate.",
    )

    # Optimisation
    learning_rate: float = Field(1e-5, ge=0, title="Learning rate", description="Peak, of the policy, for AdamW.")
    value_learning_rate: float = Field(
        1e-5, ge=0, title="Value learning rate", description="Peak, of the value model, for AdamW."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", title="Schedule", description="How both learning rates fall from their peak to 0 over the run."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, title="Warm-up", description="Share of all optimizer steps in which the rates rise from 0."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, title="Largest gradient norm", description="Longer gradients are shortened; policy and value each."
    )

    # Rollouts
    sampling: SamplingConfig = Field(SamplingConfig(), title="Sampling", description="How responses are drawn.")
    rollout_batch_size: int = Field(
        64, ge=1, title="Rollout batch", description="Responses generated at once on each process; sizes the KV cache."
    )
    micro_batch_tokens: int = Field(
        8192,
        ge=1,
        title="Micro-batch tokens",
        description="Most tokens, padding included, of one forward and backward pass; sizes the activations. "
        "Changes speed and memory, not the result.",
    )

    # While it runs
    evaluate_every: int = Field(
        10,
        ge=0,
        title="Evaluate every",
        description="Iterations between evaluations on held-out prompts; 0: only before the first and after the last.",
    )
    num_eval_prompts: int = Field(64, ge=1, title="Evaluation prompts", description="Held-out prompts to answer.")
    num_sample_generations: int = Field(
        4, ge=0, title="Samples", description="Answers of each evaluation written to samples.jsonl."
    )
    checkpoint_every: int = Field(10, ge=1, title="Checkpoint every", description="Iterations between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, title="Checkpoints kept", description="The newest so many stay.")
    seed: int = Field(0, title="Seed", description="Of prompt order, sampling, mini-batches and fresh adapters.")

    @property
    def num_iterations(self) -> int:
        """Rollouts of the whole run."""
        return -(-self.total_episodes // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_iterations * self.num_ppo_epochs * self.num_mini_batches

    @model_validator(mode="after")
    def _check(self) -> "PPOConfig":
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by num_mini_batches {self.num_mini_batches}. "
                f"Set batch_size to a multiple of {self.num_mini_batches}."
            )
        if self.models == "separate" and self.dtype != "float32":
            raise ValueError(
                "separate models train the weights themselves, and in bfloat16 an update smaller than 1/256 of a "
                "weight is lost. Set dtype float32, or models shared."
            )
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout {self.lora.dropout} would make the probability ratio compare two different random "
                "networks. Set it to 0: in PPO the KL penalty does the regularising."
            )
        if self.sampling.min_new_tokens > self.sampling.response_length:
            raise ValueError(
                f"sampling.min_new_tokens {self.sampling.min_new_tokens} is larger than "
                f"sampling.response_length {self.sampling.response_length}."
            )
        return self
