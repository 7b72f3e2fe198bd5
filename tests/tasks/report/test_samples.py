"""Answers side by side."""

from pathlib import Path

from tasks.artifacts import store_at
from tasks.report.facts import gather
from tasks.report.samples import sample_groups
from tasks.word_diff import Change
from tests.tasks.report.made_run import make_run


def test_canaries_are_told_as_changes_and_samples_with_their_marks(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    evaluation = gather(store, make_run(store, tmp_path)).stage("evaluate")
    assert evaluation is not None
    canaries, samples = sample_groups(evaluation)
    assert [answer.label for answer in canaries.samples[0].answers] == ["SFT", "Champion", "PPO"]
    sft, champion, ppo = canaries.samples[0].answers
    assert sft.changes == [Change(kept="Yes it is.")]
    assert champion.changes == [Change(gone="Yes it is.", come="No.")]
    assert ppo.changes == [Change(kept="Yes it"), Change(gone=" is.", come=" is early.")]
    assert [answer.marks for answer in samples.samples[0].answers] == ["score -1.00", "score 0.50", "score 2.25"]
    assert samples.samples[0].answers[2].changes == [Change(kept="Yes it is early.")]
