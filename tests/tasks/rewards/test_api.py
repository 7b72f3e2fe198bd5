import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InputError
from tasks.rewards import api, client
from tasks.rewards.api import Message, check_service, load_service
from tasks.rewards.config import ApiReward
from tests.tasks.rewards.service import Reply, lengths, serving


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def messages(*texts: str, label: str = "") -> list[Message]:
    return [Message(text, text[:1], label) for text in texts]


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_llama_factorys_protocol(tmp_path) -> None:
    with serving(lengths) as service:
        scores = load_service(ApiReward(url=service.url), tmp_path, 0)(messages("a<eos>", "bb<eos>"))
    assert service.requests == [{"model": "model", "messages": ["a<eos>", "bb<eos>"]}]
    assert scores == [6.0, 7.0]


def test_openrlhfs_protocol(tmp_path) -> None:
    with serving(lengths) as service:
        ask = load_service(ApiReward(url=service.url, protocol="openrlhf"), tmp_path, 0)
        scores = ask([Message("pr", "p", "18"), Message("qss", "q", "")])
    assert service.requests == [{"query": ["pr", "qss"], "prompts": ["p", "q"], "labels": ["18", ""]}]
    assert scores == [2.0, 3.0]


def test_batches_go_out_in_parallel_and_come_back_in_order(tmp_path) -> None:
    meeting = threading.Barrier(3)

    def answer(request: dict[str, Any], number: int) -> Reply:
        meeting.wait(timeout=5)  # passed only if three requests are under way at once
        time.sleep(0.05 if "a" in request["messages"] else 0)
        return lengths(request, number)

    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    with serving(answer) as service:
        ask = load_service(ApiReward(url=service.url, batch_size=2, num_parallel=3), tmp_path, 0)
        assert ask(messages(*texts)) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert sorted(len(request["messages"]) for request in service.requests) == [1, 2, 2]


def test_no_more_requests_are_under_way_than_allowed(tmp_path) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        time.sleep(0.02)
        return lengths(request, number)

    with serving(answer) as service:
        load_service(ApiReward(url=service.url, batch_size=1, num_parallel=2), tmp_path, 0)(messages(*"abcdef"))
    assert len(service.requests) == 6
    assert service.most_under_way == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_failure_that_may_pass_is_tried_again(tmp_path, status: int, capsys) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        return lengths(request, number) if number == 2 else (status, {"detail": "busy"}, {})

    with serving(answer) as service:
        assert load_service(ApiReward(url=service.url), tmp_path, 0)(messages("abc")) == [3.0]
    assert len(service.requests) == 3
    assert f"rewards.api: status {status}: {{'detail': 'busy'}}; asked again in" in capsys.readouterr().out
    assert [line["status"] for line in log_lines(tmp_path / "reward_api.jsonl")] == [status, status, 200]


def test_a_service_that_is_too_slow_is_asked_again(tmp_path) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        time.sleep(0.3 if number == 0 else 0)
        return lengths(request, number)

    with serving(answer) as service:
        assert load_service(ApiReward(url=service.url, timeout_s=0.1), tmp_path, 0)(messages("abc")) == [3.0]
    first, second = log_lines(tmp_path / "reward_api.jsonl")
    assert first["status"] is None
    assert first["error"].startswith("ReadTimeout")
    assert 0.1 <= first["seconds"] < 0.3
    assert second["answer"] == {"scores": [3]}


def test_a_service_that_stays_away_ends_in_an_error_that_a_later_try_can_mend(tmp_path) -> None:
    with serving(lengths) as service:
        pass
    with pytest.raises(ConnectionError, match=rf"{service.url} failed 3 times, at last with ConnectError"):
        load_service(ApiReward(url=service.url, max_retries=2), tmp_path, 0)(messages("abc"))
    assert len(log_lines(tmp_path / "reward_api.jsonl")) == 3


def test_a_service_that_stays_broken_ends_in_an_error_that_names_its_status(tmp_path) -> None:
    with serving(lambda *_: (502, b"<html>bad gateway</html>", {})) as service:
        with pytest.raises(ConnectionError, match=r"failed 2 times, at last with status 502: '<html>bad gateway"):
            load_service(ApiReward(url=service.url, max_retries=1), tmp_path, 0)(messages("abc"))
        assert len(service.requests) == 2


