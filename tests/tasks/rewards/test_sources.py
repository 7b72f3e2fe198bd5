import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from tasks.errors import InputError
from tasks.models.modeling import ScalarModel, load_reward_model
from tasks.rewards.config import ApiReward, FunctionReward, ModelReward, RewardConfig
from tasks.rewards.sources import Answers, Reward, check_finite, check_prompts, check_rewards, combine, load_rewards
from tasks.templates import ConversationTemplate
from tests.tasks.rewards import tiny
from tests.tasks.rewards.service import lengths, serving

PAIRS = [("a b", " good"), ("c", " bad a b c good"), ("b", " a")]
TALK = [{"role": "user", "content": "a b"}]
TALKS = [
    (TALK, "good"),
    ([*TALK, {"role": "assistant", "content": "c"}, {"role": "user", "content": "b"}], "bad a"),
]
OFFSET = 0.25  # subtracted by those that were trained here
HERE = "tests.tasks.rewards.test_sources"
SEEN: dict[str, Any] = {}


def remember(prompts: list[str], responses: list[str], **given: Any) -> list[float]:
    SEEN.clear()
    SEEN.update(prompts=prompts, responses=responses, **given)
    return [float(len(response)) for response in responses]


def needs_answer(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    return [0.0]


def give_nan(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    return [0.0, float("nan"), 0.0]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One reward model in the policy's tokens, and the same in others: of ours, and as one made elsewhere."""
    root = tmp_path_factory.mktemp("judges")
    return {
        "same": tiny.write_reward_model(root / "same", template=tiny.TEMPLATE),
        "ours": tiny.write_reward_model(root / "ours", tiny.OTHER_TOKENS, template=tiny.TEMPLATE),
        "elsewhere": tiny.write_reward_model(
            root / "elsewhere", tiny.OTHER_TOKENS, template=tiny.TEMPLATE, trained_here=False
        ),
        "same_wordless": tiny.write_reward_model(root / "same_wordless"),
        "wordless": tiny.write_reward_model(root / "wordless", tiny.OTHER_TOKENS),
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """The policy's."""
    return tiny.make_tokenizer(template=tiny.TEMPLATE)


def load(config: RewardConfig, folders: Mapping[str, Path], output: Path, **options: Any) -> Reward:
    folders = {"policy": Path("the-policy"), **folders}
    [reward] = load_rewards(
        [config],
        folders,
        tokenizer(),
        device=torch.device("cpu"),
        dtype="float32",
        micro_batch_tokens=16,
        log_folder=output,
        rank=0,
        **options,
    )
    return reward


def answers(pairs: Sequence[tuple[Any, str]] = PAIRS, columns: Sequence[Mapping[str, Any]] | None = None) -> Answers:
    return tiny.make_answers(tokenizer(), pairs, columns)


def direct_scores(folder: Path, given: Answers) -> Tensor:
    """Of each row by itself, at the last of its tokens."""
    model = load_reward_model(folder)
    rows = zip(given.episodes.ids, given.episodes.lengths.tolist(), strict=True)
    return torch.stack([model(row[None, :length])[0, -1] for row, length in rows])


def test_a_reward_model_of_the_policys_tokens_scores_them_as_they_are(judges, tmp_path) -> None:
    reward = load(ModelReward(weight=0.5), {"reward_model": judges["same"]}, tmp_path)
    assert (reward.name, reward.weight) == ("model", 0.5)
    assert_close(reward.scorer(answers()), direct_scores(judges["same"], answers()))


@pytest.mark.parametrize("pairs", [PAIRS, TALKS])
def test_a_reward_model_of_other_tokens_scores_the_same_texts(judges, tmp_path, pairs) -> None:
    reward = load(ModelReward(model="org/ours"), {"reward_ours": judges["ours"]}, tmp_path)
    scores = reward.scorer(answers(pairs))
    assert_close(scores, direct_scores(judges["same"], answers(pairs)))
    assert len(set(scores.tolist())) == len(pairs)


def test_a_reward_model_made_elsewhere_scores_at_the_end_of_its_template(judges, tmp_path) -> None:
    reward = load(ModelReward(model="org/elsewhere"), {"reward_elsewhere": judges["elsewhere"]}, tmp_path)
    texts = ["U: a b \nA: good<eos> \n", "U: a b \nA: c<eos> \nU: b \nA: bad a<eos> \n"]
    model = load_reward_model(judges["same"])
    expected = torch.stack([model(torch.tensor([tokenizer()(text)["input_ids"]]))[0, -1] + OFFSET for text in texts])
    assert_close(reward.scorer(answers(TALKS)), expected)


def test_a_reward_model_of_other_tokens_reads_the_conversation_that_the_template_makes_of_a_prompt(
    judges, tmp_path
) -> None:
    template = ConversationTemplate(system_message="c")
    reward = load(ModelReward(model="org/ours"), {"reward_ours": judges["ours"]}, tmp_path, template=template)
    asked = [{"role": "system", "content": "c"}, *TALK]
    expected = direct_scores(judges["same"], answers([(asked, "good")]))
    assert_close(reward.scorer(answers([("a b", "good")])), expected)


def test_a_response_that_is_too_long_for_the_reward_model_is_refused(judges, tmp_path) -> None:
    folder = tiny.write_reward_model(tmp_path / "short", tiny.OTHER_TOKENS, max_position_embeddings=4)
    reward = load(ModelReward(model="short"), {"reward_short": folder}, tmp_path)
    with pytest.raises(InputError, match="short reads at most 4 tokens; a prompt with its response has 7"):
        reward.scorer(answers())


def test_the_chains_own_reward_adapter_is_switched_in_for_each_batch(judges, tmp_path) -> None:
    folder, switched = tmp_path / "adapter", []
    write_adapter_files(folder)

    def shared() -> ScalarModel:
        switched.append(True)
        return load_reward_model(judges["same"])

    reward = load(ModelReward(), {"reward_model": folder}, tmp_path, shared_model=shared)
    for num_before in range(2):
        assert len(switched) == num_before
        assert_close(reward.scorer(answers()), direct_scores(judges["same"], answers()))


def test_a_full_reward_model_is_not_taken_for_the_adapter_on_the_base(judges, tmp_path) -> None:
    def shared() -> ScalarModel:
        raise AssertionError("the adapter was asked")

    for name, config in (("reward_model", ModelReward()), ("reward_x", ModelReward(model="x"))):
        reward = load(config, {name: judges["same"]}, tmp_path, shared_model=shared)
        assert_close(reward.scorer(answers()), direct_scores(judges["same"], answers()))


@pytest.mark.slow
def test_a_reward_adapter_that_is_not_the_chains_own_is_merged_into_a_copy(tmp_path) -> None:
    from tests.tasks.ppo import tiny as chain

    policy, folder = chain.write_policy(tmp_path / "policy"), chain.write_reward_adapter(tmp_path / "adapter")
    tokenizer = chain.make_tokenizer()

    def shared() -> ScalarModel:
        raise AssertionError("the chain's own adapter was asked")

    given = tiny.make_answers(tokenizer, [("w3 w4", "w5"), ("w6", "w7 w8 w9")])
    [reward] = load_rewards(
        [ModelReward(model="org/adapter")],
        {"policy": policy, "reward_adapter": folder},
        tokenizer,
        device=torch.device("cpu"),
        dtype="float32",
        micro_batch_tokens=16,
        log_folder=tmp_path,
        rank=0,
        shared_model=shared,
    )
    model = load_reward_model(folder, policy)
    rows = zip(given.episodes.ids, given.episodes.lengths.tolist(), strict=True)
    expected = torch.stack([model(row[None, :length])[0, -1] for row, length in rows])
    assert_close(reward.scorer(given), expected)


def test_a_function_sees_texts_columns_and_arguments(tmp_path) -> None:
    config = FunctionReward(function=f"{HERE}:remember", weight=2.0, arguments={"level": 3})
    records = [{"answer": "1"}, {"answer": "2", "topic": "x"}]
    scores = load(config, {}, tmp_path).scorer(answers([("a b", " good"), (TALK, "c")], records))
    assert scores.tolist() == [5.0, 1.0]
    assert scores.dtype == torch.float32
    assert SEEN["prompts"] == ["a b", "a b"]
    assert SEEN["responses"] == [" good", "c"]
    assert [SEEN[name] for name in ("answer", "topic", "level")] == [["1", "2"], [None, "x"], 3]
    assert len(SEEN) == 5


def test_the_templates_tags_are_for_rules_that_state_none(tmp_path) -> None:
    def tags(mark: str) -> dict[str, Any]:
        return {name: {"text": f"{mark}{name}"} for name in ("think_start", "think_end", "answer_start", "answer_end")}

    def score(config: FunctionReward, mark: str) -> float:
        response = "".join(f"{tag['text']} 18 " for tag in tags(mark).values()).removesuffix(" 18 ")
        template = ConversationTemplate(response_format_tags=tags("template_"))
        reward = load(config, {}, tmp_path, template=template)
        return reward.scorer(answers([("a", response)], [{"answer": "18"}])).item()

    rule = FunctionReward(function="gsm8k_reward_fn")
    own_tags = FunctionReward(function="gsm8k_reward_fn", arguments={"response_format_tags": tags("own_")})
    assert [score(rule, "template_"), score(rule, "own_")] == [10, 0]
    assert [score(own_tags, "template_"), score(own_tags, "own_")] == [0, 10]
    template = ConversationTemplate(response_format_tags=tags(""))
    load(FunctionReward(function=f"{HERE}:remember"), {}, tmp_path, template=template).scorer(answers())
    assert "response_format_tags" not in SEEN


def test_a_service_reads_prompts_and_responses_with_their_special_tokens(tmp_path) -> None:
    records = [{"truth": 18}, {"truth": None}, {}]
    with serving(lengths) as service:
        config = ApiReward(url=service.url, protocol="openrlhf", label_column="truth")
        scores = load(config, {}, tmp_path).scorer(answers([*PAIRS[:2], TALKS[0]], records))
    assert service.requests == [
        {
            "query": ["a b good<eos>", "c bad a b c good<eos>", "U: a b \nA: good<eos>"],
            "prompts": ["a b", "c", "U: a b \nA:"],
            "labels": ["18", "", ""],
        }
    ]
    assert scores.tolist() == [13.0, 21.0, 20.0]
    assert [json.loads(line)["status"] for line in (tmp_path / "reward_api.jsonl").read_text().splitlines()] == [200]


def test_scores_are_added_by_their_weights() -> None:
    rewards = [Reward(name, weight, lambda _: torch.zeros(2)) for name, weight in (("a", 0.5), ("b", -2.0), ("c", 0.0))]
    scores = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([4.0, 6.0]), "c": torch.tensor([100.0, 100.0])}
    assert combine(scores, rewards).tolist() == [0.0, -1.0]
    assert combine(scores, rewards[:1]).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused_by_name(value: float) -> None:
    check_finite([0.0, 1.0], "the judge")
    with pytest.raises(InputError, match=r"the judge gave the score .* prompt 1 "):
        check_finite([0.0, value], "the judge")


def test_no_source_gives_a_score_that_is_not_finite(judges, tmp_path) -> None:
    reward = load(FunctionReward(function=f"{HERE}:give_nan"), {}, tmp_path)
    with pytest.raises(InputError, match=r"rewards\.give_nan gave the score nan for prompt 1"):
        reward.scorer(answers())
    folder = shutil.copytree(judges["same"], tmp_path / "broken")
    (folder / "scalar_head.json").write_text('{"offset": NaN}')
    reward = load(ModelReward(), {"reward_model": folder}, tmp_path)
    with pytest.raises(InputError, match=r"rewards\.model gave the score nan for prompt 0"):
        reward.scorer(answers())


def test_where_another_watches_a_score_that_is_not_finite_is_let_through(tmp_path) -> None:
    reward = load(FunctionReward(function=f"{HERE}:give_nan"), {}, tmp_path, refuse_not_finite=False)
    assert reward.scorer(answers()).isnan().tolist() == [False, True, False]


def write_adapter_files(folder: Path, tokens: Sequence[str] = tiny.TOKENS) -> None:
    """What tells that a folder holds a reward adapter, and its tokenizer."""
    folder.mkdir()
    for name in ("adapter_config.json", "scalar_head.safetensors"):
        (folder / name).write_text("{}")
    tiny.make_tokenizer(tokens).save_pretrained(folder)


def test_a_source_that_is_not_what_it_should_be_is_refused(judges, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("JUDGE_AUTH", raising=False)
    language_model, adapter = tmp_path / "model", tmp_path / "adapter"
    language_model.mkdir()
    (language_model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_adapter_files(adapter, tiny.OTHER_TOKENS)
    url = "http://localhost:1/"
    for config, folders, fault in (
        (ModelReward(), {}, "--input reward_model=DIR is missing"),
        (ModelReward(model="x"), {"reward_model": judges["same"]}, "--input reward_x=DIR is missing"),
        (ModelReward(), {"reward_model": language_model}, "kind `reward_model`.*found a causal language model"),
        (ModelReward(), {"reward_model": adapter}, "another tokenizer than the policy.*policy's base"),
        (FunctionReward(function="no.such:rule"), {}, "no.such:rule"),
        (ApiReward(url=url, auth_variable="JUDGE_AUTH"), {}, "JUDGE_AUTH is not set"),
        (ApiReward(url=url, replay=str(tmp_path / "no.jsonl")), {}, "no.jsonl is not a file"),
    ):
        with pytest.raises(InputError, match=fault):
            check_rewards([ModelReward(model="fine"), config], {"reward_fine": judges["ours"], **folders}, tokenizer())


def test_a_source_that_cannot_score_the_prompts_is_refused(judges) -> None:
    plain, talks = answers(PAIRS).prompts, answers(TALKS).prompts
    answered = answers(PAIRS[:1], [{"answer": "1"}]).prompts
    for name in ("same", "same_wordless", "ours"):
        check_prompts([ModelReward()], {"reward_model": judges[name]}, tokenizer(), talks)
    check_prompts([ModelReward()], {"reward_model": judges["wordless"]}, tokenizer(), plain)
    with pytest.raises(InputError, match=r"wordless: the prompts are conversations.*no chat template"):
        check_prompts([ModelReward()], {"reward_model": judges["wordless"]}, tokenizer(), [*plain, *talks])
    with pytest.raises(InputError, match="no chat template"):
        check_prompts([ModelReward()], {"reward_model": judges["wordless"]}, tokenizer(), plain, ConversationTemplate())
    template = ConversationTemplate(response_format_tags={"thought": {"text": "x"}})
    with pytest.raises(InputError, match=r"response_format_tags:\n  thought: Extra inputs"):
        check_prompts([FunctionReward(function="gsm8k_reward_fn")], {}, tokenizer(), answered, template)
    check_prompts([FunctionReward(function=f"{HERE}:needs_answer")], {}, tokenizer(), answered)
    with pytest.raises(InputError, match="needs_answer cannot be called: missing a required argument: 'answer'"):
        check_prompts([FunctionReward(function=f"{HERE}:needs_answer")], {}, tokenizer(), plain)
