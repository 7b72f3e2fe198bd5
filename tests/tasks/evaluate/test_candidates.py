"""Champion and base beside SFT and PPO."""

import math

import pytest
import torch

from tasks.config import SamplingConfig
from tasks.evaluate import candidates
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.evaluation import measure
from tasks.models.modeling import load_causal_lm
from tests.tasks.evaluate import tiny_chain

QUICK = {"num_bootstrap": 100, "sampling": SamplingConfig(response_length=6), "num_timed": 0}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    return tiny_chain.write_chain(folder) | tiny_chain.write_more(folder / "more")


def measured(inputs, **options):
    return measure(EvaluateConfig(**(QUICK | options)), inputs, inputs["data"])


@pytest.fixture(scope="module")
def plain(chain):
    """With the default options."""
    return measured(chain)


def test_a_model_in_two_places_is_asked_once(chain, monkeypatch):
    loaded = []
    load = candidates.load_model
    monkeypatch.setattr(candidates, "load_model", lambda folder, *rest: loaded.append(folder) or load(folder, *rest))

    figures = measured(chain | {"champion": chain["ppo"], "base": chain["sft"]}).figures

    assert [folder.name for folder in loaded] == ["sft", "ppo"]
    assert (figures["champion_win_rate"], figures["champion_win_rate_p_value"]) == (0.5, 1.0)
    assert (figures["kl_champion"], figures["kl_base"]) == (figures["kl"], 0)
    assert figures["champion_score_difference"] == 0


def test_every_model_draws_with_the_same_numbers_and_greedy_needs_none(chain, tmp_path):
    """Prompts that are all the same: sampled answers differ from each other, greedy ones do not."""
    data = tiny_chain.write_prompts(tmp_path, [{"prompt": "good film"}] * 6)

    comparison = measured(chain | {"data": data}).comparison

    assert len(set(comparison.sampled["ppo"].texts)) > 1
    assert len(set(comparison.greedy["ppo"].texts)) == 1


def test_greedy_answers_take_the_likeliest_token(chain, plain):
    comparison = plain.comparison
    model, tokenizer = load_causal_lm(chain["ppo"]), tiny_chain.make_tokenizer()

    ids = tokenizer(comparison.prompts[0]).input_ids
    for token in comparison.greedy["ppo"].tokens[0]:
        with torch.no_grad():
            assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids = [*ids, token]


def test_perplexity_is_that_of_the_completions_tokens_and_the_tax_its_rise(plain, chain):
    figures = plain.figures
    tokenizer = tiny_chain.make_tokenizer()

    def perplexity(folder):
        model, losses = load_causal_lm(folder), []
        for record in tiny_chain.SFT_RECORDS:
            prompt = tokenizer(record["prompt"]).input_ids
            ids = [*prompt, *tokenizer(record["completion"]).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            losses += [-logprobs[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
        return math.exp(sum(losses) / len(losses))

    before, after = perplexity(chain["sft"]), perplexity(chain["ppo"])
    assert figures["perplexity_before"] == pytest.approx(before, rel=1e-4)
    assert figures["perplexity_after"] == pytest.approx(after, rel=1e-4)
    assert figures["tax"] == pytest.approx(after / before - 1, rel=1e-3)
    assert abs(figures["tax"]) > 0.01


def test_fewer_sft_records_give_another_perplexity_and_none_no_figure(chain, plain):
    fewer, none = (measured(chain, num_sft_records=number, greedy=False) for number in (2, 0))
    assert fewer.figures["perplexity_after"] != plain.figures["perplexity_after"]
    assert "tax" not in none.figures
    assert none.not_measured["tax*"] == "there are no held-out SFT records"


def test_a_champion_with_other_tokens_is_compared_by_its_texts(chain, tmp_path):
    """The same model with its vocabulary in another order: equal texts, equal scores."""
    words = tuple(reversed(tiny_chain.WORDS))
    other = tiny_chain.write_model(tmp_path / "other", seed=0, words=words)
    order = [0, 1, *(2 + words.index(word) for word in tiny_chain.WORDS)]
    sft, permuted = load_causal_lm(chain["sft"]), load_causal_lm(other)
    state = sft.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name].clone()
        moved = torch.empty_like(state[name])
        moved[order] = state[name]
        state[name] = moved
    permuted.load_state_dict(state)
    permuted.save_pretrained(other)

    evaluation = measured(chain | {"champion": other})

    assert evaluation.comparison.greedy["champion"].texts == evaluation.comparison.greedy["sft"].texts
    assert evaluation.figures["greedy_score_champion"] == pytest.approx(evaluation.figures["greedy_score_before"])
    assert "kl_champion" not in evaluation.figures
    assert evaluation.not_measured["tax_champion*"] == "the champion has another tokenizer"


def test_speed_is_measured_beside_the_figures(chain, plain):
    evaluation = measured(chain, num_timed=2)

    assert evaluation.speed.keys() == {"sft", "ppo", "champion", "base"}
    assert all(speed["tokens_per_s"] > 0 and speed["latency_s"] > 0 for speed in evaluation.speed.values())
    assert evaluation.figures == plain.figures


def test_canaries_are_answered_greedily_by_sft_champion_and_ppo(chain, plain):
    prompts = plain.comparison.prompts
    evaluation = measured(chain, canaries=prompts[:2], greedy=False)

    assert evaluation.canaries == [
        {
            "prompt": prompt,
            **{
                side: plain.comparison.greedy[name].texts[place]
                for side, name in (("before", "sft"), ("champion", "champion"), ("after", "ppo"))
            },
        }
        for place, prompt in enumerate(prompts[:2])
    ]
    assert evaluation.figures["num_canaries"] == 2
