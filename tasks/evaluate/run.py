"""SFT against PPO on held-out prompts: who wins, by how much, and at what distance from SFT.

    python -m tasks.evaluate.run --config config.json --input data=DIR --input sft=DIR --input ppo=DIR \\
        [--input reward_model=DIR] --output DIR

Writes report.md (the page to read), evaluation.json (every figure), samples.json (every answer), scores.png and
differences.png, and report.json (the figures with three samples).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.evaluate.answers import choose_records, compare, load_contest
from tasks.evaluate.comparison import MEANINGS, Comparison, concatenate, figures, samples
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.plots import plot_differences, plot_judgements
from tasks.evaluate.report import markdown, verdict
from tasks.model_files import write_json
from tasks.modeling import quiet_libraries
from tasks.program import require, run_program
from tasks.tracking import MetricsLog

NUM_REPORTED_SAMPLES = 3


def main(config: EvaluateConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Compare the models in `inputs` and write the evaluation to `output`."""
    quiet_libraries()
    require(inputs, "data", "sft", "ppo", *(["reward_model"] if "reward_model" in inputs else []))
    records = choose_records(inputs["data"], config.num_prompts, config.seed)
    contest = load_contest(config, inputs)
    log = MetricsLog(output)
    num_batches = -(-len(records) // config.batch_size)
    parts: list[Comparison] = []
    for step, part in enumerate(compare(contest, records, config), start=1):
        parts.append(part)
        log.write(step, num_batches, _means(concatenate(parts)))
    comparison = concatenate(parts)
    result = figures(comparison, config.num_bootstrap, config.seed, contest.tokenizer.decode)
    settings = {
        "config": config.model_dump(mode="json"),
        "conversational": not isinstance(records[0]["prompt"], str),
    }
    write_evaluation(comparison, result, settings, config.num_samples, output)
    print("\n".join(verdict(result, comparison.judges)))


def write_evaluation(
    comparison: Comparison,
    result: Mapping[str, object],
    settings: Mapping[str, object],
    num_samples: int,
    output: Path,
) -> None:
    """Fill `output` with the page, the figures, the samples and the pictures; report.json comes last."""
    answers = samples(comparison)
    page = markdown(result, comparison.judges, answers[:num_samples])
    (output / "report.md").write_text(page)
    (output / "samples.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
    plot_judgements(comparison, output / "scores.png")
    plot_differences(comparison, output / "differences.png")
    write_json(output / "evaluation.json", {**result, "about": MEANINGS, **settings})
    write_json(output / "report.json", {**result, "samples": answers[:NUM_REPORTED_SAMPLES]})


def _means(comparison: Comparison) -> dict[str, float]:
    """Progress so far: every judge's mean over both models' answers, and the KL."""
    means = {}
    for judge in comparison.judges:
        means[f"{judge}_before"] = float(comparison.before.judgements[judge].mean())
        means[f"{judge}_after"] = float(comparison.after.judgements[judge].mean())
    return {**means, "kl": float(comparison.kl.mean())}


if __name__ == "__main__":
    run_program(main, EvaluateConfig)
