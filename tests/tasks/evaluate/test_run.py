import itertools
import json
import math
from fnmatch import fnmatchcase

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tasks.config import SamplingConfig
from tasks.errors import InputError
from tasks.evaluate.comparison import samples as samples_of
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.evaluation import measure
from tasks.evaluate.names import possible_figures
from tasks.evaluate.run import main
from tasks.models.modeling import load_causal_lm
from tasks.tracking import read_metrics
from tests.tasks.evaluate import tiny_chain

pytestmark = pytest.mark.slow

HERE = "tests.tasks.evaluate.tiny_chain"
JSON_FILES = ("report", "evaluation", "samples")
SIDES = ("before", "after")
QUICK = {"num_bootstrap": 100, "sampling": SamplingConfig(response_length=6), "num_timed": 0}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return tiny_chain.write_chain(tmp_path_factory.mktemp("chain"))


def measured(inputs, **options):
    """An evaluation without its files."""
    return measure(EvaluateConfig(**(QUICK | options)), inputs, inputs["data"])


def evaluate(inputs, **options):
    """Figures and samples of an evaluation without its files."""
    evaluation = measured(inputs, **options)
    return evaluation.figures, samples_of(evaluation.comparison)


@pytest.fixture(scope="module")
def whole_chain(chain, tmp_path_factory):
    """With a champion, a base, a second reward model and SFT records."""
    return chain | tiny_chain.write_more(tmp_path_factory.mktemp("more"))


@pytest.fixture(scope="module")
def plain(chain):
    """Figures and samples with the default options."""
    return evaluate(chain)


def test_an_evaluation_has_its_page_figures_samples_pictures_and_progress(chain, tmp_path):
    metrics = {"good": f"{HERE}:count_good"}
    main(EvaluateConfig(**QUICK, metrics=metrics, batch_size=3, num_samples=5), chain, tmp_path)

    report, evaluation, samples = (json.loads((tmp_path / f"{name}.json").read_text()) for name in JSON_FILES)
    page = (tmp_path / "report.md").read_text()
    names = (
        "report.md evaluation.json samples.json canaries.json scores.png differences.png speed.json report.json "
        "metrics.jsonl"
    )
    assert {path.name for path in tmp_path.iterdir()} == set(names.split())
    assert page.startswith("# PPO against SFT\n\n**")
    assert "## 5 of 8 prompts" in page
    assert page.partition("| Prompt | SFT | PPO |\n")[2].count("\n") == 1 + 5
    assert all((tmp_path / name).read_bytes()[1:4] == b"PNG" for name in ("scores.png", "differences.png"))
    assert sorted(sample["prompt"] for sample in samples) == sorted(record["prompt"] for record in tiny_chain.PROMPTS)
    assert report == {name: evaluation[name] for name in evaluation.keys() - {"about", "config", "conversational"}} | {
        "samples": samples[:3]
    }
    records = read_metrics(tmp_path)
    assert [(record["step"], record["total_steps"]) for record in records] == [(step, 13) for step in range(1, 14)]
    assert records[-1]["win_rate"] == report["win_rate"]


def test_every_figure_is_explained_and_every_explained_figure_is_there(whole_chain):
    canaries = ["good film"]
    evaluation = measured(whole_chain, canaries=canaries, metrics={"good": f"{HERE}:count_good"})

    assert evaluation.figures.keys() == set(possible_figures(["score", "second_score", "good"], None))
    assert evaluation.not_measured == {}


def test_what_is_not_measured_says_why(chain, plain):
    evaluation = measured(chain, greedy=False)

    missing = set(possible_figures(["score"], None)) - evaluation.figures.keys()
    assert missing
    for name in missing:
        assert any(fnmatchcase(name, pattern) for pattern in evaluation.not_measured), name
    assert not any(fnmatchcase(name, pattern) for name in evaluation.figures for pattern in evaluation.not_measured)


def test_equal_models_draw_equal_answers_and_tie(chain):
    report, samples = evaluate(chain | {"ppo": chain["sft"]})

    assert [sample["before"] for sample in samples] == [sample["after"] for sample in samples]
    assert (report["win_rate"], report["win_rate_low"], report["win_rate_high"]) == (0.5, 0.5, 0.5)
    assert report["kl"] == 0


def test_a_model_that_says_good_wins_by_the_metric_that_counts_it(chain):
    report, samples = evaluate(chain, metrics={"good": f"{HERE}:count_good"})

    counts = [(s["before"].split().count("good"), s["after"].split().count("good")) for s in samples]
    assert report["good_before"] == sum(before for before, _ in counts) / 8
    assert report["good_after"] == sum(after for _, after in counts) / 8
    assert report["good_win_rate"] == sum((a > b) + (a == b) / 2 for b, a in counts) / 8
    assert report["good_win_rate"] > 0.5
    assert report["judge"] == "score"


