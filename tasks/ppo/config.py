"""The options of the PPO stage. docs/ppo.md has the equations, docs/migration.md the names that other libraries use."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.actor_critic.config import ActorCriticConfig, Share
from tasks.config import Device
from tasks.engines.config import EngineConfig
from tasks.guard.config import GuardConfig
from tasks.rewards.config import ModelReward, ScoreConfig
from tasks.templates import ConversationTemplate

DEFAULT_TOKENS: dict[Device, int] = {"cuda": 8192, "cpu": 512}
"""The smallest micro-batch where micro_batch_tokens is None."""


class PPOConfig(ActorCriticConfig, EngineConfig, ScoreConfig):
    """Proximal policy optimisation of a language model (Schulman et al. 2017; Ziegler et al. 2019)."""

    # How much
    total_episodes: int = Field(10_000, ge=1)
    """Responses to learn from, rounded up to whole iterations."""
    batch_size: int = Field(64, ge=2)
    """Episodes of one iteration, all processes together: one rollout. A multiple of num_mini_batches x processes."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps of one epoch: parts that the batch is split into."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each rollout. More learn faster from it and drift further."""
    target_kl: float | None = Field(None, gt=0)
    """KL between old and new policy, mean per token in nats, at which an iteration's updates end; None = never."""
    ratio_threshold: float | None = Field(10.0, gt=1)
    """A mini-batch whose mean probability ratio is larger is skipped (as in TRL 0.9): it would spike the loss."""
    value_pretraining_iterations: int = Field(0, ge=0)
    """First iterations, of the whole number, in which only the value model learns (Yuan et al. 2025, VC-PPO)."""

    # Prompts
    conversation_template: ConversationTemplate | None = None
    """How a conversation is written, as fields or as the path of a JSON file; None = the tokenizer's chat template."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Prompts of more tokens are left out; None = those that leave no room for the response in the model's context."""
    prompt_proportions: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Share of the episodes from each prompt data set, by name, in any unit; empty = by their sizes."""

    # Rewards
    whiten_rewards: bool = False
    """Scale each rollout's token rewards to variance 1; their mean stays."""
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the KL penalty. Too small: the policy exploits the reward model; too large: it stays where it is."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of KL at a sampled token (Schulman 2020): k1 = log policy - log reference, k2 = k1^2 / 2, k3 = e^-k1 - 1 + k1."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty stands: in each token's reward, or as a term of the loss. There k2 has the gradient of
    KL(policy || reference), k3 that of KL(reference || policy), on average."""
    kl_target: float | None = Field(None, gt=0)
    """KL of a response, in nats, that kl_coef is adapted to hold (Ziegler et al. 2019, sec. 2.2); None = fixed."""
    kl_horizon: float = Field(10_000, gt=0)
    """Episodes over which kl_coef follows: smaller is quicker."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of rewards one token later."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda of the advantages: 0 trusts the value model, 1 the sampled rewards alone."""
    value_lam: float | None = Field(None, ge=0, le=1)
    """GAE's lambda of the returns that the value model learns (VC-PPO: 1); None = lam."""
    lam_length_alpha: float | None = Field(None, gt=0)
    """Lambda of the advantages by response length l: 1 - 1 / (alpha l) (Yue et al. 2025, VAPO: 0.05); None = lam."""

    # Losses
    cliprange: float = Field(0.2, gt=0)
    """A token's probability ratio below 1 - this, or above 1 + this, gets no more gradient."""
    cliprange_high: float | None = Field(None, gt=0)
    """The upper range by itself (Yu et al. 2025, DAPO: 0.28 leaves rare tokens room to grow); None = cliprange."""
    dual_clip: float | None = Field(None, gt=1)
    """Largest ratio that counts where the advantage is negative (Ye et al. 2020: 3); None = no limit."""
    cliprange_value: float | None = Field(0.2, gt=0)
    """A value further than this from the rollout's is clipped; None = not."""
    vf_coef: float = Field(0.1, gt=0)
    """Weight of the value loss against the policy's on a shared trunk. Parameters of its own are scaled by Adam: there
    it decides only when max_grad_norm cuts in, and value_learning_rate sets the speed."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy of the next-token distribution, in nats, that the loss rewards; 0.001 to 0.01 is usual."""
    ptx_coef: Share = 0.0
    """c in (1 - c) policy loss + c language-model loss on `ptx` data, or `sft` where there are none: keeps what the
    policy could before (Ouyang et al. 2022; weights as in ColossalChat)."""
    ptx_batch_size: int = Field(16, ge=1)
    """Records of the language-model loss in each optimizer step, all processes together."""

    # Rollouts
    old_logprobs: Literal["forward", "generation"] | None = None
    """Where the old policy's logprobs come from: a forward like those that train, so that the first ratio is exactly 1,
    or generation, which saves one forward of an iteration and in float32 agrees to rounding. None = generation where
    hf generates with float32 weights, else forward."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Most tokens, padding included, of one forward and backward; sizes the activations. Not the result, only speed.
    None = 8192 on a GPU; on a CPU, where more activations than its caches hold cost time, 512, and 1024 below a hidden
    size of 256."""

    # While it runs
    evaluate_every: int = Field(10, ge=0)
    """Iterations between evaluations on held-out prompts; 0 = only before the first and after the last."""
    num_eval_prompts: int = Field(64, ge=1)
    """Held-out prompts to answer."""
    num_sample_generations: int = Field(4, ge=0)
    """Answers of each evaluation that are shown in the log and written to samples.jsonl."""
    checkpoint_every: int = Field(10, ge=1)
    """Iterations between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """The newest so many stay, and the best."""
    best_metric: str = "eval_score"
    """The best checkpoint is that of the evaluation where this is largest; `-eval_kl` looks for the smallest."""
    use_best: bool = False
    """The result is the best checkpoint instead of the last iteration's."""
    guard: GuardConfig | None = None
    """What sends the run back to its last good checkpoint, with smaller steps, when it goes astray; None = a metric
    that is not finite ends it, and nothing else is watched."""
    trackers: list[str] = Field(default_factory=list)
    """Where metrics also go, through accelerate: tensorboard, wandb, trackio, mlflow, ...; each needs its package."""
    callbacks: list[str] = Field(default_factory=list)
    """Callables `package.module:function` called after each iteration; see tasks/ppo/train.py, Callback."""
    seed: int = 0
    """Of prompt order, sampling, mini-batches and fresh adapters."""

    def with_less_memory(self, device: Device) -> Self | None:
        """Half the tokens of a forward and backward, and half the responses that are generated at once."""
        tokens = self.micro_batch_tokens or DEFAULT_TOKENS[device]
        if tokens == 1 and self.rollout_batch_size == 1:
            return None
        changes = {
            "micro_batch_tokens": max(1, tokens // 2),
            "rollout_batch_size": max(1, self.rollout_batch_size // 2),
        }
        return self.model_copy(update=changes)

    @property
    def num_iterations(self) -> int:
        """Rollouts of the whole run."""
        return -(-self.total_episodes // self.batch_size)

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps of one iteration."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def measures_old_logprobs(self) -> bool:
        """Whether the old policy's logprobs take a forward of their own."""
        if self.old_logprobs is not None:
            return self.old_logprobs == "forward"
        return self.rollout_engine != "hf" or self.dtype != "float32" or self.tuning == "qlora"

    def sources(self) -> dict[str, str]:
        """Input name -> hub name, folder or artifact of everything that is fetched for this config."""
        options = {
            "start_policy": self.start_policy,
            "start_value": self.start_value,
            "reference": self.reference_model,
        }
        options |= {reward.input_name: reward.source for reward in self.rewards if isinstance(reward, ModelReward)}
        return {name: source for name, source in options.items() if source is not None}

    @model_validator(mode="after")
    def _check_algorithm(self) -> Self:
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by num_mini_batches {self.num_mini_batches}. "
                f"Set batch_size to a multiple of {self.num_mini_batches}."
            )
        if self.value_pretraining_iterations >= self.num_iterations:
            raise ValueError(
                f"value_pretraining_iterations {self.value_pretraining_iterations} leaves none of the "
                f"{self.num_iterations} iterations (total_episodes / batch_size) to the policy. Lower it."
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_in loss needs kl_estimator k2 or k3: the gradient of k1 is 0 on average.")
        if self.cliprange_high is not None and self.cliprange_high < self.cliprange:
            raise ValueError(f"cliprange_high {self.cliprange_high} is below cliprange {self.cliprange}. Raise it.")
        if self.guard is not None:
            self.guard.check(self.rewards)
        if self.rollout_engine == "vllm" and self.old_logprobs == "generation":
            raise ValueError("rollout_engine vllm rounds otherwise than the policy. Set old_logprobs forward.")
        if self.rollout_engine == "vllm" and (self.tuning != "lora" or self.lora.use_dora):
            raise ValueError("rollout_engine vllm gets the policy as a LoRA adapter. Set tuning lora, no use_dora.")
        return self
