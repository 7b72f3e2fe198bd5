"""What a reward model is worth before PPO follows it: figures, thresholds, and a verdict.

    python -m tasks.certify.run --config config.json --input data=DIR --input model=DIR --input reward_model=DIR \\
        [--input second_reward_model=DIR] --output DIR

Inputs: data (kind `data`: held-out prompts, and pairs and SFT records where it has them), model (kind `model`, the SFT
model that PPO starts from), the reward model and maybe a second one.
Output: kind `certificate`: report.json, report.md, certificate.png. One with failed thresholds is a certificate too:
who starts PPO reads its verdict. Nothing in it tells the time: PPO's artifact is named by its digest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tasks.certify.config import CertifyConfig
from tasks.certify.figures import Figures, Measured, Scored, figures_of
from tasks.certify.matching import Match, template_match, tokenizer_match
from tasks.certify.plots import plot_certificate
from tasks.certify.readers import Reader, make_reader
from tasks.certify.report import Page, markdown, verdict
from tasks.certify.responses import (
    Response,
    answer_prompts,
    choose_prompts,
    extreme_samples,
    read_demonstrations,
    read_pairs,
)
from tasks.models.model_files import context_length, require_kind, write_json
from tasks.models.modeling import load_tokenizer, quiet_libraries
from tasks.parts import part_of
from tasks.program import require, run_program
from tasks.prompts import Prompt, longest_prompt, read_prompts
from tasks.rewards.config import OWN_MODEL, SECOND_MODEL, ModelReward
from tasks.rewards.sources import check_prompts, check_rewards
from tasks.rules import ACCEPTED, FAILED, Verdict, is_open, judge_rules

NUM_SAMPLES = 3


def main(config: CertifyConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Measure the reward model in `inputs` and leave its certificate in `output`; report.json comes last."""
    quiet_libraries()
    require(inputs, "data", "model", OWN_MODEL, *inputs)
    require_kind(inputs["model"], "model")
    tokenizer = load_tokenizer(inputs["model"])
    template = config.conversation_template
    if template is not None:
        template.apply_to(tokenizer)
    prompts = _prompts(config, inputs, tokenizer)
    readers = [
        make_reader(inputs[name], inputs["model"], tokenizer, template)
        for name in (OWN_MODEL, SECOND_MODEL)
        if name in inputs
    ]
    matches = {
        "tokenizer": tokenizer_match(tokenizer, readers[0]),
        "template": template_match(tokenizer, readers[0], template, prompts),
    }
    groups = _responses(config, inputs, tokenizer, readers)
    groups["sft"] = answer_prompts(config, inputs["model"], prompts, tokenizer)
    measured = _measured(config, groups, readers)
    figures = _with_matches(figures_of(measured, config.num_bins, config.matched_within), matches)
    page = Page(
        figures=figures,
        verdicts=judge(config, figures),
        tokenizer=matches["tokenizer"].verdict,
        template=matches["template"].verdict,
        samples=extreme_samples(groups["sft"], measured.groups["sft"].scores.tolist(), NUM_SAMPLES),
    )
    _write(page, measured, output)


def judge(config: CertifyConfig, figures: Figures) -> list[Verdict]:
    """The verdict of every threshold; one that failed and is named in `accept` is accepted."""
    verdicts = judge_rules(config.rules(), {**figures.by_name, "not_measured": figures.missing})
    why = "the config accepts it"
    return [
        one.model_copy(update={"verdict": ACCEPTED, "why": why})
        if one.verdict == FAILED and one.measures in config.accept
        else one
        for one in verdicts
    ]


def _prompts(config: CertifyConfig, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The held-out prompts to answer, after the reward models were found to be what PPO takes."""
    rewards = [ModelReward(), *([ModelReward(model=SECOND_MODEL)] if SECOND_MODEL in inputs else [])]
    check_rewards(rewards, inputs, tokenizer)
    template = config.conversation_template
    longest = longest_prompt(context_length(inputs["model"]), config.sampling.response_length, None)
    prompts = choose_prompts(config, read_prompts(inputs["data"], "test", tokenizer, longest, template))
    check_prompts(rewards, inputs, tokenizer, prompts, template)
    return prompts


def _responses(
    config: CertifyConfig,
    inputs: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    readers: Sequence[Reader],
) -> dict[str, Sequence[Response]]:
    """The data's responses by kind, without what is longer than a reward model can read; how many is printed."""

    def fits(response: Response) -> bool:
        return all(reader.fits(response) for reader in readers)

    groups: dict[str, Sequence[Response]] = {}
    most = config.num_pairs
    for split, prefix in (("test", ""), ("train", "train_")):
        pairs = read_pairs(config, inputs["data"], split, tokenizer, most)
        kept = [pair for pair in pairs if all(map(fits, pair))]
        print(f"preferences_{split}: {len(kept)} pairs; left out as too long: {len(pairs) - len(kept)}")
        most = len(kept)
        if kept:
            groups[f"{prefix}chosen"], groups[f"{prefix}rejected"] = zip(*kept, strict=True)
    if demonstrations := [one for one in read_demonstrations(config, inputs["data"], tokenizer) if fits(one)]:
        groups["demonstrations"] = demonstrations
    return groups


def _measured(config: CertifyConfig, groups: Mapping[str, Sequence[Response]], readers: Sequence[Reader]) -> Measured:
    """The scores of every group by each reward model, one of which is in memory at a time."""
    by_reader = [reader.scores(groups, config) for reader in readers]
    return Measured(
        groups={
            name: Scored(
                np.array([response.num_tokens for response in responses], dtype=np.float64),
                *(scores[name] for scores in by_reader),
            )
            for name, responses in groups.items()
        },
        splits=np.array(
            [part_of(response.prompt, config.num_splits, "split") for response in groups.get("chosen", [])],
            dtype=np.int64,
        ),
        ended=[response.ended for response in groups["sft"]],
    )


def _with_matches(figures: Figures, matches: Mapping[str, Match]) -> Figures:
    """The figures with those of tokenizer and template."""
    found = {f"{name}_match": match.share for name, match in matches.items() if match.share is not None}
    missing = {f"{name}_match": match.verdict for name, match in matches.items() if match.share is None}
    return dataclasses.replace(figures, by_name={**figures.by_name, **found}, missing={**figures.missing, **missing})


def _write(page: Page, measured: Measured, output: Path) -> None:
    (output / "report.md").write_text(markdown(page))
    plot_certificate(measured.groups, page.figures.reliability, output / "certificate.png")
    report: dict[str, Any] = {
        "verdict": verdict(page.verdicts),
        "is_open": is_open(page.verdicts),
        "accepted": [one.measures for one in page.verdicts if one.verdict == ACCEPTED],
        **page.figures.by_name,
        "verdicts": [one.model_dump() for one in page.verdicts],
        "reliability": [dataclasses.asdict(one) for one in page.figures.reliability],
        "split_accuracies": list(page.figures.split_accuracies),
        "tokenizer": page.tokenizer,
        "template": page.template,
        "not_measured": dict(page.figures.missing),
        "samples": [dataclasses.asdict(one) for one in page.samples],
    }
    write_json(output / "report.json", report)
    print(report["verdict"])


if __name__ == "__main__":
    run_program(main, CertifyConfig)