def test_metrics_see_the_columns_of_their_own_prompt(chain):
    _, samples = evaluate(chain, metrics={"number": f"{HERE}:read_answer"}, batch_size=3)

    numbers = {record["prompt"]: float(record["answer"]) for record in tiny_chain.PROMPTS}
    assert all(sample["number_after"] == numbers[sample["prompt"]] for sample in samples)


def test_metrics_do_not_get_the_name_of_the_data_set(chain, tmp_path):
    records = [{**record, "source": "films"} for record in tiny_chain.PROMPTS]
    inputs = chain | {"data": tiny_chain.write_prompts(tmp_path, records)}

    _, samples = evaluate(inputs, metrics={"number": f"{HERE}:read_answer"})

    assert len(samples) == 8


def test_a_conversation_template_writes_the_prompts(chain, plain):
    _, as_they_are = evaluate(chain, conversation_template={"chat_template": "{{ messages[0].content }}"})
    _, continued = evaluate(chain, conversation_template={"chat_template": "{{ messages[0].content }} warm"})

    assert as_they_are == plain[1]
    assert continued != plain[1]


@pytest.mark.parametrize("stops", [{"stop_strings": ["good", "film"]}, {"stop_ids": [[2], [4]]}])
def test_the_stops_of_a_conversation_template_end_an_answer(chain, stops):
    _, samples = evaluate(chain, conversation_template={"chat_template": "{{ messages[0].content }}", **stops})

    words = [sample[side].split() for sample in samples for side in SIDES]
    assert any(answer[-1:] in (["good"], ["film"]) for answer in words)
    assert not any({"good", "film"} & set(answer[:-1]) for answer in words)


def test_without_a_reward_model_the_first_metric_judges(chain):
    inputs = {name: folder for name, folder in chain.items() if name != "reward_model"}

    report, _ = evaluate(inputs, metrics={"good": f"{HERE}:count_good"})

    assert report["judge"] == "good"
    assert report["win_rate"] == report["good_win_rate"]
    assert "score_before" not in report


def test_the_score_is_the_classifiers_logit_at_the_last_token_less_the_offset(chain):
    comparison = measured(chain).comparison
    after = comparison.sampled["ppo"]
    tokenizer = tiny_chain.make_tokenizer()
    classifier = AutoModelForSequenceClassification.from_pretrained(chain["reward_model"], pad_token_id=None)

    assert 0 < sum(after.ended) < 8
    for index, prompt in enumerate(comparison.prompts):
        end = [tokenizer.eos_token_id] * after.ended[index]
        with torch.no_grad():
            logit = classifier(torch.tensor([[*tokenizer(prompt).input_ids, *after.tokens[index], *end]])).logits
        assert after.judgements["score"][index] == pytest.approx(logit.item() - 0.25, abs=1e-5)


def test_kl_is_that_of_whole_responses_by_enumeration(tmp_path):
    """Three tokens (one ends) and three positions: every response and its probability can be listed."""
    words, length, temperature = ("a", "b"), 3, 1.5
    inputs = {
        "data": tiny_chain.write_prompts(tmp_path / "data", [{"prompt": "a b"}] * 600),
        "sft": tiny_chain.write_model(tmp_path / "sft", 0, words),
        "ppo": tiny_chain.write_model(tmp_path / "ppo", 0, words, favourite="a", by=1.0),
    }
    sampling = SamplingConfig(response_length=length, temperature=temperature)
    options = {"num_prompts": 600, "sampling": sampling, "metrics": {"m": f"{HERE}:count_good"}, "batch_size": 512}
    policy, reference = (_response_logprobs(inputs[name], [2, 3], length, temperature) for name in ("ppo", "sft"))
    definition = sum(math.exp(policy[response]) * (policy[response] - reference[response]) for response in policy)

    comparison = measured(inputs, **options, greedy=False).comparison
    after, kl = comparison.sampled["ppo"], comparison.kl["ppo"]
    responses = [
        (*tokens, 1) if ended else tuple(tokens) for tokens, ended in zip(after.tokens, after.ended, strict=True)
    ]

    assert kl == pytest.approx([policy[response] - reference[response] for response in responses], abs=1e-5)
    assert sum(math.exp(logprob) for logprob in policy.values()) == pytest.approx(1, abs=1e-5)
    assert definition > 0.05
    assert kl.mean() == pytest.approx(definition, abs=4 * kl.std() / math.sqrt(600))


def _response_logprobs(folder, prompt, length, temperature):
    """Log probability of every response that ends with EOS (1) or after `length` tokens, by plain forward passes."""
    model, vocabulary, result = load_causal_lm(folder), range(4), {}
    for response in itertools.chain.from_iterable(
        itertools.product(vocabulary, repeat=n) for n in range(1, length + 1)
    ):
        if 1 not in response[:-1] and (response[-1] == 1 or len(response) == length):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            logprobs = (logits / temperature).log_softmax(-1)
            result[response] = sum(logprobs[place, token].item() for place, token in enumerate(response))
    return result


