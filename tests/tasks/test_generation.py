import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tasks import generation
from tasks.config import SamplingConfig
from tasks.generation import (
    Responses,
    blocked_sums,
    draw,
    generate,
    response_logprobs,
    seeded_generator,
    uniform_numbers,
)
from tests.tasks.ppo.tiny import EOS, make_model, make_tokenizer

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


def test_without_stop_tokens_no_response_ends_whatever_the_models_own_configuration_says() -> None:
    model = make_model()
    model.generation_config.eos_token_id = list(range(24))
    responses = answer(model, stop_ids=[])
    assert not responses.ended.any()
    assert responses.mask.all()
    assert (responses.ids == EOS).any()


def test_a_response_ends_with_the_token_that_completes_a_stop_string() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    free = answer(model, stop_ids=[]).unpadded()
    strings = [tokenizer.decode(free[0][3:5]), tokenizer.decode(free[2][10:13]), "never said"]
    sampling = SamplingConfig(response_length=LENGTH, stop_strings=strings)
    responses = answer(model, sampling, stop_ids=[], tokenizer=tokenizer)
    num_cut = 0
    for whole, row, ended in zip(free, responses.unpadded(), responses.ended.tolist(), strict=True):
        counts = [n for n in range(LENGTH + 1) if any(text in tokenizer.decode(whole[:n]) for text in strings)]
        assert row == (whole[: counts[0]] if counts else whole)
        assert ended == bool(counts)
        num_cut += ended
    assert 2 <= num_cut < len(PROMPTS)


def test_the_first_of_stop_tokens_and_stop_strings_ends_a_response() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    by_string = answer(model, SamplingConfig(response_length=LENGTH, stop_strings=["w7"]), tokenizer=tokenizer)
    by_token = answer(model, stop_ids=[EOS, 7])
    assert by_string.ids.equal(by_token.ids)
    assert by_string.ended.equal(by_token.ended)
    assert_close(by_string.logprobs, by_token.logprobs)
    assert {row[-1] for row in by_token.unpadded()} >= {EOS, 7}


def test_a_stop_string_is_not_looked_for_in_the_prompt() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    free = answer(model, stop_ids=[]).unpadded()
    across = tokenizer.decode([PROMPTS[2][-1], free[2][0]])
    assert across not in tokenizer.decode(free[2])  # else the test says nothing
    sampling = SamplingConfig(response_length=LENGTH, stop_strings=[across, tokenizer.decode(PROMPTS[2])])
    assert answer(model, sampling, stop_ids=[], tokenizer=tokenizer).unpadded()[2] == free[2]


def test_neither_chunks_nor_neighbours_change_where_a_stop_string_ends_a_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    sampling = SamplingConfig(response_length=LENGTH, stop_strings=["w1 w", "w7", "5 w"])
    together, single = (answer(model, sampling, tokenizer=tokenizer, rows_at_once=rows) for rows in (64, 1))
    monkeypatch.setattr(generation, "SHRINK_EVERY", 1)
    at_once = answer(model, sampling, tokenizer=tokenizer)
    monkeypatch.setattr(generation, "SHRINK_EVERY", 1000)
    never = answer(model, sampling, tokenizer=tokenizer)
    assert len({len(row) for row in together.unpadded()}) > 2
    for other in (single, at_once, never):
        assert together.ids.equal(other.ids)
        assert together.mask.equal(other.mask)
        assert together.ended.equal(other.ended)


def test_rows_that_completed_a_stop_string_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(response_length=LENGTH, stop_strings=["w7"])
    sizes = batch_sizes(monkeypatch, sampling=sampling, stop_ids=[], tokenizer=make_tokenizer())
    assert 0 < sizes[-1] < len(PROMPTS)
    assert set(batch_sizes(monkeypatch, stop_ids=[])) == {len(PROMPTS)}


def batch_sizes(monkeypatch: pytest.MonkeyPatch, **options: object) -> list[int]:
    """The rows of each forward pass while the prompts are answered."""
    model, sizes = make_model(), []
    forward = type(model).forward

    def counted(self: nn.Module, input_ids: Tensor, **given: object) -> object:
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **given)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", counted)
        answer(model, **options)
    return sizes


