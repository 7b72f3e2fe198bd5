import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tasks import generation
from tasks.config import SamplingConfig
from tasks.generation import Responses, draw, generate, response_logprobs, seeded_generator, uniform_numbers
from tests.tasks.ppo.tiny import EOS, make_model

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18], [19], [20, 21, 22], [23, 4]]
LENGTH = 20


def answer(model: PreTrainedModel, sampling: SamplingConfig | None = None, **options: object) -> Responses:
    sampling = sampling or SamplingConfig(response_length=LENGTH)
    settings = {"uniforms": uniform_numbers(len(PROMPTS), LENGTH, 7), "stop_ids": [EOS], "pad_token_id": 0}
    return generate(model, PROMPTS, sampling, **{**settings, **options})


def test_greedy_responses_are_those_of_transformers_generate() -> None:
    torch.manual_seed(4)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0))
    for model, stops in ((make_model(), [EOS]), (make_model(seed=3), [EOS, 5, 9]), (gpt2.eval(), [EOS, 7])):
        ours = answer(model, uniforms=None, stop_ids=stops, pad_token_id=0)
        for prompt, response in zip(PROMPTS, ours.unpadded(), strict=True):
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=LENGTH,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=0,
            )
            assert response == theirs[0, len(prompt) :].tolist()


def test_neither_chunks_nor_neighbours_change_what_is_sampled() -> None:
    model = make_model()
    together, single = answer(model), answer(model, rows_at_once=1)
    assert together.ids.equal(single.ids)
    assert together.mask.equal(single.mask)
    assert_close(together.logprobs, single.logprobs)


def test_responses_end_with_their_first_stop_token() -> None:
    responses = answer(make_model(), stop_ids=[EOS, 5, 9, 12])
    assert 0 < responses.ended.sum() <= len(PROMPTS)
    for row, ended in zip(responses.unpadded(), responses.ended.tolist(), strict=True):
        stops = [place for place, token in enumerate(row) if token in (EOS, 5, 9, 12)]
        assert stops == ([len(row) - 1] if ended else [])
        assert ended or len(row) == LENGTH
    assert not responses.ids[~responses.mask].any()
    assert not responses.logprobs[~responses.mask].any()


def test_rows_that_ended_leave_the_batch_without_changing_the_others(monkeypatch) -> None:
    model, sizes = make_model(), []
    forward = type(model).forward

    def counted(self: nn.Module, input_ids: Tensor, **options: object) -> object:
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    shrunk = answer(model, stop_ids=[EOS, 5, 9, 12])
    assert min(sizes) < len(PROMPTS)
    monkeypatch.setattr(generation, "SHRINK_EVERY", 1000)
    assert shrunk.ids.equal(answer(model, stop_ids=[EOS, 5, 9, 12]).ids)


def test_logprobs_are_those_of_a_full_forward_at_the_temperature() -> None:
    model = make_model()
    for sampling in (
        SamplingConfig(response_length=LENGTH, temperature=0.6),
        SamplingConfig(response_length=LENGTH, temperature=1.5, top_k=3, min_new_tokens=4),
    ):
        responses = answer(model, sampling)
        for row, (prompt, response) in enumerate(zip(PROMPTS, responses.unpadded(), strict=True)):
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits / sampling.temperature, dim=-1)[range(len(response)), response]
            assert_close(responses.logprobs[row, : len(response)], expected, rtol=1e-4, atol=1e-5)


def test_the_scoring_helper_measures_the_logprobs_that_generation_kept() -> None:
    model = make_model()
    responses = answer(model, SamplingConfig(response_length=LENGTH, temperature=0.6))
    measured = response_logprobs(model, PROMPTS, responses, temperature=0.6, micro_batch_tokens=30)
    assert_close(measured, responses.logprobs, rtol=1e-4, atol=1e-5)


def test_fewest_new_tokens_keeps_the_end_away() -> None:
    model, stops = make_model(), list(range(1, 20))
    assert answer(model, stop_ids=stops).mask.sum(dim=1).min() == 1
    kept = answer(model, SamplingConfig(response_length=LENGTH, min_new_tokens=8), stop_ids=stops)
    assert kept.mask.sum(dim=1).min() == 9  # eight others, then the end


def test_sampled_frequencies_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, -torch.inf]])
    num_draws, temperature = 20_000, 0.7
    numbers = uniform_numbers(num_draws, 1, 0)[:, 0]
    tokens = draw(logits.expand(num_draws, -1), numbers, SamplingConfig(temperature=temperature))
    counts = torch.bincount(tokens, minlength=5)
    expected = torch.softmax(logits[0] / temperature, dim=0) * num_draws
    assert counts[4] == 0
    chi_square = ((counts - expected)[:4].square() / expected[:4]).sum()
    assert chi_square < 16.3  # the 99.9 % quantile at 3 degrees of freedom


def test_a_number_picks_the_token_in_whose_share_it_falls() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.0, 0.25]]).log().expand(6, -1)
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, numbers, SamplingConfig()).tolist() == [0, 0, 1, 1, 3, 3]
    impossible_first = torch.tensor([[-torch.inf, 0.0]])
    assert draw(impossible_first, torch.zeros(1, dtype=torch.float64), SamplingConfig()).tolist() == [1]


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(2000, -1)
    numbers = uniform_numbers(2000, 1, 0)[:, 0]

    def drawn(**options: float) -> list[int]:
        return draw(logits, numbers, SamplingConfig(**options)).unique().tolist()

    assert drawn() == [0, 1, 2, 3]
    assert drawn(top_k=2) == [0, 1]
    assert drawn(top_k=9) == [0, 1, 2, 3]
    assert drawn(top_p=0.35) == [0]
    assert drawn(top_p=0.69) == [0, 1]
    assert drawn(top_p=0.71) == [0, 1, 2]
    assert drawn(top_k=3, top_p=0.7) == [0, 1]  # of the three's mass 0.9: 0.4 < 0.63 <= 0.7


def test_uniform_numbers_are_a_function_of_their_key() -> None:
    assert uniform_numbers(3, 4, "rollout", 0, 1).equal(uniform_numbers(3, 4, "rollout", 0, 1))
    assert not uniform_numbers(3, 4, "rollout", 0, 1).equal(uniform_numbers(3, 4, "rollout", 0, 2))
    assert not uniform_numbers(3, 4, "rollout", 0, 1).equal(uniform_numbers(3, 4, "evaluation", 0, 1))
    assert seeded_generator(1, 23).initial_seed() != seeded_generator(12, 3).initial_seed()


def test_the_cache_can_drop_rows() -> None:
    cache = DynamicCache()
    keys = torch.arange(6.0).view(3, 1, 2, 1)
    cache.update(keys, keys, 0)
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert cache.layers[0].keys.flatten().tolist() == [0, 1, 4, 5]