@pytest.mark.parametrize("status", [302, 401, 422])
def test_another_status_is_refused_at_once(tmp_path, status: int) -> None:
    with serving(lambda *_: (status, {"detail": "no"}, {})) as service:
        with pytest.raises(InputError, match=rf"{service.url} .* status 200, got status {status}: .*no"):
            load_service(ApiReward(url=service.url), tmp_path, 0)(messages("abc"))
        assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("ok", r'a JSON object with a list "scores", got \'ok\''),
        ([1, 2], r'a JSON object with a list "scores", got \[1, 2\]'),
        ({"rewards": [1, 2]}, r"a list \"scores\", got {'rewards': \[1, 2\]}.*protocol \(now llama_factory\)"),
        ({"scores": 1}, 'a JSON object with a list "scores"'),
        ({"scores": [1]}, '2 numbers in "scores", one per message, got 1'),
        ({"scores": [1, 2, 3]}, '2 numbers in "scores", one per message, got 3'),
        ({"scores": [1, "2"]}, "a finite number for message 1 in \"scores\", got '2'"),
        ({"scores": [None, 2]}, "message 0 .* got None"),
        ({"scores": [True, 2]}, "message 0 .* got True"),
        ({"scores": [[1], [2]]}, r"message 0 .* got \[1\]"),
        ({"scores": [1, float("nan")]}, "message 1 .* got nan"),
        ({"scores": [-float("inf"), 1]}, "message 0 .* got -inf"),
    ],
)
def test_a_wrong_answer_is_refused_with_what_was_expected(answer: Any, fault: str) -> None:
    with pytest.raises(InputError, match=rf"rewards\.api: http://judge/ should answer with .*{fault}"):
        api.read_scores(ApiReward(url="http://judge/"), answer, 2)


@pytest.mark.parametrize("content", [b"ok", b'{"scores": [NaN]}', b""])
def test_a_wrong_answer_is_not_asked_for_again_and_stays_in_the_log(tmp_path, content: bytes) -> None:
    with serving(lambda *_: (200, content, {})) as service:
        with pytest.raises(InputError, match=f"{service.url} should answer with"):
            load_service(ApiReward(url=service.url), tmp_path, 0)(messages("a"))
        assert len(service.requests) == 1
    assert len(log_lines(tmp_path / "reward_api.jsonl")) == 1


