import importlib.util
import json
import math

import pytest
import torch

from tasks.config import SamplingConfig
from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig, Harness
from tasks.evaluate.evaluation import measure
from tasks.evaluate.harness import check_harness, read_results
from tasks.models.modeling import load_causal_lm
from tests.tasks.evaluate import tiny_chain

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra `harness` is missing")
TASK = """
task: which_film
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["good", "bad"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
DOCUMENTS = [{"question": f"{word} film", "answer": number % 2} for number, word in enumerate(tiny_chain.WORDS)]


@pytest.fixture
def task_folder(tmp_path):
    (tmp_path / "documents.json").write_text("\n".join(json.dumps(document) for document in DOCUMENTS))
    (tmp_path / "which_film.yaml").write_text(TASK.format(file=tmp_path / "documents.json"))
    return tmp_path


@installed
def test_a_task_of_ones_own_is_done_offline_by_every_model(task_folder, tmp_path):
    chain = tiny_chain.write_chain(tmp_path / "chain")
    harness = Harness(tasks=["which_film"], include_path=str(task_folder))
    sampling = SamplingConfig(response_length=6)
    config = EvaluateConfig(num_bootstrap=100, num_timed=0, greedy=False, sampling=sampling, harness=harness)

    figures = measure(config, chain, tmp_path).figures

    for side, name in (("before", "sft"), ("after", "ppo")):
        assert figures[f"harness_which_film_acc_{side}"] == pytest.approx(accuracy(chain[name]))


def accuracy(folder):
    """The share of documents whose right word is the likelier of the two, by a plain forward pass."""
    model, tokenizer = load_causal_lm(folder), tiny_chain.make_tokenizer()
    choices = tokenizer.convert_tokens_to_ids(["good", "bad"])
    right = 0
    for document in DOCUMENTS:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(document["question"]).input_ids])).logits[0, -1, choices]
        right += int(logits.argmax()) == document["answer"]
    return right / len(DOCUMENTS)


@installed
def test_a_task_that_the_harness_does_not_know_is_refused():
    with pytest.raises(InputError, match="knows no task no_such_task"):
        check_harness(Harness(tasks=["no_such_task"]))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the extra `harness` is installed")
def test_without_the_extra_it_is_refused_with_what_to_install():
    with pytest.raises(InputError, match=r"pip install '\.\[harness\]'"):
        check_harness(Harness(tasks=["arc_easy"]))


def test_results_get_our_names_and_standard_errors_none():
    results = {
        "arc-easy": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": math.nan, "sample_len": 3},
        "gsm8k": {"exact_match,strict-match": 1, "exact_match_stderr,strict-match": "N/A"},
    }
    assert read_results(results) == {"arc_easy_acc": 0.5, "gsm8k_exact_match_strict_match": 1.0}
