import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.program import explain
from tasks.rewards.config import ApiReward, FunctionReward, ModelReward, RewardConfig, ScoreConfig, check_names

ADAPTER = TypeAdapter(RewardConfig)
URL = "http://localhost:8000/v1/score"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"type": "model"}, "model"),
        ({"type": "model", "model": "org/Judge-7B@v1.0"}, "Judge_7B"),
        ({"type": "model", "model": "/models/judge/"}, "judge"),
        ({"type": "function", "function": "gsm8k_reward_fn"}, "gsm8k_reward_fn"),
        ({"type": "function", "function": "my.rules:Tone.polite"}, "Tone_polite"),
        ({"type": "api", "url": URL}, "api"),
        ({"type": "api", "url": URL, "name": "judge"}, "judge"),
    ],
)
def test_each_source_has_a_name_that_its_metric_and_file_can_bear(options: dict[str, str], name: str) -> None:
    assert ADAPTER.validate_python(options).name == name


def test_a_reward_model_has_an_input_of_its_own_and_the_chains_own_has_its_old_one() -> None:
    assert ModelReward().input_name == "reward_model"
    assert ModelReward(name="quality").input_name == "reward_model"
    assert ModelReward(model="org/judge").input_name == "reward_judge"
    with pytest.raises(ValidationError, match="'model' is kept for the chain's own reward model; give org/x another"):
        ModelReward(model="org/x", name="model")


def test_the_chains_second_reward_model_has_an_input_of_its_own_and_nowhere_to_be_fetched_from() -> None:
    second = ModelReward(model="second_reward_model", weight=0)
    assert (second.input_name, second.name, second.source) == ("second_reward_model", "second_reward_model", None)
    assert ModelReward(model="org/judge").source == "org/judge"
    both = ScoreConfig(rewards=[ModelReward(), second])
    assert both.uses_reward_model
    assert both.uses_second_reward_model
    assert not ScoreConfig().uses_second_reward_model


def test_two_sources_with_one_name_are_refused() -> None:
    check_names([ModelReward(), ApiReward(url=URL), ApiReward(url=URL, name="second")])
    with pytest.raises(ValueError, match="two rewards are named api; set `name` so"):
        check_names([ApiReward(url=URL), ModelReward(), ApiReward(url=URL)])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "http://host:99999/", "http://host/a b"])
def test_an_address_that_nothing_can_be_posted_to_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        ApiReward(url=url)


def test_a_secret_in_the_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="auth_variable"):
        ApiReward(url="https://user:secret@host/")


@pytest.mark.parametrize("function", ["gsm8k", "package.module", ":f", "module:", "a b:c"])
def test_a_function_that_is_no_path_and_no_rule_is_refused(function: str) -> None:
    with pytest.raises(ValidationError, match=r"expected package\.module:function, or one of gsm8k_reward_fn, math_"):
        FunctionReward(function=function)


def test_a_wrong_field_is_explained_without_the_name_that_would_come_from_it() -> None:
    with pytest.raises(ValidationError) as caught:
        FunctionReward(function="gsm8k")
    assert [line.split(":")[0] for line in explain(caught.value).splitlines()] == ["  function"]


def test_a_rule_can_be_named_alone_or_by_its_path() -> None:
    path = "tasks.rewards.rules:gsm8k_reward_fn"
    assert FunctionReward(function="gsm8k_reward_fn").path == path
    assert FunctionReward(function=path).is_rule
    assert not FunctionReward(function="other.module:gsm8k_reward_fn").is_rule


def test_wrong_format_tags_are_refused_with_the_config() -> None:
    tags = {"think_start": {"text": "<t>", "num_occur": 1}}
    FunctionReward(function="gsm8k_reward_fn", arguments={"response_format_tags": tags})
    with pytest.raises(ValidationError, match="thought"):
        FunctionReward(function="gsm8k_reward_fn", arguments={"response_format_tags": {"thought": {"text": "<t>"}}})
    FunctionReward(function="my.rules:own", arguments={"response_format_tags": "anything"})


def test_an_argument_that_ppo_gives_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="responses are given by PPO itself"):
        FunctionReward(function="my.rules:own", arguments={"responses": []})


@pytest.mark.parametrize(
    "options",
    [
        {"type": "api", "url": URL, "timeout_s": 0},
        {"type": "api", "url": URL, "auth_variable": "MY TOKEN"},
        {"type": "api", "url": URL, "num_parallel": 0},
        {"type": "model", "weight": float("nan")},
        {"type": "model", "name": "../up"},
        {"type": "model", "url": URL},
        {"type": "function"},
        {"model": "org/judge"},
    ],
)
def test_what_no_source_can_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(options)


def test_every_source_survives_the_way_through_json() -> None:
    for source in (ModelReward(model="a/b", weight=-0.5), FunctionReward(function="m:f"), ApiReward(url=URL)):
        assert ADAPTER.validate_json(ADAPTER.dump_json(source)) == source


def test_the_sources_are_alternatives_that_a_form_can_show() -> None:
    schema = TypeAdapter(list[RewardConfig]).json_schema()["items"]
    assert [alternative["$ref"].rpartition("/")[2] for alternative in schema["anyOf"]] == [
        "ModelReward", "FunctionReward", "ApiReward",
    ]  # fmt: skip
    assert "oneOf" not in schema
