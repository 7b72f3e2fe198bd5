"""A new language model with random weights, and its tokenizer trained on a corpus."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from tasks.sft.config import ScratchConfig

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORD_WITH_ITS_SPACE = r" ?[^\s]+|\s+"


def train_tokenizer(config: ScratchConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of at most config.vocab_size tokens; the same texts always give the same one.

    White space belongs to the tokens, so the tokens' texts joined are the text itself.
    """
    tokenizer = _train_bpe(config, texts) if config.tokenizer == "bpe" else _train_words(config, texts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN if config.tokenizer == "word" else None,
        chat_template=CHAT_TEMPLATE,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def make_model(config: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A model with random weights drawn from `seed`, its vocabulary the tokenizer's.

    Their standard deviation is 1 / sqrt(hidden_size): at small widths the usual 0.02 takes three times as many steps
    until it copies a word of the prompt.
    """
    set_seed(seed)
    model_config = AutoConfig.for_model(
        config.model_type,
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.hidden_size**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(model_config)


def _train_bpe(config: ScratchConfig, texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_words(config: ScratchConfig, texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_WITH_ITS_SPACE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=[PAD, EOS, UNKNOWN, *ROLES], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
