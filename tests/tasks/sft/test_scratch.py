"""A new tokenizer and a new model."""

import pytest
import torch
from pydantic import ValidationError

from tasks.sft.config import ScratchConfig, SFTConfig
from tasks.sft.scratch import make_model, train_tokenizer

CORPUS = ["a warm film , with a heart .", "dull and flat , a bad film .", "naïve 😀 tabs\tand  two spaces\nlines"] * 3


def small(**options):
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "vocab_size": 320}
    return ScratchConfig(**{**sizes, **options})


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_text_of_the_corpus_survives_encoding_and_decoding(kind):
    tokenizer = train_tokenizer(small(tokenizer=kind), CORPUS)
    for text in CORPUS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_byte_level_bpe_survives_texts_that_it_never_saw():
    tokenizer = train_tokenizer(small(), CORPUS)
    text = "Grüße, 世界! ﷺ"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_word_tokenizer_writes_unknown_words_as_unk():
    tokenizer = train_tokenizer(small(tokenizer="word"), CORPUS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a zebra")["input_ids"]) == ["a", "<unk>"]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_the_same_corpus_gives_the_same_tokenizer(kind):
    first, second = (train_tokenizer(small(tokenizer=kind), CORPUS).get_vocab() for _ in range(2))
    assert first == second


def test_the_vocabulary_holds_at_most_vocab_size_tokens():
    words = [f"word{number}" for number in range(1000)]
    assert len(train_tokenizer(small(vocab_size=300, tokenizer="word"), words)) == 300


def test_padding_is_not_eos():
    tokenizer = train_tokenizer(small(), CORPUS)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_chat_template_marks_roles_ends_answers_with_eos_and_starts_the_next():
    tokenizer = train_tokenizer(small(), CORPUS)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>hi<|assistant|>yes<eos>"
    started = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert started == "<|user|>hi<|assistant|>"


def test_the_model_has_the_sizes_of_the_config_and_the_tokenizers_special_tokens():
    config = small(model_type="qwen2", num_layers=3, tie_word_embeddings=False)
    tokenizer = train_tokenizer(config, CORPUS)
    model = make_model(config, tokenizer, seed=0)
    assert model.config.model_type == "qwen2"
    assert (len(model.model.layers), model.config.hidden_size, model.config.vocab_size) == (3, 16, len(tokenizer))
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_the_seed_decides_the_weights():
    tokenizer = train_tokenizer(small(), CORPUS)
    one, same, other = (make_model(small(), tokenizer, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_heads_that_do_not_divide_the_width_are_refused_with_what_to_do():
    with pytest.raises(ValidationError, match="Set hidden_size to a multiple of 6"):
        ScratchConfig(hidden_size=16, num_heads=3)


def test_lora_on_random_weights_is_refused():
    with pytest.raises(ValidationError, match="Drop one of them"):
        SFTConfig(from_scratch=small(), lora={"r": 4})
