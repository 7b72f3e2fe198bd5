"""`python -m tasks.evaluate`."""

import json
import re

import pytest

from tasks.evaluate.__main__ import main
from tests.tasks.evaluate import tiny_chain

HERE = "tests.tasks.evaluate.tiny_chain"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return tiny_chain.write_chain(tmp_path_factory.mktemp("chain"))


def test_two_models_are_compared_on_the_prompts_of_a_file(chain, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(record) for record in tiny_chain.PROMPTS))
    (tmp_path / "options.json").write_text(json.dumps({"num_bootstrap": 100, "sampling": {"response_length": 6}}))
    words = ["--models", chain["sft"], chain["ppo"], "--prompts", tmp_path / "prompts.jsonl"]
    judges = [f"reward_model={chain['reward_model']}", f"number={HERE}:read_answer"]
    words += [word for judge in judges for word in ("--judge", judge)]

    status = main([str(word) for word in [*words, "--config", tmp_path / "options.json", "--output", tmp_path / "out"]])

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert status == 0
    assert (report["num_prompts"], report["judges"]) == (8, ["score", "number"])
    assert report["number_after"] == 4.5  # the mean of 1 to 8, which the records hold
    assert (tmp_path / "out" / "report.md").read_text().startswith("# ppo against sft\n")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"--judge": "mine"}, "--judge mine: expected NAME="),
        ({"--judge": "score=a:b"}, "metric name 'score' must be"),
        ({"--prompts": "nowhere.txt"}, "--prompts: .*cannot be read"),
        ({"--output": None}, "Nothing judges the answers"),
    ],
)
def test_what_does_not_fit_is_refused(chain, tmp_path, capsys, change, fault):
    (tmp_path / "prompts.txt").write_text("good film\n")
    options = {"--prompts": str(tmp_path / "prompts.txt"), "--output": str(tmp_path / "out")} | change
    options["--output"] = str(tmp_path / "out")
    words = [word for option in options.items() for word in option]

    assert main(["--models", str(chain["sft"]), str(chain["ppo"]), *words]) == 2
    assert re.search(fault, capsys.readouterr().err)
