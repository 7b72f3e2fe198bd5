"""What PPO saved in, the policy alone out: nothing of value or reward is left, and its logits are the same to the bit.

Inputs: actor_critic (kind `actor_critic`), model (kind `model`, the base; needed where PPO trained adapters).
Output: kind `model`, or `adapter` where PPO trained adapters; report.json.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig as PeftLoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tasks.actor_critic.folder import ActorCritic, load_actor_critic
from tasks.adapters import attach_adapter, load_adapter, write_adapter
from tasks.errors import InputError
from tasks.logits import difference, logits_of, random_rows
from tasks.model_files import require_kind, write_json
from tasks.modeling import load_causal_lm, load_tokenizer, quiet_libraries, save_model
from tasks.program import require, run_program
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.safe_loading import no_custom_code


class PolicyChangedError(RuntimeError):
    """The policy that was saved gives other logits than the one inside what PPO saved."""


def main(config: RemoveValueHeadConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Load the policy's tensors, save them as a plain artifact, load that, and compare the two models' logits."""
    started = time.monotonic()
    quiet_libraries()
    require(inputs, "actor_critic")
    folder = inputs["actor_critic"]
    saved = load_actor_critic(folder)
    base = _base(saved, inputs)
    before = load_policy(folder, saved, base)
    rows = random_rows(before.config.vocab_size, config.num_rows, config.seed)
    logits_before = logits_of(before, rows)
    save_policy(output, folder, saved, before)
    found = difference(
        logits_before, logits_of(load_plain(output, base, str(before.dtype).removeprefix("torch.")), rows)
    )
    if found.largest != 0:
        raise PolicyChangedError(
            f"{output}: the logits differ by up to {found.largest:.3g} from those of {folder}, over {found.num_rows} "
            "rows; they must be equal."
        )
    report = {
        "tuning": saved.tuning,
        "logits_equal": True,
        "max_abs_difference": found.largest,
        "num_rows": found.num_rows,
        "num_policy_tensors": len(saved.policy),
        "num_removed_tensors": len(saved.value),
        "seconds": round(time.monotonic() - started, 2),
    }
    write_json(output / "report.json", report)


def load_policy(folder: Path, saved: ActorCritic, base: Path | None) -> PreTrainedModel:
    """The policy in evaluation mode, built from what PPO saved."""
    if base is not None:
        adapter = PeftLoraConfig.from_pretrained(folder)
        return attach_adapter(load_causal_lm(base), adapter, saved.policy, "default", source=str(folder)).eval()
    dtype = next(iter(saved.policy.values())).dtype
    with no_custom_code(folder) as options:
        config = AutoConfig.from_pretrained(folder, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    absent, unexpected = model.load_state_dict(saved.policy, strict=False)
    missing = sorted(set(absent) - set(model.all_tied_weights_keys))
    if missing or unexpected:
        raise InputError(
            f"{folder}: the policy does not fit its config.json: missing {missing}, unexpected {unexpected}."
        )
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def save_policy(output: Path, folder: Path, saved: ActorCritic, policy: PreTrainedModel) -> None:
    """Write the policy as a `model`, or as an `adapter`, with the tokenizer of `folder`."""
    tokenizer = load_tokenizer(folder)
    if saved.tuning == "full":
        save_model(output, policy, tokenizer)
    else:
        write_adapter(output, saved.policy, PeftLoraConfig.from_pretrained(folder))
        tokenizer.save_pretrained(output)


def load_plain(output: Path, base: Path | None, dtype: str) -> PreTrainedModel:
    """The saved policy in evaluation mode, loaded as anyone loads a `model` or an `adapter`."""
    if base is None:
        return load_causal_lm(output, dtype)
    return load_adapter(load_causal_lm(base), output, "default").eval()


def _base(saved: ActorCritic, inputs: Mapping[str, Path]) -> Path | None:
    """The folder of the base model that the policy's adapter sits on; none for a full policy."""
    if saved.tuning == "full":
        return None
    require(inputs, "model")
    require_kind(inputs["model"], "model")
    return inputs["model"]


if __name__ == "__main__":
    run_program(main, RemoveValueHeadConfig)
