"""How a reward model reads a response."""

from dataclasses import replace
from pathlib import Path

from tasks.certify.readers import Reader
from tasks.certify.responses import Response
from tasks.templates import ConversationTemplate
from tests.tasks.rewards import tiny

FOLDER = Path("reward")
RESPONSE = Response("a b", "good", prompt_ids=[5, 6], response_ids=[7, 1], ended=True)
FOREIGN = Reader(
    FOLDER,
    FOLDER,
    tiny.make_tokenizer(tiny.OTHER_TOKENS, tiny.TEMPLATE),
    reads_policy_tokens=False,
    ends_at_eos=True,
    context=None,
    template=ConversationTemplate(system_message="c"),
)


def test_the_policys_tokens_are_read_as_they_are() -> None:
    assert replace(FOREIGN, reads_policy_tokens=True).row(RESPONSE) == [5, 6, 7, 1]


def test_another_tokenizer_writes_the_conversation_that_the_pipelines_template_makes_of_a_prompt() -> None:
    words = ["A:", " c", " \n", "U:", " a", " b", " \n", "A:", " good", "<eos>"]
    assert FOREIGN.row(RESPONSE) == [tiny.OTHER_TOKENS.index(word) for word in words]


def test_a_response_fits_up_to_the_reward_models_context() -> None:
    assert FOREIGN.fits(RESPONSE)
    assert replace(FOREIGN, context=10).fits(RESPONSE)
    assert not replace(FOREIGN, context=9).fits(RESPONSE)


def test_the_end_of_a_response_is_not_counted_as_a_token_of_it() -> None:
    assert RESPONSE.num_tokens == 1
    assert replace(RESPONSE, ended=False).num_tokens == 2
