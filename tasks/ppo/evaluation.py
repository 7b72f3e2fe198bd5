"""The policy's answers to held-out prompts, while it trains."""

from collections.abc import Sequence
from pathlib import Path

from tasks.ppo.metrics import rollout_metrics, to_floats
from tasks.ppo.rollout import Rollout, Run, decode_responses, roll_out
from tasks.prompts import Prompt
from tasks.rewards.sources import check_finite
from tasks.samples import Sample, append_samples, print_samples

SAMPLES_FILE = "samples.jsonl"
LEFT_OUT = ("kl_k2", "value")


def evaluate_policy(run: Run, prompts: Sequence[Prompt], step: int, output: Path) -> dict[str, float]:
    """Means over one episode of each prompt, named eval_*; a few are printed and appended to OUTPUT/samples.jsonl.

    Sampled as in training, with the same numbers each time, so that two evaluations differ only by the policy.
    Raises InputError for a score that is not finite: there would be no telling which policy is the best.
    """
    rollout = roll_out(run, prompts, "evaluation", run.config.seed)
    for name, scores in rollout.scores_by_reward.items():
        check_finite(scores.tolist(), f"rewards.{name}")
    if run.processes.is_main and run.config.num_sample_generations:
        samples = _samples(run, prompts, rollout, step)
        print_samples(samples, f"held-out prompts after iteration {step}")
        append_samples(output / SAMPLES_FILE, samples)
    metrics = to_floats(rollout_metrics(rollout))
    return {f"eval_{name}": value for name, value in metrics.items() if name not in LEFT_OUT}


def _samples(run: Run, prompts: Sequence[Prompt], rollout: Rollout, step: int) -> list[Sample]:
    count = min(run.config.num_sample_generations, len(prompts))
    responses = decode_responses(run, rollout.response_ids[:count], rollout.mask[:count])
    rows = zip(prompts[:count], responses, rollout.scores[:count].tolist(), strict=True)
    return [Sample(step, prompt.text, response, score) for prompt, response, score in rows]
