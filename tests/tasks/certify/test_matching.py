"""Whether reward model and policy write the same text as the same tokens."""

from pathlib import Path

import pytest

from tasks.certify.matching import template_match, tokenizer_match
from tasks.certify.readers import Reader
from tasks.data import encode_prompt
from tasks.models.modeling import reads_same_tokens
from tasks.prompts import Prompt
from tasks.templates import ConversationTemplate
from tests.tasks.rewards import tiny

TALK = [{"role": "user", "content": "a b"}]
LONGER = [{"role": "system", "content": "c"}, *TALK]
WITH_A_WORD = tiny.TEMPLATE.replace("'A:' }}{% endif %}", "'A: good' }}{% endif %}")


def reader(tokens=tiny.TOKENS, template=tiny.TEMPLATE, eos=None):
    own = tiny.make_tokenizer(tokens, template)
    if eos is not None:
        own.eos_token = eos
    folder = Path("reward")
    return Reader(folder, folder, own, reads_same_tokens(own, policy()), ends_at_eos=True, context=None, template=None)


def policy(template=tiny.TEMPLATE):
    return tiny.make_tokenizer(template=template)


def asked(texts, template=None):
    return [Prompt(encode_prompt(policy(), text, template), text, {}, "prompts") for text in texts]


def test_one_tokenizer_matches_itself_and_not_one_of_other_ids_or_another_end():
    same = tokenizer_match(policy(), reader())
    assert same.share == 1
    assert same.verdict == f"The reward model reads the policy's tokens: {len(tiny.TOKENS)} tokens, EOS '<eos>'."
    other = tokenizer_match(policy(), reader(tiny.OTHER_TOKENS))
    assert other.share == 0
    assert "another tokenizer" in other.verdict
    assert tokenizer_match(policy(), reader(eos="<unk>")).share == 0


def test_plain_prompts_have_no_template_to_compare():
    assert template_match(policy(), reader(), None, asked(["a b"])).share is None


def test_templates_match_where_they_write_the_same_tokens_whatever_their_text():
    longer_text = "{# a remark #}" + tiny.TEMPLATE
    assert template_match(policy(), reader(template=longer_text), None, asked([TALK, LONGER])).share == 1


def test_a_template_that_writes_conversations_otherwise_is_told_with_both_texts():
    found = template_match(policy(), reader(template=WITH_A_WORD), None, asked([TALK, LONGER]))
    assert found.share == 0
    assert "writes 2 of 2 conversations otherwise" in found.verdict
    assert "A: good" in found.verdict
    assert template_match(policy(), reader(template=None), None, asked([TALK])).share == 0


def test_a_reward_model_of_other_tokens_writes_by_its_own_template():
    assert template_match(policy(), reader(tiny.OTHER_TOKENS), None, asked([TALK])).share is None


@pytest.mark.parametrize(("own", "share"), [(tiny.TEMPLATE, 1), (WITH_A_WORD, 0)])
def test_the_pipelines_conversation_template_is_compared_with_the_reward_models_own(own, share):
    template = ConversationTemplate(chat_template=tiny.TEMPLATE, system_message="c")
    prompts = asked(["a b"], template)
    assert template_match(policy(template=WITH_A_WORD), reader(template=own), template, prompts).share == share
