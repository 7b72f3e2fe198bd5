"""The policy's answers to held-out prompts, while it trains."""

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.ppo.metrics import rollout_metrics, to_floats
from tasks.ppo.rollout import Rollout, Run, decode_responses, roll_out
from tasks.prompts import Prompt

SAMPLES_FILE = "samples.jsonl"
SHOWN = ("score", "score_std", "kl", "response_length", "ended")


def evaluate_policy(run: Run, prompts: Sequence[Prompt], step: int, output: Path) -> dict[str, float]:
    """Means over one episode of each prompt, named eval_*; a few of them are appended to OUTPUT/samples.jsonl.

    Sampled as in training, with the same numbers each time, so that two evaluations differ only by the policy.
    """
    rollout = roll_out(run, prompts, "evaluation", run.config.seed)
    if run.processes.is_main:
        _write_samples(run, prompts, rollout, step, output / SAMPLES_FILE)
    metrics = to_floats(rollout_metrics(rollout))
    return {f"eval_{name}": metrics[name] for name in SHOWN}


def _write_samples(run: Run, prompts: Sequence[Prompt], rollout: Rollout, step: int, path: Path) -> None:
    count = min(run.config.num_sample_generations, len(prompts))
    responses = decode_responses(run, rollout.response_ids[:count], rollout.mask[:count])
    scores = rollout.scores[:count].tolist()
    with path.open("a") as file:
        for prompt, response, score in zip(prompts, responses, scores, strict=False):
            sample = {"step": step, "prompt": prompt.text, "response": response, "score": score}
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
