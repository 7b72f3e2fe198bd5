import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.config import SamplingConfig
from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig, LlmJudge
from tasks.evaluate.evaluation import measure
from tasks.evaluate.llm_judge import check_llm_judge, compare, load_llm_judge
from tasks.rewards import client
from tests.tasks.evaluate import tiny_chain
from tests.tasks.rewards.service import Reply, serving

PROMPTS, RIVALS, ANSWERS = ["p", "q", "r"], ["bad", "so-so", "good"], ["good", "so-so", "bad"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def reply(text: str) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def shown(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers in a request, in the order in which they are shown."""
    _, _, answers = request["messages"][1]["content"].partition("[Answer A]\n")
    first, _, second = answers.partition("\n\n[Answer B]\n")
    return first, second


def fair(request: dict[str, Any], _: int) -> Reply:
    first, second = shown(request)
    return reply("[[C]]" if first == second else f"One is better: [[{'A' if 'good' in first else 'B'}]]")


def always_first(request: dict[str, Any], _: int) -> Reply:
    return reply("[[B]]? No: [[A]]")


def judged(answer: Any, tmp_path: Path, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    with serving(answer) as service:
        config = LlmJudge(url=service.url, model="judge", num_parallel=1, **options)
        verdicts = compare(config, load_llm_judge(config, tmp_path), PROMPTS, RIVALS, ANSWERS)
    return verdicts, service.requests


def test_each_pair_is_shown_in_both_orders_and_equal_answers_not_at_all(tmp_path: Path) -> None:
    verdicts, requests = judged(fair, tmp_path)
    assert [shown(request) for request in requests] == [
        ("bad", "good"),
        ("good", "bad"),
        ("good", "bad"),
        ("bad", "good"),
    ]
    assert verdicts.outcomes.tolist() == [1.0, 0.5, 0.0]
    assert verdicts.figures() == {
        "position_bias": 0.0,
        "agreement": 1.0,
        "tie_share": pytest.approx(1 / 3),
        "unread_share": 0.0,
    }
    assert requests[0]["model"] == "judge"
    assert requests[0]["temperature"] == 0
    assert requests[0]["messages"][0]["role"] == "system"
    assert requests[0]["messages"][1]["content"].startswith("[Prompt]\np\n")


def test_a_judge_that_always_prefers_the_first_answer_is_seen_through(tmp_path: Path) -> None:
    verdicts, _ = judged(always_first, tmp_path)
    assert verdicts.outcomes.tolist() == [0.5, 0.5, 0.5]
    assert verdicts.figures()["position_bias"] == pytest.approx(2 / 3)  # of three pairs one was equal, not asked about
    assert verdicts.figures()["agreement"] == pytest.approx(1 / 3)


def test_only_so_many_prompts_are_asked_about(tmp_path: Path) -> None:
    verdicts, requests = judged(fair, tmp_path, num_prompts=1)
    assert len(requests) == 2
    assert verdicts.outcomes.tolist() == [1.0]


def test_a_reply_without_a_verdict_is_a_tie_and_many_are_refused(tmp_path: Path) -> None:
    def mute(request: dict[str, Any], number: int) -> Reply:
        return fair(request, number) if number else reply("I cannot tell.")

    verdicts, _ = judged(mute, tmp_path, max_unread_share=0.25)
    assert verdicts.outcomes.tolist() == [0.75, 0.5, 0.0]
    assert verdicts.figures()["unread_share"] == pytest.approx(1 / 6)
    with pytest.raises(InputError, match=r"1 of 4 replies hold none of \[\[A\]\]"):
        judged(mute, tmp_path)


def test_an_answer_that_is_no_chat_completion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"llm_judge\.llm: .* choices\[0\]\.message\.content.*got {'scores': \[1\]}"):
        judged(lambda *_: (200, {"scores": [1]}, {}), tmp_path)


def test_a_failure_that_may_pass_is_tried_again_with_the_header_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_AUTH", "Bearer s3cret")

    def busy(request: dict[str, Any], number: int) -> Reply:
        return fair(request, number) if number else (503, {}, {})

    with serving(busy) as service:
        config = LlmJudge(url=service.url, model="judge", auth_variable="JUDGE_AUTH")
        verdicts = compare(config, load_llm_judge(config, tmp_path), PROMPTS, RIVALS, ANSWERS)
    assert verdicts.outcomes.tolist() == [1.0, 0.5, 0.0]
    assert {headers["authorization"] for headers in service.headers} == {"Bearer s3cret"}
    log = (tmp_path / "judge_llm.jsonl").read_text()
    assert [json.loads(line)["status"] for line in log.splitlines()].count(503) == 1
    assert "s3cret" not in log


def test_a_missing_header_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_AUTH", raising=False)
    config = LlmJudge(url="http://localhost:1/", model="judge", auth_variable="JUDGE_AUTH")
    with pytest.raises(InputError, match=r"llm_judge\.llm: the environment variable JUDGE_AUTH is not set"):
        check_llm_judge(config)


def test_a_log_answers_instead_of_the_service(tmp_path: Path) -> None:
    verdicts, _ = judged(fair, tmp_path)
    replay = LlmJudge(url="http://localhost:1/", model="judge", replay=str(tmp_path / "judge_llm.jsonl"))
    check_llm_judge(replay)
    again = compare(replay, load_llm_judge(replay, tmp_path), PROMPTS, RIVALS, ANSWERS)
    np.testing.assert_array_equal(again.shown_first, verdicts.shown_first)
    with pytest.raises(InputError, match=r"holds 4 answers, but none to '\[Prompt\]"):
        compare(replay, load_llm_judge(replay, tmp_path), PROMPTS, RIVALS, ["other", "so-so", "bad"])


def test_an_evaluation_has_the_language_models_win_rates_over_both_rivals(tmp_path: Path) -> None:
    chain = tiny_chain.write_chain(tmp_path / "chain") | tiny_chain.write_more(tmp_path / "more")
    with serving(fair) as service:
        judge = LlmJudge(url=service.url, model="judge")
        sampling = SamplingConfig(response_length=6)
        config = EvaluateConfig(num_bootstrap=100, num_timed=0, greedy=False, sampling=sampling, llm_judge=judge)
        figures = measure(config, chain, tmp_path).figures
    assert figures["llm_win_rate"] > 0.5  # "fair" likes the word that PPO likes
    assert figures["llm_win_rate_low"] <= figures["llm_win_rate"] <= figures["llm_win_rate_high"]
    assert "champion_llm_win_rate_length_controlled" in figures
    assert "llm" not in {figures["judge"]}


def test_a_judges_name_must_be_free() -> None:
    judge = {"url": "http://localhost:1/", "model": "judge"}
    for name in ("score", "champion_llm"):
        with pytest.raises(ValueError, match=r"llm_judge\.name .* is taken"):
            EvaluateConfig(llm_judge=judge | {"name": name})
    with pytest.raises(ValueError, match=r"llm_judge\.name 'mine' is taken"):
        EvaluateConfig(llm_judge=judge | {"name": "mine"}, metrics={"mine": "a:b"})
