from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.prompts import Prompt, batch_of, read_prompts
from tests.tasks.ppo.tiny import make_tokenizer


def test_prompts_are_tokenised_keep_their_columns_and_too_long_ones_are_counted(tmp_path, capsys) -> None:
    table = pa.table({"prompt": ["w5 w6", "w7 w8 w9 w10", "w3"], "answer": ["1", "2", "3"]})
    pq.write_table(table, tmp_path / "prompts_train.parquet")
    kept = read_prompts(tmp_path, "train", make_tokenizer(), longest=3)
    assert kept == [Prompt([5, 6], "w5 w6", {"answer": "1"}), Prompt([3], "w3", {"answer": "3"})]
    assert "2 prompts; left out as longer than 3 tokens: 1" in capsys.readouterr().out
    assert len(read_prompts(tmp_path, "train", make_tokenizer(), longest=None)) == 3


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    prompts = [Prompt([index], str(index), {}) for index in range(10)]
    taken = [prompt.ids[0] for iteration in range(5) for prompt in batch_of(prompts, iteration, 4, seed=0)]
    assert len(taken) == 20
    assert Counter(taken[:10]) == Counter(taken[10:]) == Counter(range(10))
    assert taken[:10] != taken[10:]
    assert batch_of(prompts, 3, 4, seed=0) == batch_of(prompts, 3, 4, seed=0)
    assert batch_of(prompts, 3, 4, seed=0) != batch_of(prompts, 3, 4, seed=1)
    assert len(batch_of(prompts[:3], 0, 8, seed=0)) == 8
