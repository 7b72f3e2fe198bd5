"""A run of the chain whose artifacts hold what a page is made of, and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact, Cost, Store, publish
from tasks.retention.runs import RunRecord, StageRun
from tasks.rules import Verdict

CERTIFICATE_PNG = (  # one pixel
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU\x00\x00\x00\nIDATx"
    b"\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
)
SAMPLE = {
    "prompt": "Is it late?",
    "before": " Yes it is.",
    "champion": " No.",
    "after": " Yes it is early.",
    **{"score_before": -1.0, "score_champion": 0.5, "score_after": 2.25},
}
EVALUATION = {
    **{
        "num_prompts": 200,
        "judge": "score",
        "judges": ["score"],
        "kl": 4.5,
        "kl_low": 4.0,
        "kl_high": 5.0,
        "tax": 0.031,
    },
    **{"win_rate": 0.75, "win_rate_low": 0.7, "win_rate_high": 0.8},
    **{"score_win_rate": 0.75, "score_win_rate_low": 0.7, "score_win_rate_high": 0.8},
    **{"champion_win_rate": 0.52, "champion_win_rate_low": 0.48, "champion_win_rate_high": 0.56},
    **{"champion_score_win_rate": 0.52, "champion_score_win_rate_low": 0.48, "champion_score_win_rate_high": 0.56},
    **{"score_before": -0.5, "score_after": 1.25, "score_champion": 1.0},
    **{"response_length_before": 20.0, "response_length_after": 22.0, "response_length_champion": 21.0},
}
CERTIFICATE = {
    "verdict": "PPO may follow this reward model: no threshold failed.",
    "pair_accuracy": 0.875,
    "verdicts": [
        {"measures": "pair_accuracy", "demand": "≥ 0.6", "measured": 0.875, "verdict": "passed", "why": ""},
        {"measures": "ece", "demand": "≤ 0.1", "measured": 0.2, "verdict": "accepted", "why": "the config accepts it"},
    ],
}
METRICS = {
    "sft": [{"train_loss": 2.0}, {"train_loss": 1.5}, {"train_loss": 1.25, "eval_loss": 1.375}],
    "reward_model": [{"train_loss": 0.7, "accuracy": 0.5}, {"train_loss": 0.5, "accuracy": 0.75}],
    "ppo": [{"score": 0.0, "kl": 0.0, "eval_score": 0.125}, {"score": 1.0, "kl": 2.5}, {"score": 1.5, "kl": 4.0}],
}
REPORTS: Mapping[str, Mapping[str, Any]] = {
    "prepare_data": {"num_records": 12},
    "sft": {"eval_loss": 1.375},
    "reward_model": {"pair_accuracy": 0.875},
    "second_reward_model": {"pair_accuracy": 0.75},
    "certify": CERTIFICATE,
    "ppo": {"num_rewinds": 0, "rewinds": []},
    "evaluate": EVALUATION,
    "export": {},
}
INPUTS = {
    "sft": ("prepare_data",),
    "reward_model": ("prepare_data", "sft"),
    "second_reward_model": ("prepare_data", "sft"),
    "certify": ("prepare_data", "sft", "reward_model", "second_reward_model"),
    "ppo": ("prepare_data", "sft", "reward_model", "certify"),
    "evaluate": ("prepare_data", "sft", "ppo", "reward_model"),
    "export": ("ppo", "evaluate"),
}
PASSED = Verdict(measures="tax", demand="≤ 0.05", measured=0.031, verdict="passed")
FAILED = Verdict(measures="champion_win_rate_low", demand="≥ 0.49", measured=0.48, verdict="failed")
CHAMPION = Artifact(uri="file:///elsewhere/champion", kind="export", digest="c" * 64)
COST = Cost(seconds=83.0, peak_rss_bytes=3 * 2**29)


def make_run(store: Store, folder: Path, leave_out: tuple[str, ...] = (), **changed: Any) -> RunRecord:
    """The record of a run whose stages are in the store, but for those in `leave_out`.

    `changed` replaces fields of the record, or the sample, each stage's config, PPO's report; `second` = True adds a
    second reward model.
    """
    sample = {**SAMPLE, **changed.pop("sample", {})}
    config = changed.pop("config", {})
    if not changed.pop("second", False):
        leave_out = (*leave_out, "second_reward_model")
    made: dict[str, Artifact] = {}
    for name, report in {**REPORTS, "ppo": changed.pop("ppo", REPORTS["ppo"])}.items():
        if name not in leave_out:
            inputs = {each: made[each] for each in INPUTS.get(name, ()) if each in made}
            inputs |= {"champion": CHAMPION} if name == "evaluate" else {}
            made[name] = _publish(store, folder / name, name, report, inputs, config, sample)
    fields: dict[str, Any] = {
        "pipeline": "nightly",
        "run": "3f2a-17",
        "started": "2026-03-01T02:00:00+00:00",
        "ended": "2026-03-01T03:01:30+00:00",
        "state": "completed",
        "artifacts": {artifact.uri: artifact.digest for artifact in (*made.values(), CHAMPION)},
        "stages": [
            StageRun(stage=name.removeprefix("second_"), uri=artifact.uri, already_done=name == "sft")
            for name, artifact in made.items()
        ],
        "verdicts": [PASSED],
        "figures": {name: value for name, value in EVALUATION.items() if isinstance(value, int | float)},
        "options": {"ppo": {"kl_coef": 0.1}},
    }
    if "export" in made:
        fields["champion"] = made["export"].uri
    record = RunRecord(**fields | changed)
    store.write(record.name, record.model_dump_json().encode())
    return record


def _publish(
    store: Store,
    folder: Path,
    name: str,
    report: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    config: Mapping[str, Any],
    sample: Mapping[str, Any],
) -> Artifact:
    stage = name.removeprefix("second_")
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    if stage == "evaluate":
        (folder / "samples.json").write_text(json.dumps([sample]))
        texts = {side: sample[side] for side in ("prompt", "before", "champion", "after")}
        (folder / "canaries.json").write_text(json.dumps([texts]))
    if stage == "certify":
        (folder / "certificate.png").write_bytes(CERTIFICATE_PNG)
    if stage in METRICS:
        records = [{"step": step, **metrics} for step, metrics in enumerate(METRICS[stage])]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    key = f"{list(REPORTS).index(name):032x}"
    options: dict[str, Any] = {"config": config, "inputs": inputs, "cost": COST}
    return publish(store, folder, stage=stage, key=key, kind="model", **options)