def test_pauses_double_up_to_a_limit_and_differ_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.5)
    for retry, longest in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30]):
        pauses = {client._pause_s(retry) for _ in range(20)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_longer_pause_that_the_service_asks_for_is_honoured(tmp_path, form: str, monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    def answer(request: dict[str, Any], number: int) -> Reply:
        return lengths(request, number) if number else (503, {}, {"Retry-After": "60" if form == "seconds" else later})

    with serving(answer) as service:
        load_service(ApiReward(url=service.url), tmp_path, 0)(messages("abc"))
    assert slept == [pytest.approx(60, abs=2)]


def test_a_header_that_asks_for_nothing_sensible_is_no_pause() -> None:
    assert [client._retry_after_s(header) for header in ("", "soon", "-3", "Mon, 01 Jan 2001 00:00:00 GMT")] == [0] * 4


def test_the_authorization_header_comes_from_the_environment_and_stays_out_of_the_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_AUTH", "Bearer s3cret\n")
    with serving(lengths) as service:
        load_service(ApiReward(url=service.url, auth_variable="JUDGE_AUTH"), tmp_path, 0)(messages("abc"))
        load_service(ApiReward(url=service.url), tmp_path, 0)(messages("abc"))
    assert [headers.get("authorization") for headers in service.headers] == ["Bearer s3cret", None]
    assert "s3cret" not in (tmp_path / "reward_api.jsonl").read_text()


@pytest.mark.parametrize("status", [401, 503, 200])
def test_an_authorization_header_that_the_service_repeats_is_shown_and_kept_nowhere(
    status: int, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("JUDGE_AUTH", "Bearer s3cret")
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    repeated = {"error": ["no right for Bearer s3cret", {"s3cret": "token s3cret expired"}]}
    with serving(lambda request, number: (status, repeated, {})) as service:
        config = ApiReward(url=service.url, auth_variable="JUDGE_AUTH", max_retries=1)
        with pytest.raises((InputError, ConnectionError), match=r"no right for \(hidden\)") as refused:
            load_service(config, tmp_path, 0)(messages("abc"))
    assert service.headers[0]["authorization"] == "Bearer s3cret"
    log = (tmp_path / "reward_api.jsonl").read_text()
    assert "token (hidden) expired" in log
    assert "s3cret" not in log + str(refused.value) + "".join(capsys.readouterr())


@pytest.mark.parametrize("value", ["Bearer s3cret\nX-Other: 1", "Bearer s3cr\u00e9t", "Bearer s3\0cret"])
def test_an_authorization_header_that_none_can_be_is_refused_and_not_shown(value: str, monkeypatch) -> None:
    monkeypatch.setattr(client.os, "environ", {"JUDGE_AUTH": value})
    with pytest.raises(InputError, match="JUDGE_AUTH holds characters that no header may have") as refused:
        check_service(ApiReward(url="http://localhost:1/", auth_variable="JUDGE_AUTH"))
    assert "s3" not in str(refused.value)


def test_a_missing_authorization_header_is_refused_before_anything_is_sent(monkeypatch) -> None:
    monkeypatch.delenv("JUDGE_AUTH", raising=False)
    config = ApiReward(url="http://localhost:1/", auth_variable="JUDGE_AUTH")
    with pytest.raises(InputError, match=r"rewards\.api: the environment variable JUDGE_AUTH is not set"):
        check_service(config)
    monkeypatch.setenv("JUDGE_AUTH", "Bearer x")
    check_service(config)


def test_every_process_logs_into_a_file_of_its_own_and_a_later_run_appends(tmp_path) -> None:
    with serving(lengths) as service:
        config = ApiReward(url=service.url, name="judge")
        for rank in (0, 1, 0):
            load_service(config, tmp_path, rank)(messages("naïve \ud800"[:5]))
    assert {path.name for path in tmp_path.iterdir()} == {"reward_judge.jsonl", "reward_judge.rank1.jsonl"}
    line = log_lines(tmp_path / "reward_judge.jsonl")[1]
    assert line["request"] == {"model": "model", "messages": ["naïve"]}
    assert (line["status"], line["answer"], line["error"]) == (200, {"scores": [5]}, None)


def test_text_that_is_not_unicode_can_be_logged_and_read_again(tmp_path) -> None:
    content = b'{"scores": [1], "note": "\\ud800"}'
    with serving(lambda *_: (200, content, {})) as service:
        config = ApiReward(url=service.url)
        assert load_service(config, tmp_path, 0)(messages("a")) == [1.0]
    replay = config.model_copy(update={"replay": str(tmp_path / "reward_api.jsonl")})
    assert load_service(replay, tmp_path, 0)(messages("a")) == [1.0]


@pytest.mark.parametrize("protocol", ["llama_factory", "openrlhf"])
def test_a_log_answers_instead_of_the_service_whatever_the_order(tmp_path, protocol: Any) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        return lengths(request, number) if number else (503, {}, {})

    with serving(answer) as service:
        config = ApiReward(url=service.url, protocol=protocol, batch_size=2, num_parallel=1)
        load_service(config, tmp_path, 0)(messages("a", "bb", "ccc"))
        load_service(config, tmp_path, 1)(messages("dddd"))
    replay = config.model_copy(update={"replay": str(tmp_path / "reward_api.jsonl")})
    check_service(replay)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert load_service(replay, tmp_path, 0)(messages("dddd", "ccc", "a", "ccc", "bb")) == [4.0, 3.0, 1.0, 3.0, 2.0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match=r"none of the 4 messages in the log .*reward_api.jsonl is 'eeeee'"):
        load_service(replay, tmp_path, 0)(messages("a", "eeeee"))


def test_a_log_tells_labels_apart(tmp_path) -> None:
    with serving(lambda request, _: (200, {"rewards": [float(label) for label in request["labels"]]}, {})) as service:
        config = ApiReward(url=service.url, protocol="openrlhf")
        load_service(config, tmp_path, 0)([*messages("a", label="1"), *messages("a", label="2")])
    replay = config.model_copy(update={"replay": str(tmp_path / "reward_api.jsonl")})
    assert load_service(replay, tmp_path, 0)([*messages("a", label="2"), *messages("a", label="1")]) == [2.0, 1.0]


def test_what_cannot_be_replayed_is_refused(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    config = ApiReward(url="http://localhost:1/", replay=str(log))
    with pytest.raises(InputError, match=r"log\.jsonl is not a file"):
        check_service(config)
    line = {"request": {"query": ["a"]}, "status": 200, "answer": {"rewards": [1]}, "error": None, "seconds": 0}
    log.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="is not a log of the protocol llama_factory: a request lacks messages"):
        check_service(config)
    log.write_text('{"half a li\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 1 is no request with its answer"):
        check_service(config)
