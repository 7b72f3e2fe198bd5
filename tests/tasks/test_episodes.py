import torch
from torch.testing import assert_close

from tasks.episodes import (
    Episodes,
    join,
    logprobs_of,
    measure_rows,
    measure_tokens,
    scores_of,
    token_logprobs,
    values_of,
)
from tasks.models.modeling import ScalarModel, backbone, make_scalar_head
from tests.tasks.ppo.tiny import make_model

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10]]
RESPONSES = [[11, 1], [12, 13, 14, 1], [15]]


def episodes() -> Episodes:
    mask = torch.arange(5) < torch.tensor([[len(row)] for row in RESPONSES])
    ids = torch.full((3, 5), 23)
    ids[mask] = torch.tensor([token for row in RESPONSES for token in row])
    return join(PROMPTS, ids, mask)


def scalar_model() -> ScalarModel:
    torch.manual_seed(5)
    return ScalarModel(backbone(make_model()), make_scalar_head(torch.randn(1, 32), offset=0.5))


def test_a_row_is_a_prompt_its_response_and_padding() -> None:
    rows = episodes()
    assert rows.lengths.tolist() == [5, 5, 5]
    assert rows.ids[:, :5].tolist() == [[3, 4, 5, 11, 1], [6, 12, 13, 14, 1], [7, 8, 9, 10, 15]]
    assert not rows.ids[:, 5:].any()
    assert rows.response_tokens().tolist() == [11, 1, 12, 13, 14, 1, 15]


def test_a_selection_is_padded_only_to_its_own_longest() -> None:
    part = episodes().select(torch.tensor([2, 0]))
    assert part.ids.tolist() == [[7, 8, 9, 10, 15], [3, 4, 5, 11, 1]]
    assert part.mask.tolist() == [[True, False], [True, True]]


def test_token_logprobs_are_those_of_the_logits_divided_by_the_temperature() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    # at temperature 2: odds e^0 : e^1, and even odds
    expected = torch.tensor([1 / (1 + torch.e), 0.5]).log()
    assert_close(token_logprobs(logits, torch.tensor([0, 1]), 2.0), expected)


def test_logprobs_are_those_of_one_unpadded_forward_for_each_row() -> None:
    model = make_model()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logprobs = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0] / 0.7, dim=-1)
        expected += [logprobs[len(prompt) - 1 + place, token] for place, token in enumerate(response)]
    assert_close(logprobs_of(model, episodes(), 0.7), torch.stack(expected))


def test_neither_padding_nor_other_rows_are_attended_to() -> None:
    model, rows = make_model(), episodes()
    expected = measure_tokens(lambda part: logprobs_of(model, part, 1.0), rows, 1000)[0]
    changed = rows.ids.clone()
    changed[0, rows.lengths[0] :] = 20
    changed[1:] = changed[1:].flip(0)
    other = Episodes(changed, rows.prompt_lengths, rows.mask)
    assert_close(measure_tokens(lambda part: logprobs_of(model, part, 1.0), other, 1000)[0], expected)


def test_a_forward_keeps_no_cache_and_packs_no_rows() -> None:
    # With a cache, which is transformers' default, rows packed by position_ids attend across their borders unnoticed.
    model, scalar, calls = make_model(), scalar_model(), []
    for transformer in (backbone(model), scalar.backbone):
        transformer.register_forward_pre_hook(lambda _, __, given: calls.append(given), with_kwargs=True)
    rows = episodes()
    logprobs_of(model, rows, 1.0)
    values_of(scalar, rows)
    scores_of(scalar, rows)
    scalar(rows.ids)
    assert [given["use_cache"] for given in calls] == [False] * 4
    assert all(given["input_ids"].shape == rows.ids.shape and "position_ids" not in given for given in calls)


def test_values_are_measured_before_their_token_and_scores_at_the_last() -> None:
    model, values, scores = scalar_model(), [], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        numbers = model(torch.tensor([prompt + response]))[0]
        values += numbers[len(prompt) - 1 : -1].tolist()
        scores.append(numbers[-1].item())
    assert_close(values_of(model, episodes()), torch.tensor(values))
    assert_close(scores_of(model, episodes()), torch.tensor(scores))


def test_micro_batches_do_not_change_what_is_measured() -> None:
    language_model, scalar = make_model(), scalar_model()
    rows = episodes()
    whole = measure_tokens(lambda part: logprobs_of(language_model, part, 1.0), rows, 1000)
    single = measure_tokens(lambda part: logprobs_of(language_model, part, 1.0), rows, 1)
    assert_close(whole, single)
    assert_close(whole[rows.mask], logprobs_of(language_model, rows, 1.0))
    assert not whole[~rows.mask].any()
    assert_close(
        measure_rows(lambda part: scores_of(scalar, part), rows, 1000),
        measure_rows(lambda part: scores_of(scalar, part), rows, 6),
    )
    assert [len(indices) for indices in rows.split(10)] == [2, 1]
