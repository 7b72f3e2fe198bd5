import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "infra" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ON_CPU = {"cpu.yaml": 1, "cpu_2.yaml": 2}
PROGRAM = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=not torch.cuda.is_available())
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0])).item()
print(f"{accelerator.process_index} of {accelerator.num_processes} {accelerator.mixed_precision} {total:g}\\n", end="")
accelerator.end_training()
"""


def test_there_are_four_configs():
    assert [path.name for path in CONFIGS] == ["cpu.yaml", "cpu_2.yaml", "gpu.yaml", "multi_gpu.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_the_config_and_uses_the_processor_it_is_named_for(path):
    config = load_config_from_file(str(path))

    assert config.use_cpu == path.name.startswith("cpu")
    assert (config.num_machines, config.mixed_precision) == (1, "no")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_processes"), ON_CPU.items())
def test_a_cpu_config_starts_its_processes_and_they_speak_to_each_other(name, num_processes, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / name), "program.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    total = {1: 1, 2: 1 + 2}[num_processes]
    expected = {f"{rank} of {num_processes} no {total}" for rank in range(num_processes)}
    assert set(filter(None, done.stdout.split("\n"))) == expected


@pytest.mark.slow
def test_all_gpus_is_a_number_that_torchrun_finds_out(tmp_path):
    """Without a GPU torchrun says so: `num_processes: gpu` has reached it."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FOLDER / "multi_gpu.yaml"),
        "x.py",
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert "Cuda is not available" in done.stderr