def test_batch_size_and_token_budget_change_no_answer(chain, plain):
    whole, samples = evaluate(chain)
    parts, same_samples = evaluate(chain, batch_size=3, token_budget=16)

    assert [sample["after"] for sample in samples] == [sample["after"] for sample in same_samples]
    assert parts["kl"] == pytest.approx(whole["kl"], abs=1e-5)


def test_the_seed_chooses_the_prompts(chain, plain):
    _, again = evaluate(chain)
    _, other = evaluate(chain, seed=1)

    assert plain[1] == again
    assert [sample["prompt"] for sample in other] != [sample["prompt"] for sample in again]


def test_the_seed_chooses_the_answers(chain, tmp_path):
    inputs = chain | {"data": tiny_chain.write_prompts(tmp_path, [{"prompt": "good film"}] * 4)}
    runs = [[sample["after"] for sample in evaluate(inputs, seed=seed)[1]] for seed in (0, 1)]

    assert runs[0] != runs[1]


def test_more_prompts_than_there_are_means_all_of_them(chain, plain):
    report, _ = evaluate(chain, num_prompts=1000)

    assert report["num_prompts"] == 8


def test_more_bootstrap_draws_give_other_ends(chain, plain):
    few, _ = evaluate(chain, num_bootstrap=100)
    many, _ = evaluate(chain, num_bootstrap=1000)

    assert few["kl"] == many["kl"]
    assert few["kl_low"] != many["kl_low"]


def test_bfloat16_is_close_and_not_equal(chain, plain):
    exact, _ = evaluate(chain)
    rough, _ = evaluate(chain, dtype="bfloat16")

    assert rough["kl"] != exact["kl"]
    assert rough["kl"] == pytest.approx(exact["kl"], rel=0.5)


def test_no_judge_is_refused(chain, tmp_path):
    inputs = {name: folder for name, folder in chain.items() if name != "reward_model"}

    with pytest.raises(InputError, match="Nothing judges the answers"):
        main(EvaluateConfig(), inputs, tmp_path)


def test_no_prompts_are_refused(chain, tmp_path):
    data = tiny_chain.write_prompts(tmp_path / "data", [])

    with pytest.raises(InputError, match=r"prompts_test\.parquet holds no prompts"):
        main(EvaluateConfig(), chain | {"data": data}, tmp_path)


def test_a_reward_model_in_the_policys_place_is_refused(chain, tmp_path):
    with pytest.raises(InputError, match="expected a causal language model"):
        main(EvaluateConfig(), chain | {"ppo": chain["reward_model"]}, tmp_path)


def test_another_tokenizer_is_refused_by_its_first_other_token(chain, tmp_path):
    other = tiny_chain.write_model(tmp_path / "other", 0, (*tiny_chain.WORDS[:-1], "never"))

    with pytest.raises(InputError, match=r"10 tokens, EOS 1.*differ, first at 'never'"):
        main(EvaluateConfig(), chain | {"ppo": other}, tmp_path)


def test_a_reward_model_of_other_tokens_judges_the_texts(chain, plain, tmp_path):
    """Its weights are those of the chain's, its tokens in another order."""
    words = tiny_chain.WORDS[::-1]
    classifier = AutoModelForSequenceClassification.from_pretrained(chain["reward_model"])
    embeddings = classifier.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[2:] = embeddings[2:].flip(0)
    folder = tmp_path / "reordered"
    classifier.save_pretrained(folder)
    tiny_chain.make_tokenizer(words).save_pretrained(folder)
    (folder / "scalar_head.json").write_text('{"offset": 0.25}')

    _, samples = evaluate(chain | {"reward_model": folder})

    pairs = list(zip(plain[1], samples, strict=True))
    assert [one["after"] for one, _ in pairs] == [other["after"] for _, other in pairs]
    same = [one["score_after"] == pytest.approx(other["score_after"], abs=1e-5) for one, other in pairs]
    ended = [one["response_length_after"] < 6 for one, _ in pairs]  # what was cut off looks ended to it
    assert all(is_same for is_same, has_ended in zip(same, ended, strict=True) if has_ended)
    assert sum(ended) >= 2


def test_prompts_that_leave_no_room_for_the_response_are_refused(chain, tmp_path):
    config = EvaluateConfig(sampling=SamplingConfig(response_length=31))

    with pytest.raises(InputError, match=r"longest prompt has 2 tokens.*32 positions"):
        main(config, chain, tmp_path)


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [({"score": "a:b"}, "none of score"), ({"two words": "a:b"}, "must be a word"), ({"m": "a.b"}, "package.module")],
)
def test_a_metric_needs_a_free_name_and_a_function(metrics, problem):
    with pytest.raises(ValueError, match=problem):
        EvaluateConfig(metrics=metrics)


def test_a_metric_that_cannot_be_imported_is_named(chain, tmp_path):
    with pytest.raises(InputError, match=r"metrics\.mine: .*nowhere"):
        main(EvaluateConfig(metrics={"mine": "nowhere:at_all"}), chain, tmp_path)
