"""When two models say the same, and when they do not."""

import copy

import pytest
import torch

from tasks.config import ProofConfig
from tasks.models import logits
from tasks.models.logits import Answers, ModelsDiffer, answers_of, comparison_rows, difference, require_agreement
from tests.tasks.tiny_models import make_model, make_tokenizer, write_split

ROWS = [[3, 5, 7, 9], [4, 6, 8]]


def answers(*rows: list[float], texts: list[list[int]] | None = None) -> Answers:
    """Of one token position a row."""
    return Answers(texts or [], [], [torch.tensor([row]) for row in rows])


def test_the_difference_is_the_largest_as_a_share_of_the_largest_logit():
    found = difference(answers([1.0, -4.0], [2.0, 0.0]), answers([1.5, -4.0], [2.0, 0.25]))
    assert (found.largest, found.scale, found.relative, found.num_rows) == (0.5, 4.0, 0.125, 2)
    assert require_agreement(answers([1.0, -4.0]), answers([1.5, -4.0]), 0.125, "They").relative == 0.125
    with pytest.raises(ModelsDiffer, match=r"They: .* 0\.5, 0\.125 of the largest logit 4, over 1 rows; allowed 0\.12"):
        require_agreement(answers([1.0, -4.0]), answers([1.5, -4.0]), 0.12, "They")


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_in_any_row_is_no_agreement(place):
    rows = [[1.0, 2.0], [1.0, 2.0]]
    damaged = copy.deepcopy(rows)
    damaged[place][0] = float("nan")
    with pytest.raises(ModelsDiffer):
        require_agreement(answers(*rows), answers(*damaged), 1.0, "They")


def test_without_a_tolerance_the_last_bit_counts():
    one, next_one = 1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    assert require_agreement(answers([one]), answers([one]), 0.0, "They").equal_bits
    with pytest.raises(ModelsDiffer, match="equal bits"):
        require_agreement(answers([one]), answers([next_one]), 0.0, "They")
    with pytest.raises(ModelsDiffer, match="equal bits"):
        require_agreement(answers([0.0, 1.0]), answers([-0.0, 1.0]), 0.0, "They")


def test_texts_may_part_only_where_both_tokens_are_as_close_as_the_tolerance():
    """Logits of [prompt token, its answer]: the second model takes token 1, which the first sees 0.5 behind its own."""
    first = Answers([[0]], [], [torch.tensor([[10.0, 9.5], [0.0, 0.0]])])
    second = Answers([[1]], [], [torch.tensor([[9.8, 9.9], [0.0, 0.0]])])
    found = require_agreement(first, second, 0.04, "They")
    assert (found.num_greedy, found.num_greedy_equal, found.widest_lead) == (1, 0, 0.5)
    first.logits[0][0, 1] = second.logits[0][0, 1] = 9.1
    with pytest.raises(ModelsDiffer, match=r"equal for 0 of 1 prompts.*leads by up to 0\.9, allowed 0\.8"):
        require_agreement(first, second, 0.04, "They")


def test_a_model_agrees_with_its_copy_and_not_with_another():
    first = answers_of(make_model(), ROWS)
    found = require_agreement(first, answers_of(make_model(), ROWS, first), 0.0, "They")
    assert (found.num_rows, found.num_greedy, found.num_greedy_equal) == (2, 2, 2)
    with pytest.raises(ModelsDiffer):
        require_agreement(first, answers_of(make_model(seed=1), ROWS, first), 0.05, "They")


def test_greedy_text_is_what_generate_gives_and_its_logits_are_compared():
    model = make_model()
    found = answers_of(model, ROWS)
    model.generation_config.eos_token_id = None
    expected = model.generate(torch.tensor(ROWS[:1]), do_sample=False, max_new_tokens=logits.GREEDY_LENGTH)
    assert found.rows[0] == expected[0].tolist()
    torch.testing.assert_close(found.logits[0], model(torch.tensor([found.rows[0]])).logits[0], rtol=0, atol=0)


def test_of_a_long_row_the_last_logits_are_kept():
    [kept] = answers_of(make_model(), [[3] * 40]).logits
    assert kept.shape[0] == logits.KEPT


def test_a_change_that_only_a_continuation_shows_is_seen():
    """The second model differs in the embedding of one token, which no prompt has but the first model's answer does."""
    model = make_model()
    first = answers_of(model, ROWS)
    token = next(token for token in first.texts[0] if token not in ROWS[0] + ROWS[1])
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.embed_tokens.weight[token] += 1.0
    assert not difference(first, answers_of(changed, ROWS, first)).equal_bits


def test_rows_come_from_the_data_the_config_and_the_vocabulary(tmp_path):
    write_split(tmp_path / "data", "prompts", "test", [{"prompt": "a b"}, {"prompt": "c"}, {"prompt": "d"}])
    config, tokenizer, model = ProofConfig(prompts=["good film"], num_prompts=2), make_tokenizer(), make_model().config
    rows = comparison_rows(config, tmp_path / "data", tokenizer, model)
    assert [tokenizer.decode(row) for row in rows[:3]] == ["a b", "c", "good film"]
    assert len(rows) == 3 + 2
    assert rows == comparison_rows(config, tmp_path / "data", tokenizer, model)
    assert rows != comparison_rows(config.model_copy(update={"seed": 1}), tmp_path / "data", tokenizer, model)


def test_a_row_leaves_room_for_its_continuation_in_the_context():
    config = ProofConfig(prompts=["a " * 100 + "film"], num_prompts=1)
    rows = comparison_rows(config, None, make_tokenizer(), make_model(max_position_embeddings=64).config)
    assert len(rows[0]) == 64 - logits.GREEDY_LENGTH
    assert make_tokenizer().decode(rows[0]).endswith("film")


def test_a_conversation_is_read_without_a_template_where_there_is_none(tmp_path):
    messages = [{"role": "user", "content": "good film"}]
    write_split(tmp_path / "data", "prompts", "test", [{"prompt": messages}])
    tokenizer = make_tokenizer()
    config = ProofConfig(num_prompts=1)
    assert (
        tokenizer.decode(comparison_rows(config, tmp_path / "data", tokenizer, make_model().config)[0]) == "good film"
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }} bad"
    rows = comparison_rows(config, tmp_path / "data", tokenizer, make_model().config)
    assert tokenizer.decode(rows[0]) == "good film bad"
