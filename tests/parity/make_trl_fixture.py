"""Write trl_1_12.safetensors and trl_1_12.json beside this file: what TRL 1.12.0's PPOTrainer computes on tiny models.

TRL has no PPO after 1.12, so it runs in an environment of its own. From the project's root (the last line takes half a
minute):

    python3.11 -m venv ../trl-1.12
    ../trl-1.12/bin/pip install torch==2.13.0
    ../trl-1.12/bin/pip install trl==1.12.0 "transformers==5.23.*" "accelerate==1.15.*" "peft==0.21.*" datasets
    ../trl-1.12/bin/python -m tests.parity.make_trl_fixture

The trainer runs as it is. Functions that it calls are wrapped to copy its local variables, and hooks on its optimizer
copy gradients: nothing in the fixture is computed here.

Names in the fixture: `weights.MODEL.PARAMETER`, and for each run `RUN.TENSOR`, `RUN.micro_batch_N.TENSOR`,
`RUN.step_N.gradients.MODEL.PARAMETER` and `RUN.trained.MODEL.PARAMETER`; MODEL is policy, reference, value or reward.
Shapes: B episodes, b of a micro-batch, P prompt tokens (padded on the left), R response tokens.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from accelerate import debug_launcher
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.parity.tiny_models import EOS, MODEL, make_models, make_prompts, make_tokenizer

FIXTURE = Path(__file__).with_name("trl_1_12")
COMMAND = "../trl-1.12/bin/python -m tests.parity.make_trl_fixture"
PACKAGES = ("torch", "trl", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")

SETTINGS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "total_episodes": 8,
    "response_length": 12,
    "stop_token": "eos",
    "temperature": 0.7,
    "kl_coef": 0.1,
    "kl_estimator": "k1",
    "whiten_rewards": False,
    "missing_eos_penalty": 1.0,
    "gamma": 0.9,
    "lam": 0.8,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.1,
}
NUM_PROMPTS = 16
FULL, EARLY = 88, 63  # seeds with which all responses have the full length, and with which some end early
RUNS: dict[str, dict[str, Any]] = {
    "full": {"seed": FULL, "num_ppo_epochs": 2},
    "full_k3_whitened": {"seed": FULL, "kl_estimator": "k3", "whiten_rewards": True},
    "early": {"seed": EARLY},
    "early_k3_whitened": {"seed": EARLY, "kl_estimator": "k3", "whiten_rewards": True},
    "early_micro_batches": {"seed": EARLY, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}
TWO_PROCESSES = {"seed": EARLY, "total_episodes": 16}
BATCHES = [(8, 1, 1), (8, 1, 4), (2, 4, 1), (2, 4, 4), (4, 2, 4)]  # rows of a micro-batch, accumulated, mini-batches

ROLLOUT = {
    "queries": "queries",  # [B, P]
    "responses": "responses",  # [B, R] as generated
    "postprocessed_responses": "postprocessed_responses",  # [B, R] padded after EOS
    "sequence_lengths": "sequence_lengths",  # [B] index of the response's last token
    "logprobs": "logprobs",  # [B, R]
    "ref_logprobs": "ref_logprobs",  # [B, R]
    "values": "values",  # [B, R]
    "scores": "scores",  # [B] less the penalty for a missing EOS
    "kl": "kl",  # [B, R]
    "non_score_reward": "non_score_reward",  # [B, R]
    "rewards": "rewards",  # [B, R] whitened where the run whitens them
    "advantages": "advantages",  # [B, R] before whitening
    "returns": "returns",  # [B, R]
}
MICRO_BATCH = {
    "rows": "micro_batch_inds",  # [b]
    "whitened_advantages": "advantages",  # [B, R]
    "logprobs": "new_logprobs",  # [b, R]
    "values": "vpred",  # [b, R]
    "policy_loss": "pg_loss",  # []
    "value_loss": "vf_loss",  # []
}
LOGGED = (
    "objective/kl",
    "objective/scores",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


def main() -> None:
    transformers.logging.set_verbosity_error()
    tensors = {f"weights.{name}": tensor for name, tensor in named_parameters(make_models()).items()}
    logged = {}
    for run, settings in RUNS.items():
        trainer = make_trainer(**settings)
        tensors |= {f"{run}.{name}": tensor for name, tensor in record(trainer).items() if is_kept(run, name)}
        logged[run] = {name: float(trainer.state.log_history[0][name]) for name in LOGGED}
    check_lengths(tensors)
    tensors |= two_processes()
    description = {
        "command": COMMAND,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "model": MODEL,
        "settings": SETTINGS,
        "runs": {**RUNS, "two_processes": TWO_PROCESSES},
        "logged": logged,
        "optimizer_steps": [count_steps(*batch, last) for last in (False, True) for batch in BATCHES],
    }
    save_file(tensors, FIXTURE.with_suffix(".safetensors"))
    FIXTURE.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")


def is_kept(run: str, name: str) -> bool:
    """Whether a test reads the tensor: the largest, where none does, stay out of the fixture."""
    if name.startswith("trained."):
        return run == "full"
    return "gradients" not in name or run != "early_micro_batches"


def make_trainer(num_prompts: int = NUM_PROMPTS, **settings: Any) -> PPOTrainer:
    np.random.seed(0)  # orders the mini-batches: the trainer seeds torch alone
    parts = make_models()
    prompts = Dataset.from_dict({"input_ids": make_prompts(num_prompts)})
    config = PPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "trl-fixture"),  # stays empty
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        num_sample_generations=0,
        **(SETTINGS | settings),
    )
    return PPOTrainer(
        config,
        make_tokenizer(),
        parts["policy"],
        parts["reference"],
        parts["reward"],
        prompts,
        parts["value"],
        eval_dataset=prompts,
    )


def record(trainer: PPOTrainer) -> dict[str, Tensor]:
    """What `trainer.train()` has in its variables, gives to its optimizer and leaves in its weights."""
    torch.set_num_threads(1)  # the same rounding everywhere; and a fork after threads would hang
    tensors: dict[str, Tensor] = {}
    trained = {"policy": trainer.policy_model, "value": trainer.value_model}
    counts = {"micro_batch": 0, "step": 0}

    def keep(prefix: str, found: Mapping[str, Any]) -> None:
        tensors.update({prefix + name: torch.as_tensor(tensor).detach().clone() for name, tensor in found.items()})

    def keep_rollout(variables: Mapping[str, Any]) -> None:
        if "returns" in variables:
            keep("", {name: variables[theirs] for name, theirs in ROLLOUT.items()})
        else:
            keep("", {"rewards_before_whitening": variables["rewards"]})

    def keep_losses(variables: Mapping[str, Any]) -> None:
        found = {name: variables[theirs] for name, theirs in MICRO_BATCH.items()}
        keep(f"micro_batch_{counts['micro_batch']}.", found)
        counts["micro_batch"] += 1

    def keep_gradients(*_: Any) -> None:
        gradients = {name: parameter.grad for name, parameter in named_parameters(trained).items()}
        keep(f"step_{counts['step']}.gradients.", gradients)
        counts["step"] += 1

    trainer.optimizer.optimizer.register_step_pre_hook(keep_gradients)
    with (
        watched(ppo_trainer, "masked_whiten", keep_rollout),
        watched(trainer.accelerator, "backward", keep_losses),
    ):
        trainer.train()
    keep("trained.", named_parameters(trained))
    return tensors


@contextmanager
def watched(owner: Any, name: str, look: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """While in the context, `look` gets the caller's local variables at each call of `owner.name`."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        look(sys._getframe(1).f_locals)
        return original(*args, **kwargs)

    with patch.object(owner, name, wrapped):
        yield


