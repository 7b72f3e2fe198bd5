"""The pipeline's options, and single ones replaced."""

from typing import Any

import pytest
from pydantic import ValidationError

from flows.pipeline import Pipeline
from tasks.errors import InputError

SMALLEST: dict[str, Any] = {
    "prepare_data": {"sft": {"path": "python:tasks.prepare_data.demo:sft_records"}},
    "sft": {"from_scratch": {}},
}


def pipeline(**options: Any) -> Pipeline:
    return Pipeline.model_validate(SMALLEST | options)


def test_an_override_changes_one_option_and_nothing_else() -> None:
    before = pipeline()
    after = before.overridden({"ppo.kl_coef": 0.125})
    assert after.ppo.kl_coef == 0.125
    assert after.overridden({"ppo.kl_coef": before.ppo.kl_coef}) == before


def test_a_nested_option_can_be_overridden() -> None:
    assert pipeline().overridden({"ppo.sampling.temperature": 0.5}).ppo.sampling.temperature == 0.5


def test_an_override_that_is_no_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"'ppo.kl_koef' is no option(.|\n)*ppo\.kl_coef"):
        pipeline().overridden({"ppo.kl_koef": 0.1})


def test_an_override_of_the_wrong_type_is_refused_naming_field_and_value() -> None:
    with pytest.raises(InputError, match=r"ppo\.kl_coef: .*got 'much'"):
        pipeline().overridden({"ppo.kl_coef": "much"})


def test_the_seed_reaches_every_stage_that_has_one() -> None:
    seeded = pipeline().overridden({}, seed=7)
    stages = {name: options.seed for name, options in seeded if hasattr(options, "seed")}
    assert set(stages) >= {"sft", "reward_model", "ppo", "evaluate"}
    assert set(stages.values()) == {7}


def test_the_seed_reaches_a_generator_of_records() -> None:
    source = {"path": "python:tasks.prepare_data.demo:sft_records", "arguments": {"seed": 0, "num_records": 5}}
    seeded = pipeline(prepare_data={"sft": source}).overridden({}, seed=7)
    assert seeded.prepare_data.sft.arguments == {"seed": 7, "num_records": 5}


def test_the_seed_reaches_each_of_several_generators_of_records() -> None:
    source = {"path": "python:tasks.prepare_data.demo:sft_records", "arguments": {"seed": 0}}
    sources = [{**source, "name": name} for name in ("one", "other")]
    seeded = pipeline(prepare_data={"sft": sources}).overridden({}, seed=7)
    assert [each.arguments for each in seeded.prepare_data.given()["sft"]] == [{"seed": 7}, {"seed": 7}]


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="kl_koef"):
        pipeline(ppo={"kl_koef": 0.1})


def test_a_pipeline_without_any_score_is_refused() -> None:
    with pytest.raises(ValidationError, match="asks for the chain's reward model, but neither"):
        pipeline(reward_model=None)
    rule = {"rewards": [{"type": "function", "function": "gsm8k_reward_fn"}]}
    with pytest.raises(ValidationError, match=r"Nothing would judge the answers .* evaluate\.metrics"):
        pipeline(reward_model=None, ppo=rule)
    judged = pipeline(
        reward_model=None, ppo=rule, evaluate={"metrics": {"gsm8k": "tasks.rewards.rules:gsm8k_reward_fn"}}
    )
    assert judged.reward_model is None


def test_a_second_reward_model_has_to_be_another_one_and_to_be_there_where_ppo_asks_for_it() -> None:
    with pytest.raises(ValidationError, match="would be the same model"):
        pipeline(second_reward_model={})
    halves = {"reward_model": {"half": "first"}, "second_reward_model": {"half": "second"}}
    assert pipeline(**halves).second_reward_model is not None
    rewards = {"rewards": [{"type": "model"}, {"type": "model", "model": "second_reward_model", "weight": 0}]}
    with pytest.raises(ValidationError, match=r"ppo\.rewards name second_reward_model, but neither"):
        pipeline(ppo=rewards)
    assert pipeline(ppo=rewards, **halves).ppo.uses_second_reward_model
    assert pipeline(ppo=rewards, existing={"second_reward_model": "org/judge"}).ppo.uses_second_reward_model


def test_a_threshold_of_the_certificate_can_be_accepted_for_one_run() -> None:
    accepting = pipeline().overridden({"certify.accept": ["length_bias"]})
    assert accepting.certify is not None
    assert accepting.certify.accept == ["length_bias"]


def test_a_gate_on_a_figure_that_there_will_not_be_is_refused_with_the_nearest_name() -> None:
    for figure, nearest in (("champion_win_rte", "champion_win_rate"), ("rule_differenc", "rule_difference")):
        with pytest.raises(ValidationError, match=f"no figure '{figure}'.*{nearest}"):
            pipeline(evaluate={"metrics": {"rule": "m:f"}}, gate={"rules": [{"figure": figure, "least": 0}]})
    with pytest.raises(ValidationError, match="no figure 'llm_win_rate'"):
        pipeline(gate={"rules": [{"figure": "llm_win_rate", "least": 0.5}]})
    judge = {"url": "http://localhost:1/", "model": "judge"}
    judged = pipeline(evaluate={"llm_judge": judge}, gate={"rules": [{"figure": "llm_win_rate", "least": 0.5}]})
    assert judged.gate.rules[0].figure == "llm_win_rate"


def test_the_adapter_alone_is_refused_where_none_is_trained() -> None:
    alone: dict[str, Any] = {"export": {"adapter": {}}}
    assert pipeline(**alone, ppo={"tuning": "lora"}).export.adapter is not None
    assert pipeline(**alone, ppo={"tuning": "full"}, existing={"ppo": "folder"}).export.adapter is not None
    with pytest.raises(ValidationError, match=r"export\.adapter asks for the adapter alone.*Set ppo\.tuning"):
        pipeline(**alone, ppo={"tuning": "full"})


def test_the_gate_can_be_overridden() -> None:
    assert pipeline().overridden({"gate.tax": 0.5}).gate.tax == 0.5


def test_a_pipeline_without_a_start_is_refused() -> None:
    with pytest.raises(ValidationError, match="SFT has nothing to start from"):
        pipeline(sft={})
    assert pipeline(sft={}, model="org/name").model == "org/name"


def test_a_missing_store_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNMENT_STORE", raising=False)
    with pytest.raises(InputError, match="ALIGNMENT_STORE"):
        pipeline().workplace()


def test_a_missing_accelerate_config_is_refused_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_STORE", "file:///tmp/nowhere")
    with pytest.raises(InputError, match=r"infra/accelerate/tpu.yaml does not exist"):
        pipeline(accelerate_config="infra/accelerate/tpu.yaml").workplace()
