"""A training that needs more memory than the kernel gives it."""

import json
from pathlib import Path

import pytest

from tasks import runner, stages
from tasks.artifacts import import_external, read_files, store_at
from tasks.runner import Watch, Workplace, run_stage
from tasks.sft.config import SFTConfig
from tests.tasks.tiny_models import write_model, write_split

LIMIT_BYTES = 2_600_000_000  # of a process's own memory; in 1.7e9, which the libraries take, not even 32 records fit
BATCH_SIZE = 256
CONFIG = SFTConfig(max_steps=1, per_device_batch_size=BATCH_SIZE, max_length=64, eval_steps=10)
RECORD = {"prompt": "a good film", "completion": " b c d e" * 13}


@pytest.mark.slow
def test_sft_that_runs_out_of_memory_trains_in_smaller_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, number in (("train", BATCH_SIZE), ("test", 4)):
        write_split(tmp_path / "data", "sft", split, [RECORD] * number)
    write_model(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_attention_heads=4)
    inputs = {name: import_external(str(tmp_path / name), kind=name) for name in ("data", "model")}
    accelerate_config = runner.PROJECT / "infra" / "accelerate" / "cpu.yaml"
    place = Workplace(store_at(f"file://{tmp_path}/store"), tmp_path / "work", accelerate_config)
    command = runner._command
    limit = ["prlimit", f"--data={LIMIT_BYTES}"]
    monkeypatch.setattr(runner, "_command", lambda *given: [*limit, *command(*given)])
    outcome = run_stage(stages.SFT, CONFIG, inputs, "model", place, Watch(lambda record: None, lambda: False))
    report = json.loads(read_files(place.store, outcome.artifact, "report.json")["report.json"])
    assert report["reduced_for_memory"] in {
        f"per_device_batch_size {BATCH_SIZE} -> {BATCH_SIZE // steps}, gradient_accumulation_steps 1 -> {steps}"
        for steps in (2, 4, 8)
    }