def two_processes() -> dict[str, Tensor]:
    """Advantages before and after whitening, of each of two processes with half of the batch."""
    with tempfile.TemporaryDirectory() as folder:
        debug_launcher(save_share, args=(folder,), num_processes=2)
        shares = {f"rank_{rank}": load_file(Path(folder) / f"{rank}.safetensors") for rank in range(2)}
    return {f"two_processes.{rank}.{name}": tensor for rank, share in shares.items() for name, tensor in share.items()}


def save_share(folder: str) -> None:
    """Run one process of two and write what it saw, as RANK.safetensors."""
    trainer = make_trainer(**TWO_PROCESSES)
    tensors = record(trainer)
    kept = ("sequence_lengths", "advantages", "micro_batch_0.whitened_advantages")
    path = Path(folder) / f"{trainer.accelerator.process_index}.safetensors"
    save_file({name.removeprefix("micro_batch_0."): tensors[name] for name in kept}, path)


def count_steps(rows: int, accumulated: int, num_mini_batches: int, last: bool) -> dict[str, int | bool]:
    """Optimizer steps of one epoch over 8 episodes; `last`: they are the last batch of the prompts."""
    settings = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulated,
        "num_mini_batches": num_mini_batches,
    }
    recorded = record(make_trainer(8 if last else NUM_PROMPTS, seed=FULL, **settings))
    steps = {name.split(".")[0] for name in recorded if name.startswith("step_")}
    return {**settings, "last_batch_of_the_prompts": last, "optimizer_steps": len(steps)}


def check_lengths(tensors: Mapping[str, Tensor]) -> None:
    """Stop unless the seeds still give what the runs are named for: each way in which a response can end."""
    last = SETTINGS["response_length"] - 1
    endings = {}
    for run in ("full", "early"):
        ended = (tensors[f"{run}.postprocessed_responses"] == EOS).any(dim=1)
        endings[run] = set(zip(tensors[f"{run}.sequence_lengths"].tolist(), ended.tolist(), strict=True))
    if endings["full"] != {(last, False), (last, True)}:
        raise SystemExit(f"FULL {FULL}: expected full responses only, of both sorts, found {endings['full']}.")
    expected = {(last, False), (last, True), (last - 1, True), (0, True)}
    if not expected <= endings["early"]:
        raise SystemExit(f"EARLY {EARLY}: expected {expected} and others, found {endings['early']}.")


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters by MODEL.PARAMETER."""
    return {
        f"{model}.{name}": tensor for model, module in modules.items() for name, tensor in module.named_parameters()
    }


if __name__ == "__main__":
    main()
