"""Prompts are read once, and each iteration gets its own whatever was asked before."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.prompts import (
    Prompt,
    batch_of,
    check_proportions,
    mixture,
    read_prompts,
)
from tasks.templates import ConversationTemplate
from tests.tasks.ppo.tiny import make_tokenizer

SHARES = st.dictionaries(st.sampled_from(["maths", "talk", "code", "law"]), st.floats(1e-3, 10), min_size=1, max_size=4)
DIALOGUE = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]


def write(folder: Path, **columns: Sequence[object]) -> Path:
    pq.write_table(pa.table(columns), folder / "prompts_train.parquet")
    return folder


def prompts_of(**sizes: int) -> list[Prompt]:
    """So many prompts of each data set; the i-th has i as its only token."""
    return [Prompt([index], f"{name} {index}", {}, name) for name, size in sizes.items() for index in range(size)]


def test_prompts_are_tokenised_and_keep_their_columns_and_the_name_of_their_data_set(tmp_path: Path) -> None:
    write(tmp_path, prompt=["w5 w6", "w3"], answer=["1", "3"], source=["maths", "talk"])
    prompts = read_prompts(tmp_path, "train", make_tokenizer(), longest=None)
    assert prompts == [Prompt([5, 6], "w5 w6", {"answer": "1"}, "maths"), Prompt([3], "w3", {"answer": "3"}, "talk")]
    assert [prompt.text for prompt in prompts] == ["w5 w6", "w3"]


def test_too_long_prompts_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, prompt=["w5 w6", "w7 w8 w9 w10", "w3"])
    kept = read_prompts(tmp_path, "train", make_tokenizer(), longest=2)
    assert [prompt.ids for prompt in kept] == [[5, 6], [3]]
    assert "2 prompts; left out as longer than 2 tokens: 1" in capsys.readouterr().out
    assert {prompt.source for prompt in kept} == {"prompts"}
    with pytest.raises(InputError, match=r"none of the 3 records .* at most 0 tokens.*the shortest has 1"):
        read_prompts(tmp_path, "train", make_tokenizer(), longest=0)


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("w5 <eos>", "record 0 of prompts_train ends in <eos>, which ends a response"),
        ("", "has no tokens"),
        (DIALOGUE, "ends with an assistant message, which is the answer that PPO writes.*map the question alone"),
    ],
)
def test_a_prompt_that_is_answered_or_empty_is_refused(tmp_path: Path, prompt: object, fault: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content + ' ' }}{% endfor %}"
    with pytest.raises(InputError, match=fault):
        read_prompts(write(tmp_path, prompt=[prompt]), "train", tokenizer, longest=None)


def test_a_template_changes_the_tokens_and_not_the_prompt(tmp_path: Path) -> None:
    write(tmp_path, prompt=["w5"])
    template = ConversationTemplate(
        chat_template="{% for message in messages %}{{ message.content + ' ' }}{% endfor %}w9", system_message="w8"
    )
    [prompt] = read_prompts(tmp_path, "train", make_tokenizer(), None, template)
    assert (prompt.ids, prompt.prompt) == ([8, 5, 9], "w5")


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    prompts = prompts_of(maths=7, talk=3)
    taken = [prompt.text for iteration in range(5) for prompt in batch_of(prompts, iteration, 4, seed=0)]
    assert len(taken) == 20
    assert Counter(taken[:10]) == Counter(taken[10:]) == Counter(prompt.text for prompt in prompts)
    assert taken[:10] != taken[10:]
    assert batch_of(prompts, 3, 4, seed=0) == batch_of(prompts, 3, 4, seed=0)
    assert batch_of(prompts, 3, 4, seed=0) != batch_of(prompts, 3, 4, seed=1)
    assert len(batch_of(prompts[:3], 0, 8, seed=0)) == 8


def test_a_mixture_by_hand() -> None:
    # Three of maths to one of talk: turns are due at 2/3, 2, 10/3, 14/3, ... and at 2, 6, ...
    names = [name for name, _ in mixture({"talk": 1, "maths": 3}, range(8))]
    assert names == ["maths", "maths", "talk", "maths", "maths", "maths", "talk", "maths"]
    assert mixture({"talk": 1, "maths": 3}, range(3, 5)) == [("maths", 2), ("maths", 3)]
    with_none = mixture({"talk": 1, "law": 0, "code": 1, "maths": 1}, range(49))
    assert Counter(name for name, _ in with_none) == {"code": 17, "maths": 16, "talk": 16}


@settings(max_examples=50, deadline=None)
@given(shares=SHARES, num_places=st.integers(1, 1000))
def test_the_mixture_never_strays_from_the_proportions(shares: Mapping[str, float], num_places: int) -> None:
    counts = Counter(name for name, _ in mixture(shares, range(num_places)))
    assert counts.total() == num_places
    for name, share in shares.items():
        expected = share / sum(shares.values()) * num_places
        assert abs(counts[name] - expected) <= 0.5 + share / sum(shares.values()) * len(shares) / 2 + 1e-6
        assert len(shares) > 2 or abs(counts[name] - expected) < 1


@settings(max_examples=25, deadline=None)
@given(shares=SHARES, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_a_stretch_of_the_mixture_does_not_depend_on_how_it_is_cut(
    shares: Mapping[str, float], cuts: list[int]
) -> None:
    borders = [0, *sorted(cuts), 200]
    parts = [mixture(shares, range(start, stop)) for start, stop in itertools.pairwise(borders)]
    assert [turn for part in parts for turn in part] == mixture(shares, range(200))


def test_proportions_need_not_sum_to_one() -> None:
    assert mixture({"maths": 0.7, "talk": 0.3}, range(200)) == mixture({"maths": 70, "talk": 30}, range(200))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.fixed_dictionaries({"maths": st.integers(1, 9), "talk": st.integers(1, 9), "code": st.integers(1, 9)}),
    shares=st.fixed_dictionaries({name: st.floats(0.01, 1) for name in ("maths", "talk", "code")}),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_each_data_set_is_gone_through_epoch_by_epoch_whatever_the_mixture(
    sizes: dict[str, int], shares: dict[str, float], batch_size: int, seed: int
) -> None:
    prompts = prompts_of(**sizes)
    taken = [prompt for step in range(10) for prompt in batch_of(prompts, step, batch_size, seed, shares)]
    assert len(taken) == 10 * batch_size
    for name, size in sizes.items():
        mine = [prompt.ids[0] for prompt in taken if prompt.source == name]
        for start in range(0, len(mine), size):
            epoch = mine[start : start + size]
            assert len(set(epoch)) == len(epoch)
    again = batch_of(prompts, 7, batch_size, seed, shares)
    assert again == taken[7 * batch_size : 8 * batch_size]


def test_a_data_sets_own_order_is_its_own() -> None:
    alone = batch_of(prompts_of(maths=20), 0, 20, 0, {"maths": 1})
    mixed = batch_of(prompts_of(talk=5, maths=20), 0, 40, 0, {"maths": 1, "talk": 1})
    assert [prompt for prompt in mixed if prompt.source == "maths"] == alone
    assert alone != batch_of(prompts_of(maths=20), 0, 20, 1, {"maths": 1})
    other = batch_of(prompts_of(talk=20), 0, 20, 0, {"talk": 1})
    assert [prompt.ids for prompt in other] != [prompt.ids for prompt in alone]


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"math": 1, "talk": 1}, "name math, but the data sets of the prompts are maths, talk"),
        ({"maths": 1}, "leave talk without a share. Give each one; 0 leaves it out"),
        ({"maths": 1, "talk": -1}, "expected numbers from 0 up"),
        ({"maths": 1, "talk": float("nan")}, "expected numbers from 0 up"),
        ({"maths": 1, "talk": float("inf")}, "expected numbers from 0 up"),
        ({"maths": 0, "talk": 0}, "at least one above 0"),
    ],
)
def test_wrong_proportions_are_refused(proportions: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_proportions(prompts_of(maths=3, talk=3), proportions)
    check_proportions(prompts_of(maths=3, talk=3), {"maths": 0.2, "talk": 3})
    check_proportions(prompts_of(maths=3, talk=3), None)