def test_rows_that_ended_leave_the_batch_without_changing_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = [EOS, 5, 9, 12]
    sizes = batch_sizes(monkeypatch, stop_ids=stops)
    assert sizes[:8] == [len(PROMPTS)] * 8
    assert sizes[8] < len(PROMPTS)
    shrunk = answer(make_model(), stop_ids=stops)
    monkeypatch.setattr(generation, "SHRINK_EVERY", 1000)
    whole = answer(make_model(), stop_ids=stops)
    assert shrunk.ids.equal(whole.ids)
    assert_close(shrunk.logprobs, whole.logprobs)


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


def test_logits_that_are_not_finite_still_give_a_token_of_the_vocabulary() -> None:
    numbers = torch.tensor([0.0, 0.9], dtype=torch.float64)
    for value in (float("nan"), float("inf")):
        tokens = draw(torch.full((2, 5), value), numbers, SamplingConfig())
        assert ((tokens >= 0) & (tokens < 5)).all()


def test_the_logprobs_kept_are_those_of_the_distribution_that_was_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []

    def recorded(logits: Tensor, *rest: object) -> Tensor:
        tokens = draw(logits, *rest)
        drawn.append((torch.log_softmax(logits.double() / 0.6, dim=-1), tokens))
        return tokens

    monkeypatch.setattr(generation, "draw", recorded)
    responses = answer(make_model(), SamplingConfig(response_length=LENGTH, temperature=0.6), stop_ids=[])
    by_length = sorted(range(len(PROMPTS)), key=lambda row: len(PROMPTS[row]))
    assert len(drawn) == LENGTH
    for place, (logprobs, tokens) in enumerate(drawn):
        assert tokens.equal(responses.ids[by_length, place])
        expected = logprobs.gather(1, tokens[:, None]).squeeze(1)
        assert_close(responses.logprobs[by_length, place].double(), expected, rtol=0, atol=1e-6)


def test_the_kl_of_sampled_tokens_is_that_of_the_distributions_at_the_temperature() -> None:
    policy, reference, temperature, prompts = make_model(), make_model(seed=3), 0.5, [[3, 4]] * 3000
    p, q = ((model(torch.tensor([[3, 4]])).logits[0, -1] / temperature).softmax(-1) for model in (policy, reference))
    expected = (p * (p / q).log()).sum()
    sampling = SamplingConfig(response_length=1, temperature=temperature)
    uniforms = uniform_numbers(3000, 1, 0)
    sampled = generate(policy, prompts, sampling, uniforms=uniforms, stop_ids=[EOS], rows_at_once=3000)
    kl = sampled.logprobs - response_logprobs(reference, prompts, sampled, temperature)
    assert expected > 0.05
    assert abs(kl.mean() - expected) < 4 * kl.std() / 3000**0.5


def test_the_logits_of_a_whole_response_are_never_held() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                Largest.numel = max(Largest.numel, made.numel())
            return made

    vocabulary = 2000
    model = make_model(vocab_size=vocabulary)
    with Largest():
        answer(model)
    assert len(PROMPTS) * vocabulary <= Largest.numel < len(PROMPTS) * vocabulary * LENGTH / 2


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


def test_a_stop_string_among_the_fewest_new_tokens_does_not_end_a_response() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    for fewest in (0, 4):  # every token's text begins with one of the two
        sampling = SamplingConfig(response_length=LENGTH, min_new_tokens=fewest, stop_strings=["w", "<"])
        assert set(answer(model, sampling, tokenizer=tokenizer).mask.sum(dim=1).tolist()) == {fewest + 1}


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


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 1000])
def test_sums_by_blocks_are_cumulative_sums(length) -> None:
    rows = torch.rand((3, length), dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    assert_close(blocked_sums(rows, width=8), rows.cumsum(dim=1), rtol=1e-14, atol=0)


@pytest.mark.gpu
def test_drawing_on_a_gpu_is_deterministic() -> None:
    logits = torch.randn((4, 50_000), generator=torch.Generator().manual_seed(0))
    numbers = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = draw(logits, numbers, SamplingConfig())
    torch.use_deterministic_algorithms(True)
    try:
        drawn = draw(logits.cuda(), numbers.cuda(), SamplingConfig())
    finally:
        torch.use_deterministic_algorithms(False)
    assert drawn.tolist() == expected.tolist()
