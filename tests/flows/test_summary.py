"""What a person sees at the end of a run, made from stages' reports."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.summary import summarise
from tasks.artifacts import Artifact, publish, store_at
from tasks.champion import Champion
from tasks.rules import Verdict
from tasks.runner import Workplace

SAMPLE = {"prompt": "Hello?", "before": " No.", "after": " Yes, gladly."}
SCORED = {
    "judge": "score",
    "judges": ["score", "rule"],
    "champion_win_rate": 0.625,
    "score_before": -0.5,
    "score_after": 1.25,
    "score_win_rate": 0.8,
    "rule_before": 1.0,
    "rule_after": 3.0,
    "rule_win_rate": 0.75,
    "win_rate": 0.8,
    "win_rate_low": 0.7,
    "win_rate_high": 0.9,
    "kl": 4.5,
    "samples": [SAMPLE | {"score_before": -1.0, "score_after": 2.0}],
}
VERDICTS = [Verdict(measures="tax", demand="≤ 0.05", measured=0.01, verdict="passed")]
CERTIFIED = [
    {"measures": "ece", "demand": "≤ 0.25", "measured": 0.1, "verdict": "passed"},
    {"measures": "length_bias", "demand": "≤ 0.2", "measured": 0.3, "verdict": "accepted"},
]
CHAMPION = Champion(uri="s3://store/champion", digest="1", model="2", run="r", since="now", figures={})
BY_RULE_ALONE = {key: value for key, value in SCORED.items() if not key.startswith("score_")} | {
    "judge": "rule",
    "judges": ["rule"],
    "samples": [SAMPLE | {"rule_before": 0.0, "rule_after": 1.0}],
}


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path / "work", tmp_path / "accelerate.yaml")


def artifact(place: Workplace, stage: str, report: dict[str, Any]) -> Artifact:
    folder = place.folder / stage
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return publish(place.store, folder, stage=stage, key="0" * 32, kind="any", config={}, inputs={})


def test_the_figures_come_from_the_stages_reports(place: Workplace) -> None:
    made = {
        "sft": artifact(place, "sft", {"eval_loss": 2.5}),
        "reward_model": artifact(place, "reward_model", {"pair_accuracy": 0.9}),
        "certificate": artifact(place, "certify", {"verdicts": CERTIFIED}),
        "evaluate": artifact(place, "evaluate", SCORED),
        "export": artifact(place, "export", {}),
    }
    summary = summarise(made, VERDICTS, CHAMPION, place)
    assert (summary.sft_eval_loss, summary.reward_pair_accuracy) == (2.5, 0.9)
    assert (summary.score_before, summary.score_after, summary.kl) == (-0.5, 1.25, 4.5)
    assert (summary.win_rate_low, summary.win_rate, summary.win_rate_high) == (0.7, 0.8, 0.9)
    assert {name: metric.model_dump() for name, metric in summary.metrics.items()} == {
        "rule": {"before": 1.0, "after": 3.0, "win_rate": 0.75}
    }
    assert summary.export_uri == made["export"].uri
    page = summary.as_markdown()
    assert "| score before → after PPO | -0.500 → 1.250 |" in page
    assert "- PPO (+2.00): Yes, gladly." in page
    assert f"~~~~text\n└─ export (any) {made['export'].digest[:12]}" in page
    assert "| win rate over the champion | 0.625 (s3://store/champion) |" in page
    assert "| gate | 1 passed |" in page
    assert "| certificate | 1 passed, 1 accepted |" in page
    assert "| `tax` | ≤ 0.05 | 0.01 | passed |  |" in page


def test_without_sft_and_reward_model_the_rule_judges(place: Workplace) -> None:
    made = {
        "sft": Artifact(uri="hf://org/name@0", kind="model", digest="0" * 64),
        "reward_model": None,
        "evaluate": artifact(place, "evaluate", BY_RULE_ALONE),
        "export": artifact(place, "export", {}),
    }
    summary = summarise(made, [], None, place)
    assert (summary.sft_eval_loss, summary.reward_pair_accuracy) == (None, None)
    assert (summary.score_before, summary.score_after) == (1.0, 3.0)
    assert summary.metrics == {}
    assert summary.figures()["certificate"] == "none"
    assert summary.figures()["SFT loss, held out"] == "not measured"
    assert summary.figures()["win rate over the champion"] == "no champion yet"
