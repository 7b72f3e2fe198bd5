"""What our uses of TRL's trainers share."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from tasks.hf_trainer import EpochSampler, MetricsCallback, add_dropout, last_logged, training_options
from tasks.models.modeling import backbone, load_causal_lm
from tasks.tracking import read_metrics
from tasks.trainer_config import TrainerConfig
from tests.tasks.tiny_models import write_model

STATE = SimpleNamespace(is_world_process_zero=True, global_step=2, max_steps=8)


@pytest.mark.parametrize(
    ("changed", "argument", "expected"),
    [
        ({"learning_rate": 0.5}, "learning_rate", 0.5),
        ({"lr_schedule": "constant"}, "lr_scheduler_type", "constant"),
        ({"warmup_ratio": 0.25}, "warmup_steps", 0.25),
        ({"num_epochs": 2.5}, "num_train_epochs", 2.5),
        ({"max_steps": 7}, "max_steps", 7),
        ({"per_device_batch_size": 3}, "per_device_train_batch_size", 3),
        ({"gradient_accumulation_steps": 5}, "gradient_accumulation_steps", 5),
        ({"weight_decay": 0.1}, "weight_decay", 0.1),
        ({"max_grad_norm": 0.3}, "max_grad_norm", 0.3),
        ({"dtype": "bfloat16"}, "bf16", True),
        ({"gradient_checkpointing": True}, "activation_checkpointing", True),
        ({"eval_steps": 11}, "eval_steps", 11),
        ({"save_steps": 13}, "save_steps", 13),
        ({"seed": 17}, "seed", 17),
    ],
)
def test_each_option_reaches_the_trainer(tmp_path, changed, argument, expected):
    assert training_options(TrainerConfig(**changed), tmp_path)[argument] == expected
    assert training_options(TrainerConfig(), tmp_path)[argument] != expected


def test_without_max_steps_the_epochs_count(tmp_path):
    assert training_options(TrainerConfig(), tmp_path)["max_steps"] == -1


def test_weights_in_training_are_float32_and_the_frozen_base_of_lora_is_not():
    assert TrainerConfig(dtype="bfloat16").weights_dtype == "float32"
    assert TrainerConfig(dtype="bfloat16", lora={"r": 2}).weights_dtype == "bfloat16"


def test_dropout_acts_in_training_on_embeddings_and_last_hidden_states_and_nowhere_else(tmp_path):
    model = load_causal_lm(write_model(tmp_path))
    ids = torch.tensor([[3, 4, 5, 6]])
    plain = backbone(model)(ids).last_hidden_state
    add_dropout(model, 0.5)
    assert torch.equal(backbone(model.eval())(ids).last_hidden_state, plain)
    model.train()
    assert 0 < (model.get_input_embeddings()(ids) == 0).float().mean() < 1
    assert 0 < (backbone(model)(ids).last_hidden_state == 0).float().mean() < 1


def test_no_dropout_leaves_training_as_it_is(tmp_path):
    model = load_causal_lm(write_model(tmp_path)).train()
    ids = torch.tensor([[3, 4, 5, 6]])
    plain = backbone(model)(ids).last_hidden_state
    add_dropout(model, 0.0)
    assert torch.equal(backbone(model)(ids).last_hidden_state, plain)


def start(folder, resume_step=0):
    callback = MetricsCallback(folder, resume_step)
    callback.on_train_begin(None, STATE, TrainerControl())
    return callback


def test_logs_become_lines_of_numbers_under_our_names(tmp_path):
    callback = start(tmp_path)
    callback.on_log(None, STATE, None, logs={"loss": 1.5, "grad_norm": 2.0, "epoch": 0.25, "num_tokens": 9.0})
    callback.on_log(None, STATE, None, logs={"eval_loss": 3.0})
    callback.on_log(None, STATE, None, logs={"train_runtime": 1.0, "train_loss": 9.0})
    records = [{key: value for key, value in record.items() if key != "time"} for record in read_metrics(tmp_path)]
    assert records == [
        {"step": 2, "total_steps": 8, "train_loss": 1.5, "grad_norm": 2.0},
        {"step": 2, "total_steps": 8, "eval_loss": 3.0},
    ]


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    start(tmp_path).on_log(None, STATE, None, logs={"loss": 1.0})
    start(tmp_path, resume_step=2)
    assert len(read_metrics(tmp_path)) == 1
    start(tmp_path, resume_step=1)
    assert read_metrics(tmp_path) == []


def test_only_the_main_process_writes(tmp_path):
    callback = MetricsCallback(tmp_path, 0)
    other = SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=2)
    callback.on_train_begin(None, other, TrainerControl())
    callback.on_log(None, other, None, logs={"loss": 1.0})
    assert read_metrics(tmp_path) == []


def test_a_slow_step_is_logged_at_once(tmp_path, monkeypatch):
    callback = start(tmp_path)
    control = TrainerControl()
    callback.on_step_end(None, STATE, control)
    assert not control.should_log
    callback.logged_at -= 6
    callback.on_step_end(None, STATE, control)
    assert control.should_log


def test_the_newest_value_of_a_metric_is_found():
    history = [{"eval_loss": 3.0}, {"loss": 1.0}, {"eval_loss": 2.0}, {"loss": 0.5}]
    assert last_logged(SimpleNamespace(state=SimpleNamespace(log_history=history)), "eval_loss") == 2.0


@pytest.mark.parametrize(
    ("size", "accumulation", "smaller"), [(8, 1, (4, 2)), (2, 3, (1, 6)), (9, 1, (3, 3)), (5, 2, (1, 10)), (1, 4, None)]
)
def test_less_memory_means_fewer_records_at_once_and_as_many_in_a_step(size, accumulation, smaller):
    config = TrainerConfig(per_device_batch_size=size, gradient_accumulation_steps=accumulation, max_length=77)
    less = config.with_less_memory("cpu")
    assert smaller == (less and (less.per_device_batch_size, less.gradient_accumulation_steps))
    assert less is None or less.max_length == 77


def test_the_order_of_the_records_is_of_the_seed_and_the_epoch_and_of_nothing_before():
    def order(seed, epoch):
        torch.rand(epoch + 3)  # what was drawn before makes no difference
        return list(EpochSampler(4, [1, 2, 3, 4] * 8, seed, lambda: epoch))

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(32))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
